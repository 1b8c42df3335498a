"""A checkpoint continues a run exactly, or is refused; it never executes anything."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress_ssl import checkpoint
from compress_ssl.refusal import Refusal


class Tuesday:
    """What a downloaded checkpoint could hold."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.fixture
def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    optimizer = torch.optim.AdamW(student.parameters())
    student(torch.randn(7, 3)).sum().backward()
    optimizer.step()
    return {"student": student, "optimizer": optimizer}


@pytest.fixture
def small_files() -> Iterator[None]:
    """A disk that has no room for more than 200 kB."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def test_parts_and_standing_come_back_bit_by_bit(tmp_path: Path, parts: dict[str, Any]) -> None:
    """A resumed run would drift from one that was never killed."""
    standing = {"step": 11, "best": float("-inf"), "losses": [0.1, 1 / 3], "fitted": False}
    checkpoint.save(tmp_path / "last.ckpt", parts, standing)
    fresh = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    other = {"student": fresh, "optimizer": torch.optim.AdamW(fresh.parameters())}
    assert checkpoint.load(tmp_path / "last.ckpt", other) == standing
    for name, tensor in parts["student"].state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name
    ours, theirs = (given["optimizer"].state_dict()["state"] for given in (parts, other))
    assert all(torch.equal(ours[number][name], theirs[number][name]) for number in ours for name in ours[number])


def test_generators_come_back(tmp_path: Path, parts: dict[str, Any]) -> None:
    """Whatever draws from torch, numpy or random would draw other numbers after a resume."""

    def draw() -> tuple[Any, ...]:
        legacy = np.random.standard_normal(3)  # noqa: NPY002
        return torch.randn(3).tolist(), legacy.tolist(), random.gauss(0, 1), random.random()

    draw()  # leaves the cached second half of a gaussian pair behind
    checkpoint.save(tmp_path / "last.ckpt", parts, {})
    first = draw()
    assert draw() != first
    checkpoint.load(tmp_path / "last.ckpt", parts)
    assert draw() == first


@pytest.mark.parametrize("how", ["plain pickle", "torch"])
def test_a_malicious_checkpoint_is_refused_and_not_executed(
    tmp_path: Path, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Resuming a folder from a stranger would run the stranger's program."""
    monkeypatch.chdir(tmp_path)
    evil = {"format": 1, "parts": Tuesday(), "standing": {}, "generators": {}}
    if how == "torch":
        torch.save(evil, "last.ckpt")
    else:
        Path("last.ckpt").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(Refusal, match="damaged"):
        checkpoint.load(tmp_path / "last.ckpt", parts)
    assert not Path("executed").exists()


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, parts: dict[str, Any], harm: str) -> None:
    """A file torn by a failing disk would end in a traceback of zipfile, or worse, load."""
    file = tmp_path / "last.ckpt"
    checkpoint.save(file, parts, {})
    whole = file.read_bytes()
    middle = whole.find(b"PK", 100)
    broken = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:middle] + b"XX" + whole[middle + 2 :].replace(b"PK", b"XX"),
        "empty": b"",
        "text": b"a note\n",
    }
    file.write_bytes(broken[harm])
    with pytest.raises(Refusal, match=r"damaged.*anew"):
        checkpoint.load(file, parts)


def test_a_missing_checkpoint_is_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    """FileNotFoundError names a file that the user never heard of."""
    with pytest.raises(Refusal, match="nothing to resume"):
        checkpoint.load(tmp_path / "last.ckpt", parts)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"format": 2, "parts": {}}])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, parts: dict[str, Any], content: Any) -> None:
    """Someone else's .ckpt, or one of a later version, would end in a KeyError."""
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(Refusal, match="format 1"):
        checkpoint.load(tmp_path / "last.ckpt", parts)


def test_a_checkpoint_of_other_parts_is_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    """A pretraining's checkpoint under a distillation would load half and train on from noise."""
    checkpoint.save(tmp_path / "last.ckpt", parts, {})
    with pytest.raises(Refusal, match=r"\['objective', 'student'\].*\['optimizer', 'student'\]"):
        checkpoint.load(tmp_path / "last.ckpt", {"student": parts["student"], "objective": parts["optimizer"]})


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_an_os_error_and_keeps_the_checkpoint_of_before(tmp_path: Path, parts: dict[str, Any]) -> None:
    """torch's writer turns "no space left" into an internal assertion, and the user would look for a bug in us."""
    file = tmp_path / "last.ckpt"
    checkpoint.save(file, parts, {"step": 1})
    big = nn.Linear(300, 300)
    with pytest.raises(OSError, match="File too large") as caught:
        checkpoint.save(file, {**parts, "objective": big}, {"step": 2})
    assert caught.value.errno == errno.EFBIG
    assert checkpoint.load(file, parts) == {"step": 1}
    assert [inside.name for inside in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here: it is Linux's disk without room")
def test_no_space_left_arrives_as_no_space_left(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ENOSPC lets the command line say that the disk is full."""

    class Full:
        def __init__(self, path: Path):
            self.path = path

        def __enter__(self) -> Path:
            return Path("/dev/full")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(checkpoint, "replacing", Full)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(Path("last.ckpt"), parts, {})
    assert caught.value.errno == errno.ENOSPC
