"""A run folder holds what a reader can trust: whole files, one run, metrics without repeats."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder, differences, plain, replacing, write_atomically


@dataclass(frozen=True, kw_only=True)
class Part:
    rate: float = 1e-05
    scale: tuple[float, float] = (0.08, 1.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path
    data: str = "digits"
    part: Part = Part()
    resume: bool = False


def files(folder: Path) -> list[str]:
    return sorted(inside.name for inside in folder.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """A disk that fills up while results are written would cost the results of before."""
    file = tmp_path / "results.json"
    write_atomically(file, "old")

    def fail() -> None:
        with replacing(file) as temporary:
            temporary.write_text("ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert file.read_text() == "old"
    assert files(tmp_path) == ["results.json"]


def test_a_kill_between_writing_and_renaming_leaves_the_old_file(tmp_path: Path) -> None:
    """SIGKILL runs no clean-up: only the order write, fsync, rename protects the checkpoint of before."""
    file = tmp_path / "last.ckpt"
    write_atomically(file, "old")
    program = (
        "import os, signal, sys; from pathlib import Path; from compress_ssl.run_folder import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('new'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    assert len(files(tmp_path)) == 2, "the kill was meant to leave its temporary file behind"


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    """Temporary files are born private: a colleague could not read the results in a shared folder."""
    old = os.umask(0o022)
    try:
        write_atomically(tmp_path / "results.json", "{}")
    finally:
        os.umask(old)
    assert (tmp_path / "results.json").stat().st_mode & 0o777 == 0o644


def test_a_start_that_failed_at_once_does_not_block_its_folder(tmp_path: Path) -> None:
    """After a typo in --teacher the corrected command would be refused, over a folder that holds nothing of worth."""
    out = tmp_path / "run"
    RunFolder.open(out, Config(out=out, data="fotos"), resume=False)
    RunFolder.open(out, Config(out=out, data="photos"), resume=False)
    assert "photos" in (out / "config.yaml").read_text()


def test_a_folder_with_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A second run under the same name would mix two runs' metrics and overwrite a student."""
    out = tmp_path / "run"
    RunFolder.open(out, Config(out=out), resume=False).log("train", step=1, loss=2.0)
    before = {name: (out / name).read_bytes() for name in files(out)}
    with pytest.raises(Refusal, match=r"another run.*--resume"):
        RunFolder.open(out, Config(out=out, data="photos"), resume=False)
    assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """`--out ~/photos` by mistake would fill a folder of photographs with checkpoints."""
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(Refusal, match="other files"):
        RunFolder.open(tmp_path, Config(out=tmp_path), resume=False)
    assert files(tmp_path) == ["holiday.jpg"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, place: str) -> None:
    """A traceback of mkdir would not say that --out is meant."""
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="--out"):
        RunFolder.open(tmp_path / place, Config(out=tmp_path / place), resume=False)


def test_a_folder_without_rights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line turns a permission error into one sentence: it must arrive there as one, with the place."""
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
    else:  # nothing is forbidden to root
        monkeypatch.setattr(
            Path, "mkdir", lambda self, **_: (_ for _ in ()).throw(PermissionError(13, "no", str(self)))
        )
    with pytest.raises(PermissionError) as caught:
        RunFolder.open(tmp_path / "run", Config(out=tmp_path / "run"), resume=False)
    assert "run" in str(caught.value.filename)
    tmp_path.chmod(0o700)


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    """A mistyped --out with --resume must not start a run of 130 epochs silently."""
    with pytest.raises(Refusal, match=r"got no config\.yaml"):
        RunFolder.open(tmp_path / "typo", Config(out=tmp_path), resume=True)
    assert not (tmp_path / "typo").exists()


def test_the_resume_flag_and_the_way_the_folder_is_written_are_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume` itself would be refused as a changed configuration, and so would `--out ./run` for `--out run`."""
    monkeypatch.chdir(tmp_path)
    config = Config(out=Path("run"))
    RunFolder.open(config.out, config, resume=False)
    for out in (Path("run"), tmp_path / "run"):
        RunFolder.open(out, replace(config, out=out, resume=True), resume=True)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["resume"] is False


def test_resuming_with_a_changed_configuration_shows_what_changed(tmp_path: Path) -> None:
    """Half a run at one learning rate and half at another is a result nobody can repeat."""
    out = tmp_path / "run"
    config = Config(out=out)
    RunFolder.open(out, config, resume=False)
    changed = replace(config, data="photos", part=Part(rate=0.5, scale=(0.2, 1.0)), resume=True)
    with pytest.raises(Refusal) as caught:
        RunFolder.open(out, changed, resume=True)
    told = str(caught.value)
    assert "data: digits → photos" in told
    assert "part.rate: 1e-05 → 0.5" in told
    assert "part.scale: [0.08, 1.0] → [0.2, 1.0]" in told
    assert "resume:" not in told
    assert "out:" not in told


def test_differences_tell_added_and_removed_options() -> None:
    """An option that came with a new version would be dropped from the message."""
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 2, "d": 3}}) == ["a: 1 → None", "b.d: None → 3"]
    assert differences(plain(Part()), plain(Part())) == []


def test_a_run_killed_while_its_folder_was_made_can_be_started_and_resumed(tmp_path: Path) -> None:
    """Between mkdir and the first file lies a moment after which neither starting nor --resume would be accepted."""
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.yaml.ab12_xyz.yaml").write_text("data: dig")
    RunFolder.open(out, Config(out=out), resume=False)
    (out / "environment.json").unlink()
    RunFolder.open(out, Config(out=out, resume=True), resume=True)
    assert files(out) == ["config.yaml", "environment.json"]


def test_resuming_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    """Each kill while a checkpoint is written would leave another gigabyte behind."""
    out = tmp_path / "run"
    RunFolder.open(out, Config(out=out), resume=False)
    with replacing(out / "checkpoints" / "last.ckpt") as temporary:
        left = temporary.name
        temporary.write_bytes(b"whole")
    for name in (left, ".gitignore", "last.ckpt.bak"):
        (out / "checkpoints" / name).write_bytes(b"half")
    RunFolder.open(out, Config(out=out, resume=True), resume=True)
    assert files(out / "checkpoints") == [".gitignore", "last.ckpt", "last.ckpt.bak"]
    assert (out / "checkpoints" / "last.ckpt").read_bytes() == b"whole"


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    """Curves would double back on themselves after every kill; a line cut off would break every reader."""
    run = RunFolder(tmp_path)
    for step in (0, 3, 6, 9):
        run.log("train", step=step, loss=0.1 + step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    run.forget_after(6)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 3, 6]
    run.log("train", step=9, loss=1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_an_unusable_image_is_listed_once_also_after_a_kill_in_the_middle_of_its_line(tmp_path: Path) -> None:
    """After a resume the list would repeat every image of every epoch, or lose those after a line cut off."""
    out = tmp_path / "run"
    run = RunFolder.open(out, Config(out=out), resume=False)
    assert run.skip("a.png", "broken", "no header")
    assert not run.skip("a.png", "broken", "no header")
    with (out / "skipped.jsonl").open("a") as file:
        file.write('{"id": "b.png", "ki')
    run = RunFolder.open(out, Config(out=out, resume=True), resume=True)
    assert not run.skip("a.png", "broken", "no header")
    assert run.skip("b.png", "empty", "0 bytes")
    assert run.skip("č.png", "empty", "0 bytes")
    assert RunFolder(out).skipped() == {"broken": 1, "empty": 2}
    assert [json.loads(line)["id"] for line in (out / "skipped.jsonl").read_text().splitlines()] == [
        "a.png",
        "b.png",
        "č.png",
    ]
