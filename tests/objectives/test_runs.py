"""Every objective trains through the verb, and goes on exactly after a kill. A file enters by existing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_ssl import checkpoint, distill, objectives
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.hardware import HardwareConfig
from compress_ssl.optim import OptimizerConfig
from compress_ssl.scorer import Scorer
from compress_ssl.training import TrainingConfig

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENT = "compress/resnet10_small_w8"
STEPS, EPOCH = 4, 86  # of 1387 digits, 16 a step


class Killed(BaseException):
    """What SIGKILL is to a process: nothing of ours catches it."""


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved vision transformer for 64 pixels, with 4 × 4 patches."""
    folder = tmp_path_factory.mktemp("transformer")
    torch.manual_seed(6)
    save_encoder(open_encoder("timm/test_vit", weights="random", size=64), folder)
    return str(folder)


def config(teacher: str, out: Path, objective: Any) -> distill.Config:
    return distill.Config(
        teacher=teacher,
        student=STUDENT,
        data="digits",
        out=out,
        objective=objective,
        training=TrainingConfig(
            epochs=STEPS / EPOCH, batch_size=16, validate_every_epochs=1, save_every_minutes=0, log_every_steps=1
        ),
        optimizer=OptimizerConfig(learning_rate=0.05),
        hardware=HardwareConfig(accelerator="cpu", workers=0, precision="32", compile="off"),
        held_out=50,
        gallery=30,
    )


def state(run: Path) -> dict[str, Any]:
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["standing"]["step"] == STEPS
    return saved["parts"]


@pytest.mark.parametrize("name", objectives.names())
def test_a_run_trains_all_that_learns_and_a_killed_one_goes_on_exactly(
    digits_teacher: str, transformer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An objective would pass its own tests and fail in the loop: heads that stay as they were, a key that is missing,
    targets that are clustered anew after a kill."""
    monkeypatch.setattr(Scorer, "finish", lambda _: None)
    monkeypatch.setattr(Scorer, "__call__", lambda *_: {"neighbour_overlap_10": 0.5})
    module = objectives.find(name)
    whole = config(digits_teacher, tmp_path / "whole", module.Config())
    if getattr(module.Objective, "tokens", False):  # of another grid than its teacher's
        whole = replace(whole, teacher=transformer, student="timm/test_vit2", student_size=32)
    save, kept = checkpoint.save, {}

    def keep_first(path: Path, parts: Any, standing: dict[str, Any]) -> None:
        save(path, parts, standing)
        if standing["step"] == 0:
            kept.update(torch.load(path, weights_only=True)["parts"])

    monkeypatch.setattr(checkpoint, "save", keep_first)
    distill.run(whole)
    before, after = kept, state(whole.out)
    trained = {"student": (before["student"], after["student"])}
    if "trained" in after["objective"]:
        trained["heads"] = (before["objective"]["trained"], after["objective"]["trained"])
    for first, last in trained.values():
        for parameter in first:
            if first[parameter].is_floating_point() and "running" not in parameter:
                assert not torch.equal(first[parameter], last[parameter]), f"{parameter} has not learnt"

    def killed(path: Path, parts: Any, standing: dict[str, Any]) -> None:
        if standing["step"] == 3:
            raise Killed
        save(path, parts, standing)

    monkeypatch.setattr(checkpoint, "save", killed)
    again = replace(whole, out=tmp_path / "again")
    with pytest.raises(Killed):
        distill.run(again)
    monkeypatch.setattr(checkpoint, "save", save)
    if getattr(module.Objective, "fits_targets", False):
        monkeypatch.setattr(module.Objective, "fit", None)  # it was saved, and takes an hour for many images
    distill.run(replace(again, resume=True))
    torch.testing.assert_close(state(again.out), after, rtol=0, atol=0)
