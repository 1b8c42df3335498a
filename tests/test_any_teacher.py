"""Teachers of every kind that others compute: distilled from, resumed, embedded, scored and examined like any other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_ssl import checkpoint, compilation, distill, doctor, embed, evaluate
from compress_ssl.encoder import open_encoder
from compress_ssl.hardware import HardwareConfig
from compress_ssl.objectives import compress
from compress_ssl.refusal import Refusal
from compress_ssl.table import Table
from compress_ssl.training import TrainingConfig

SIZE = 16
EPOCH = 87  # steps of 16 digits, those held out left aside
FUNCTION = """
import torch
weights = torch.randn(3 * 16, 11, generator=torch.Generator().manual_seed({seed}))
def encode(images):
    return images.float().mean(dim=3).flatten(1) @ weights
encode.size = 16
"""


def onnx_file(folder: Path, seed: int = 0) -> str:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(seed)
    backbone = open_encoder("compress/resnet10_small_w8", weights="random", size=SIZE).backbone
    torch.onnx.export(
        backbone, (torch.zeros(3, 3, SIZE, SIZE),), str(folder / "teacher.onnx"), dynamo=True, verbose=False
    )
    return str(folder / "teacher.onnx")  # of a batch of 3


def saved_model(folder: Path, seed: int = 0) -> str:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(folder / "resnet")
    transformers.ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=1.0).save_pretrained(folder / "resnet")
    return f"transformers/{folder / 'resnet'}"


def function(folder: Path, seed: int = 0) -> str:
    name = f"function_of_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(FUNCTION.format(seed=seed))
    sys.modules.pop(name, None)
    return f"python/{name}:encode"


KINDS: dict[str, Callable[..., str]] = {"onnx": onnx_file, "transformers": saved_model, "python": function}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return request.param


def config(teacher: str, out: Path) -> distill.Config:
    """6 steps of 16 digits, saved every second step."""
    return distill.Config(
        teacher=teacher,
        student="compress/resnet10_small_w8",
        data="digits",
        out=out,
        objective=compress.Config(temperature=0.04),  # untrained: rows so alike that no neighbours can be told apart
        training=TrainingConfig(
            epochs=6 / EPOCH, batch_size=16, validate_every_epochs=2 / EPOCH, save_every_minutes=0, log_every_steps=1
        ),
        hardware=HardwareConfig(accelerator="cpu", workers=0, precision="32"),
        held_out=40,
        gallery=60,
    )


class Killed(BaseException):
    """What SIGKILL is to a process: nothing of ours catches it."""


def killed_at_step_4(config: distill.Config) -> None:
    save = checkpoint.save

    def killed(path: Path, parts: Any, standing: dict[str, Any]) -> None:
        if standing["step"] == 4:
            raise Killed
        save(path, parts, standing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(Killed):
            distill.run(config)


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_it_is_distilled_from_resumed_and_known_again(kind: str, tmp_path: Path) -> None:
    """Hours would be lost with a teacher that only starts; or the second half be learnt from another one."""
    teacher = KINDS[kind](tmp_path)
    whole = distill.run(config(teacher, tmp_path / "whole"))
    results = json.loads((whole / "results.json").read_text())["models"]
    width = open_encoder(teacher, weights="pretrained").width
    assert results["teacher"]["width"] == width
    assert results["teacher"]["images_per_second"] > 0
    assert ("parameters" in results["teacher"]) == (kind != "python"), "what nobody can say is left out"
    interrupted = config(teacher, tmp_path / "run")
    killed_at_step_4(interrupted)
    made = [file for file in tmp_path.rglob("*") if file.suffix in (".py", ".onnx", ".data", ".safetensors")]
    before = {file: file.read_bytes() for file in made if "run" not in file.parts}
    KINDS[kind](tmp_path, seed=1)  # another teacher of the same name
    with pytest.raises(Refusal, match=r"--resume expected .* got other content \(teacher weights: .*put the old back"):
        distill.run(replace(interrupted, resume=True))
    for file, content in before.items():
        file.write_bytes(content)
    sys.modules.pop(teacher.removeprefix("python/").partition(":")[0], None)
    resumed = distill.run(replace(interrupted, resume=True))
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) == 6


def test_its_table_holds_its_rows_and_is_not_gone_on_with_by_another(kind: str, tmp_path: Path) -> None:
    """Rows of two teachers in one table look like one."""
    teacher = KINDS[kind](tmp_path)
    asked = embed.Config(encoder=teacher, data="digits", out=tmp_path / "table", shard_rows=2000, workers=0)
    table = Table(embed.run(asked))
    encoder = open_encoder(teacher, weights="pretrained")
    assert table.width == encoder.width
    assert table.preprocessing == encoder.preprocessing
    KINDS[kind](tmp_path, seed=1)
    with pytest.raises(Refusal, match="weights"):
        embed.run(asked)


def test_it_is_scored_beside_others(kind: str, tmp_path: Path) -> None:
    """A teacher that cannot be compared with its student says nothing about it."""
    teacher = KINDS[kind](tmp_path)
    out = evaluate.run(
        evaluate.Config(
            models=(f"teacher={teacher}", "student=compress/resnet10_small_w8@random"), data="digits",
            out=tmp_path / "out", metrics=("nearest_neighbour", "neighbour_overlap"), workers=0, device="cpu",
        )
    )  # fmt: skip
    found = json.loads((out / "results.json").read_text())["models"]
    assert found["teacher"]["metrics"]["nearest_neighbour"] > 0.1
    assert found["student"]["metrics"]["neighbour_overlap_10"] > 0


def test_the_doctor_examines_it(kind: str, tmp_path: Path) -> None:
    """A refusal would come after the doctor had said that all is well."""
    told = doctor.run(
        doctor.Config(
            data="digits", teacher=KINDS[kind](tmp_path), student="compress/resnet10_small_w8", images=40, gallery=50,
            held_out=30, seconds=1, batch_size=16, workers=0, accelerator="cpu", precision="32", json=True,
        )
    )  # fmt: skip
    assert told is not None
    found = json.loads(told)
    assert found["teacher"]["cosine"] is not None
    assert found["speed"]["step_live"]["images_per_second"] > 0
    known = kind != "python"
    assert (found["teacher"]["parameters"] is not None) == known
    assert (found["student"]["parameter_share"] is not None) == known


def test_compiled_or_not_it_gives_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--compile on` would trace into a library that computes by itself."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    teacher = onnx_file(tmp_path)
    runs = []
    for compile in ("off", "on"):
        asked = config(teacher, tmp_path / compile)
        runs.append(losses(distill.run(replace(asked, hardware=replace(asked.hardware, compile=compile)))))
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)
