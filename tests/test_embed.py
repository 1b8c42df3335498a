"""Encoder + images -> rows, in memory and as a table that a killed run continues."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from compress_ssl import datasets, embed
from compress_ssl.embeddings import Table
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import write_atomically
from compress_ssl.student import Student, load_projector, save_student
from compress_ssl.transforms import EvaluationView, evaluation_view

SPEC = "compress/resnet10_small_w8@random"


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_SSL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A saved encoder: 64 numbers from 8 pixels, its batch norms as after some training."""
    torch.manual_seed(5)
    opened = open_encoder(SPEC, weights="random", size=8)
    for module in opened.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(opened, folder)
    return folder


def photos(folder: Path, count: int, seed: int = 7) -> Path:
    """`count` small pictures, in train/a, train/b and test/a."""
    random = np.random.default_rng(seed)
    for number in range(count):
        place = folder / ("train/a", "train/b", "test/a")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(place / f"{number:03d}.png")
    return folder


def config(encoder: Path, data: Path | str, out: Path, **options) -> embed.Config:
    fixed = {"shard_rows": 5, "batch_size": 3, "workers": 0, "device": "cpu"}
    return embed.Config(encoder=str(encoder), data=str(data), out=out, **{**fixed, **options})


def contents(folder: Path) -> dict[str, str]:
    """File -> sha256 of all below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def unit_rows_one_by_one(encoder: Path, images) -> np.ndarray:
    """The slow way: one image at a time, no loader."""
    opened = open_encoder(str(encoder), weights="random")
    views = [evaluation_view(images.read(place), opened.preprocessing) for place in range(len(images))]
    with torch.no_grad():
        rows = torch.cat([opened(view[None]) for view in views]).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 2**-11)])
def test_a_table_holds_the_encoders_own_rows(encoder, tmp_path, dtype, error):
    """A teacher from a table would be another one than the teacher itself (rounding aside)."""
    data = photos(tmp_path / "photos", 23)
    embed.run(config(encoder, data, tmp_path / "table", dtype=dtype))
    table, splits = Table(tmp_path / "table"), datasets.open_splits(str(data))
    assert table.width == 64
    for name, images in (("train", splits.train), ("test", splits.test)):
        assert table.ids(name) == list(images.ids)
        assert table.labels(name).tolist() == images.labels.tolist()
        stored = table.rows(name, np.arange(len(images)))
        assert stored.dtype == dtype
        np.testing.assert_allclose(stored, unit_rows_one_by_one(encoder, images), atol=error)


def test_the_number_of_workers_and_the_batch_size_change_no_row(encoder, tmp_path):
    """A table made on another machine would differ, and with it every neighbour at the edge."""
    data = photos(tmp_path / "photos", 53)
    embed.run(config(encoder, data, tmp_path / "alone", shard_rows=100, dtype="float32"))
    embed.run(config(encoder, data, tmp_path / "two", shard_rows=100, dtype="float32", workers=2, batch_size=7))
    alone, two = Table(tmp_path / "alone"), Table(tmp_path / "two")
    assert alone.ids("train") == two.ids("train")
    np.testing.assert_allclose(alone.embeddings("train").rows, two.embeddings("train").rows, atol=1e-6)


class Killed(BaseException):
    """What a process feels of SIGKILL: nothing after it runs, no clean-up of ours either."""


def test_finished_shards_are_not_done_again(encoder, tmp_path, monkeypatch):
    """A kill after nine hours of ten would cost ten hours."""
    data = photos(tmp_path / "photos", 41)
    embed.run(config(encoder, data, tmp_path / "whole"))
    real, counted = embed.embed, []

    def count(encode, images, **options):
        counted.append(len(images))
        if len(counted) == 4:
            raise Killed
        return real(encode, images, **options)

    monkeypatch.setattr(embed, "embed", count)
    with pytest.raises(Killed):
        embed.run(config(encoder, data, tmp_path / "table"))
    before = {file: file.stat() for file in (tmp_path / "table" / "train").iterdir()}
    assert len(before) == 6, "three shards, each with its record"
    embed.run(config(encoder, data, tmp_path / "table"))
    assert counted == [5, 5, 5, 5, 5, 5, 3, 5, 5, 3]  # 28 train images, 13 test images; the fourth shard twice
    for file, stat in before.items():
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), f"{file} was rewritten"
    assert contents(tmp_path / "table") == contents(tmp_path / "whole"), "byte for byte as never interrupted"


def test_killed_while_a_record_is_written_the_shard_is_done_again(encoder, tmp_path, monkeypatch):
    """Rows without their record, or half a record, would be taken for a finished shard."""
    data = photos(tmp_path / "photos", 23)
    embed.run(config(encoder, data, tmp_path / "whole"))

    def killed(path, text):
        if path.name == "00001.json":
            raise Killed
        write_atomically(path, text)

    with monkeypatch.context() as patch:
        patch.setattr("compress_ssl.embeddings.write_atomically", killed)
        with pytest.raises(Killed):
            embed.run(config(encoder, data, tmp_path / "table"))
    assert (tmp_path / "table" / "train" / "00001.npy").exists()
    with pytest.raises(Refusal, match="interrupted"):
        Table(tmp_path / "table")
    embed.run(config(encoder, data, tmp_path / "table"))
    assert contents(tmp_path / "table") == contents(tmp_path / "whole")


def test_after_sigkill_the_table_ends_up_the_same(encoder, tmp_path):
    """What a simulation forgets: buffers, temporary files, a process that is really gone."""
    data = photos(tmp_path / "photos", 149)
    embed.run(config(encoder, data, tmp_path / "whole", batch_size=1))
    words = ["--encoder", encoder, "--data", data, "--out", tmp_path / "table", "--shard-rows", 5, "--batch-size", 1]
    command = [sys.executable, "-m", "compress_ssl.cli", "embed", *map(str, words), "--workers", "0", "--device", "cpu"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 90
        while not (tmp_path / "table" / "train" / "00002.json").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    finished = {file: file.stat().st_ino for file in (tmp_path / "table").rglob("0*.json")}
    assert len(finished) >= 3
    assert not json.loads((tmp_path / "table" / "manifest.json").read_text()).get("complete"), "killed too late to tell"
    embed.run(config(encoder, data, tmp_path / "table", batch_size=1))
    assert {file: file.stat().st_ino for file in finished} == finished
    left = {
        name: digest for name, digest in contents(tmp_path / "table").items() if not Path(name).name.startswith(".")
    }
    assert left == contents(tmp_path / "whole")


def test_a_complete_table_is_left_alone(encoder, tmp_path, monkeypatch):
    """Starting the same command twice would embed a million images twice."""
    data = photos(tmp_path / "photos", 11)
    embed.run(config(encoder, data, tmp_path / "table"))
    before = contents(tmp_path / "table")
    monkeypatch.setattr(embed, "embed", None)  # calling it would fail
    assert embed.run(config(encoder, data, tmp_path / "table")) == tmp_path / "table"
    assert contents(tmp_path / "table") == before


@pytest.mark.parametrize("change", ["weights", "data", "size", "dtype", "space", "unusual"])
def test_another_origin_is_refused_by_name(encoder, tmp_path, change):
    """Rows of two encoders, two data sets or two preprocessings would stand in one table."""
    data = photos(tmp_path / "photos", 11)
    first = config(encoder, data, tmp_path / "table")
    embed.run(first)
    before = contents(tmp_path / "table")
    other, options, field = encoder, {}, f"{change}:"
    if change == "weights":
        other, field = tmp_path / "other", r"encoder\.weights: [0-9a-f]+ → [0-9a-f]+"
        save_encoder(open_encoder(SPEC, weights="random", size=8), other)
    elif change == "data":
        photos(data, 14, seed=8)
        field = r"data\.train\.images: 8 → 10"
    elif change == "size":
        options, field = {"size": 9}, r"encoder\.preprocessing\.size: 8 → 9"
    elif change == "dtype":
        options = {"dtype": "float32"}
    elif change == "unusual":
        options = {"unusual": "convert"}
    else:
        other, field = tmp_path / "student", r"encoder\.space: own → teacher"
        save_student(Student(open_encoder(str(encoder), weights="random"), 11), other / "student")
        options = {"space": "teacher"}
    with pytest.raises(Refusal, match=field):
        embed.run(config(other, data, tmp_path / "table", **options))
    assert contents(tmp_path / "table") == before


def test_a_picture_that_was_replaced_is_noticed(encoder, tmp_path):
    """The same names over other pictures: the old rows would stand for the new images."""
    data = photos(tmp_path / "photos", 11)
    embed.run(config(encoder, data, tmp_path / "table"))
    Image.fromarray(np.zeros((31, 37, 3), np.uint8)).save(data / "train" / "a" / "000.png")
    with pytest.raises(Refusal, match=r"data\.train\.fingerprint"):
        embed.run(config(encoder, data, tmp_path / "table"))


def test_unusable_images_are_listed_and_left_out(encoder, tmp_path, capfd):
    """A broken file would be a black image's row, or end the run."""
    data = photos(tmp_path / "photos", 23)
    (data / "train" / "a" / "000.png").write_bytes(b"")
    (data / "train" / "b" / "zz.jpg").write_bytes(b"no picture")
    embed.run(config(encoder, data, tmp_path / "table"))
    table = Table(tmp_path / "table")
    assert table.skipped("train") == {"train/a/000.png", "train/b/zz.jpg"}
    assert not {"train/a/000.png", "train/b/zz.jpg"} & set(table.ids("train"))
    assert len(table.ids("train")) == 15
    told = " ".join(capfd.readouterr().err.split())
    assert "skipped train/a/000.png: empty" in told
    assert "skipped train/b/zz.jpg: broken" in told


def test_a_shard_of_nothing_but_broken_files_does_not_end_the_run(encoder, tmp_path):
    """Five broken files in a row among a million would make the million unusable."""
    data = photos(tmp_path / "photos", 23)
    for number in range(5):
        (data / "train" / "a" / f"!{number}.png").write_bytes(b"")  # the first shard, in the order of names
    embed.run(config(encoder, data, tmp_path / "table"))
    table = Table(tmp_path / "table")
    assert len(table.skipped("train")) == 5
    images = datasets.open_splits(str(data)).train
    usable = datasets.subset(images, np.arange(5, len(images)))
    assert table.ids("train") == list(usable.ids)
    np.testing.assert_allclose(table.embeddings("train").rows, unit_rows_one_by_one(encoder, usable), atol=1e-3)


def test_a_data_set_without_a_usable_image_is_refused(encoder, tmp_path):
    """An empty table would be found out by whoever searches in it."""
    data = tmp_path / "photos"
    data.mkdir()
    for number in range(7):
        (data / f"{number}.png").write_bytes(b"")
    with pytest.raises(Refusal, match="expected at least one usable image"):
        embed.run(config(encoder, data, tmp_path / "table"))


def test_strict_keeps_the_shards_that_are_finished(encoder, tmp_path):
    """Mending one file would cost the whole table."""
    data = photos(tmp_path / "photos", 41)
    (data / "train" / "b" / "zz.png").write_bytes(b"")
    with pytest.raises(Refusal, match=r"--strict expected every image to be usable, got train/b/zz\.png: empty"):
        embed.run(config(encoder, data, tmp_path / "table", strict=True))
    assert len(list((tmp_path / "table" / "train").glob("*.json"))) == 5


def test_rows_in_the_teachers_space_go_through_the_projector(encoder, tmp_path):
    """Queries of a 1q student would be looked for in the wrong space of the teacher's index."""
    data = photos(tmp_path / "photos", 23)
    torch.manual_seed(3)
    student = Student(open_encoder(str(encoder), weights="random"), 11).eval()
    save_student(student, tmp_path / "run" / "student")
    embed.run(config(tmp_path / "run", data, tmp_path / "table", space="teacher", dtype="float32"))
    table, images = Table(tmp_path / "table"), datasets.open_splits(str(data)).test
    assert table.width == 11
    views = [evaluation_view(images.read(place), student.encoder.preprocessing) for place in range(len(images))]
    with torch.no_grad():
        expected = student(torch.stack(views)).numpy()
    np.testing.assert_allclose(table.rows("test", np.arange(len(images))), expected, atol=1e-6)
    assert load_projector(tmp_path / "run" / "student") is not None


def test_without_a_projector_there_is_no_teachers_space(encoder, tmp_path):
    """Rows of the student's own space would be written as the teacher's."""
    with pytest.raises(Refusal, match="expected a student with a projector"):
        embed.run(config(encoder, "digits", tmp_path / "table", space="teacher"))
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("wrong", "told"), [("nan", "NaN or infinity"), ("zero", "a zero vector"), ("shape", "of shape")]
)
def test_rows_that_are_no_embeddings_are_refused_with_the_image(wrong, told):
    """A NaN in one row makes every similarity to it NaN, and the first loss that shows it is epochs away."""
    images = datasets.open_splits("digits").test

    def encode(batch: torch.Tensor) -> torch.Tensor:
        rows = torch.ones(len(batch), 7)
        if wrong == "nan":
            rows[1, 2] = float("nan")
        return rows[:, :, None] if wrong == "shape" else rows * (wrong != "zero")

    view = EvaluationView(open_encoder(SPEC, weights="random", size=8).preprocessing)
    with pytest.raises(Refusal, match=told) as refusal:
        embed.embed(encode, images, view=view, device=torch.device("cpu"), batch_size=3, workers=0)
    if wrong != "shape":
        assert images.ids[1 if wrong == "nan" else 0] in str(refusal.value)


def test_progress_is_shown_on_a_terminal_only(encoder, tmp_path):
    """A log file would fill with control characters, or a long run would look dead."""
    images, shown = datasets.open_splits("digits").test, {}
    opened = open_encoder(str(encoder), weights="random")
    for terminal in (True, False):
        with (tmp_path / "told").open("w+") as file:
            console = Console(file=file, force_terminal=terminal, width=60)
            view = EvaluationView(opened.preprocessing)
            embed.embed(
                opened, images, view=view, device=torch.device("cpu"), workers=0, console=console, told="looking"
            )
            file.seek(0)
            shown[terminal] = file.read()
    assert "looking" in shown[True]
    assert shown[False] == ""
