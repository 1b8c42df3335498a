"""Encoder + images -> rows, in memory and as a table that a killed run continues and several processes write."""

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
from compress_ssl.cli import main
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.projector import About, Shape
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import write_atomically
from compress_ssl.student import Student, save_student
from compress_ssl.table import MANIFEST, Table, command
from compress_ssl.table_writer import TableWriter
from compress_ssl.transforms import Crop, EvaluationView, Sample, TrainView, cut, draw_crop, evaluation_view
from compress_ssl.verification import verify

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
    return of_views(opened, [evaluation_view(images.read(place), opened.preprocessing) for place in range(len(images))])


def of_views(opened: nn.Module, views: list[torch.Tensor]) -> np.ndarray:
    """Unit rows of pictures as the encoder gets them, one at a time."""
    with torch.no_grad():
        rows = torch.cat([opened(view[None]) for view in views]).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 2**-11), ("int8", 1 / 127)])
def test_a_table_holds_the_encoders_own_rows(encoder, tmp_path, dtype, error):
    """A teacher from a table would be another one than the teacher itself (rounding aside)."""
    data = photos(tmp_path / "photos", 23)
    embed.run(config(encoder, data, tmp_path / "table", dtype=dtype))
    table, splits = Table(tmp_path / "table"), datasets.open_splits(str(data))
    assert table.width == 64
    for name, images in (("train", splits.train), ("test", splits.test)):
        assert table.ids(name) == list(images.ids)
        assert table.labels(name).tolist() == images.labels.tolist()
        assert np.load(tmp_path / "table" / name / "00000.npy")["row"].dtype == dtype
        stored = table.embeddings(name).rows
        np.testing.assert_allclose(stored, unit_rows_one_by_one(encoder, images), atol=error)


def test_random_views_are_those_of_a_live_training(encoder, tmp_path):
    """The student would be shown another part of the picture than the one that the teacher's row is of."""
    data, view = photos(tmp_path / "photos", 23), TrainView(scale=(0.2, 0.9), flip=0.3)
    embed.run(config(encoder, data, tmp_path / "table", views=3, seed=11, view=view, dtype="float32"))
    table, images = Table(tmp_path / "table"), datasets.open_splits(str(data)).train
    opened = open_encoder(str(encoder), weights="random")
    assert (table.views, table.view, table.preprocessing) == (3, view, opened.preprocessing)
    for v in range(3):
        pictures = [images.read(place) for place in range(len(images))]
        samples = [Sample(11, v, 0, id) for id in images.ids]
        crops = [
            draw_crop(*picture.shape[:2], view, sample.random)
            for picture, sample in zip(pictures, samples, strict=True)
        ]
        assert [table.crop(place, view=v) for place in range(len(images))] == crops
        assert len(set(crops)) > 5
        views = [cut(picture, crop, 8) for picture, crop in zip(pictures, crops, strict=True)]
        rows = table.rows(np.arange(len(images)), view=v).numpy()
        np.testing.assert_allclose(rows, of_views(opened, views), atol=1e-6)


def test_random_views_leave_the_evaluation_view_and_the_test_split_alone(encoder, tmp_path):
    """Scores of a teacher would depend on how its students are trained; test images would be stored V times over."""
    data = photos(tmp_path / "photos", 23)
    embed.run(config(encoder, data, tmp_path / "none", dtype="float32"))
    embed.run(config(encoder, data, tmp_path / "two", dtype="float32", views=2, batch_size=7))
    none, two = Table(tmp_path / "none"), Table(tmp_path / "two")
    for split in ("train", "test"):
        np.testing.assert_allclose(none.embeddings(split).rows, two.embeddings(split).rows, atol=1e-6)
    assert np.load(tmp_path / "two" / "train" / "00000.npy").shape == (5, 3)
    assert np.load(tmp_path / "two" / "test" / "00000.npy").shape == (5, 1)
    assert crop_is_zero(np.load(tmp_path / "two" / "train" / "00000.npy")[:, 0])


def crop_is_zero(records: np.ndarray) -> bool:
    return not records["box"].any() and not records["flip"].any()


def test_views_do_not_depend_on_where_an_image_stands(encoder, tmp_path):
    """A training over a part of the data, or with images added, would see other crops than the stored ones."""
    data = photos(tmp_path / "photos", 23)
    embed.run(config(encoder, data, tmp_path / "table", views=2))
    (data / "train" / "a" / "000.png").unlink()
    embed.run(config(encoder, data, tmp_path / "fewer", views=2))
    whole, fewer = Table(tmp_path / "table"), Table(tmp_path / "fewer")
    for place, id in enumerate(fewer.ids("train")):
        there = whole.ids("train").index(id)
        assert [fewer.crop(place, view=v) for v in (0, 1)] == [whole.crop(there, view=v) for v in (0, 1)]
        assert isinstance(fewer.crop(place, view=0), Crop)


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
    real, counted = embed.embed_views, []

    def count(encode, images, **options):
        counted.append(len(images))
        if len(counted) == 4:
            raise Killed
        return real(encode, images, **options)

    monkeypatch.setattr(embed, "embed_views", count)
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
        patch.setattr("compress_ssl.sealed.write_atomically", killed)
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
    embed.run(config(encoder, data, tmp_path / "whole", batch_size=1, views=1))
    process = started(encoder, data, tmp_path / "table", "--batch-size", "1", "--views", "1")
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
    assert "splits" not in json.loads((tmp_path / "table" / MANIFEST).read_text()), "killed too late to tell"
    embed.run(config(encoder, data, tmp_path / "table", batch_size=1, views=1))
    assert {file: file.stat().st_ino for file in finished} == finished
    assert contents(tmp_path / "table") == contents(tmp_path / "whole"), "nothing is left of what was being written"


def started(encoder: Path, data: Path, out: Path, *words: str, **variables: str) -> subprocess.Popen:
    """`compress-ssl embed` in a process of its own, with the options of `config`."""
    fixed = ["--shard-rows", "5", "--workers", "0", "--device", "cpu"]
    command = [sys.executable, "-m", "compress_ssl.cli", "embed", "--encoder", str(encoder), "--data", str(data)]
    return subprocess.Popen(
        [*command, "--out", str(out), *fixed, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def of_torchrun(rank: int, ranks: int) -> dict[str, str]:
    """The variables that torchrun sets."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    return {"TORCHELASTIC_RUN_ID": "none", **{name: str(value) for name, value in names.items()}}


def test_processes_started_together_write_the_table_of_one(encoder, tmp_path):
    """Eight GPUs would make eight times the same rows, or eight parts of a table that no single one would make."""
    data = photos(tmp_path / "photos", 59)
    embed.run(config(encoder, data, tmp_path / "whole", views=1))
    words = ("--batch-size", "3", "--views", "1")
    processes = [started(encoder, data, tmp_path / "table", *words, **of_torchrun(rank, 2)) for rank in (0, 1)]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[1] == ("", ""), "one process speaks"
    assert contents(tmp_path / "table") == contents(tmp_path / "whole")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_process_begins_with_its_share_and_helps_with_the_rest(encoder, tmp_path, monkeypatch, order):
    """All would begin with the same shard; or what a process that died had to do would never be done."""
    data = photos(tmp_path / "photos", 41)
    embed.run(config(encoder, data, tmp_path / "whole"))
    real, made = TableWriter.write, []
    monkeypatch.setattr(TableWriter, "write", lambda self, task, *a: made.append(task.number) or real(self, task, *a))
    for rank in order:
        with monkeypatch.context() as patch:
            for name, value in of_torchrun(rank, 3).items():
                patch.setenv(name, value)
            embed.run(config(encoder, data, tmp_path / "table"))
    assert len(made) == 9, "six shards of training images and three of test images, each once"
    assert [number % 3 for number in made[:3]] == [order[0]] * 3
    assert contents(tmp_path / "table") == contents(tmp_path / "whole")


def test_a_table_goes_on_with_shards_of_the_size_it_began_with(encoder, tmp_path):
    """Whoever wrote small shards because of kills would lose the rest of the table to the first kill after one."""
    data = photos(tmp_path / "photos", 23)
    embed.run(config(encoder, data, tmp_path / "table", shard_rows=4))
    files = len(list((tmp_path / "table" / "train").glob("*.npy")))
    (tmp_path / "table" / "train" / "00001.json").unlink()
    (tmp_path / "table" / "train" / "00002.json").unlink()
    again = command(Table(tmp_path / "table").origin, tmp_path / "table")
    assert "--shard-rows 4" in again
    embed.run(config(encoder, data, tmp_path / "table", shard_rows=None))
    assert len(list((tmp_path / "table" / "train").glob("*.json"))) == files
    assert verify(tmp_path / "table") == []


def test_a_complete_table_is_left_alone(encoder, tmp_path, monkeypatch):
    """Starting the same command twice would embed a million images twice."""
    data = photos(tmp_path / "photos", 11)
    embed.run(config(encoder, data, tmp_path / "table"))
    before = contents(tmp_path / "table")
    monkeypatch.setattr(embed, "embed_views", None)  # calling it would fail
    assert embed.run(config(encoder, data, tmp_path / "table")) == tmp_path / "table"
    assert contents(tmp_path / "table") == before


@pytest.mark.parametrize("change", ["weights", "size", "dtype", "space", "unusual", "views", "seed", "view"])
def test_another_origin_is_refused_by_name(encoder, tmp_path, change):
    """Rows of two encoders, two preprocessings or other crops would stand in one table."""
    data = photos(tmp_path / "photos", 11)
    first = config(encoder, data, tmp_path / "table", views=1)
    embed.run(first)
    before = contents(tmp_path / "table")
    other, options, field = encoder, {"views": 1}, f"{change}:"
    if change == "weights":
        other, field = tmp_path / "other", r"encoder\.weights: [0-9a-f]+ → [0-9a-f]+"
        save_encoder(open_encoder(SPEC, weights="random", size=8), other)
    elif change == "size":
        options, field = {"views": 1, "size": 9}, r"encoder\.preprocessing\.size: 8 → 9"
    elif change == "dtype":
        options = {"views": 1, "dtype": "float32"}
    elif change == "unusual":
        options = {"views": 1, "unusual": "convert"}
    elif change == "views":
        options, field = {"views": 2}, r"views\.count: 1 → 2"
    elif change == "seed":
        options, field = {"views": 1, "seed": 2}, r"views\.seed: 0 → 2"
    elif change == "view":
        options, field = {"views": 1, "view": TrainView(flip=0.0)}, r"views\.view\.flip: 0\.5 → 0\.0"
    else:
        other, field = tmp_path / "student", r"encoder\.space: own → teacher"
        opened = open_encoder(str(encoder), weights="random")
        into = About(Shape((opened.width, 11)), "teacher")
        save_student(Student(opened, into.shape.build()), other / "student", [into])
        options = {"views": 1, "space": "teacher"}
    with pytest.raises(Refusal, match=field):
        embed.run(config(other, data, tmp_path / "table", **options))
    assert contents(tmp_path / "table") == before


def test_a_picture_that_was_replaced_is_noticed(encoder, tmp_path):
    """The same names over other pictures: the old rows would stand for the new images."""
    data = photos(tmp_path / "photos", 11)
    embed.run(config(encoder, data, tmp_path / "table"))
    Image.fromarray(np.zeros((31, 37, 3), np.uint8)).save(data / "train" / "a" / "000.png")
    with pytest.raises(Refusal, match=r"got 1 changed ones \(train/a/000\.png: \d+ → \d+, …\): put the old ones back"):
        embed.run(config(encoder, data, tmp_path / "table"))


def test_pictures_that_were_added_are_embedded_alone(encoder, tmp_path, monkeypatch):
    """Ten photographs more would cost the million again; and no row that was there may change."""
    data = photos(tmp_path / "photos", 23)
    embed.run(config(encoder, data, tmp_path / "table", views=1))
    old = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (tmp_path / "table").rglob("0*")}
    photos(data, 29)  # the same and six more
    real, counted = embed.embed_views, []
    monkeypatch.setattr(embed, "embed_views", lambda *a, **b: counted.extend(a[1].ids) or real(*a, **b))
    embed.run(config(encoder, data, tmp_path / "table", views=1))
    assert sorted(counted) == [
        *("test/a/023.png", "test/a/026.png", "train/a/024.png", "train/a/027.png", "train/b/025.png"),
        "train/b/028.png",
    ]
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in old} == old
    table, images = Table(tmp_path / "table"), datasets.open_splits(str(data)).train
    order = [images.ids.index(id) for id in table.ids("train")]
    assert sorted(order) == list(range(len(images)))
    expected = unit_rows_one_by_one(encoder, images)[order]
    np.testing.assert_allclose(table.embeddings("train").rows, expected, atol=1e-3)


def test_pictures_that_are_gone_are_told(encoder, tmp_path, capfd):
    """Rows of images that nobody has any more would be searched without a word."""
    data = photos(tmp_path / "photos", 23)
    embed.run(config(encoder, data, tmp_path / "table"))
    (data / "train" / "a" / "000.png").unlink()
    embed.run(config(encoder, data, tmp_path / "table"))
    told = " ".join(capfd.readouterr().err.split())
    assert "1 images with rows in" in told
    assert "(train/a/000.png, …): their rows stay" in told


def words(encoder: Path, data: Path, out: Path) -> list[str]:
    return [
        "embed",
        "--encoder",
        str(encoder),
        "--data",
        str(data),
        "--out",
        str(out),
        "--workers",
        "0",
        "--views",
        "1",
    ]


def test_a_table_is_verified_and_described_from_the_command_line(encoder, tmp_path, capsys):
    """A script could not tell a damaged table from a whole one before a training of a week."""
    data, out = photos(tmp_path / "photos", 11), tmp_path / "table"
    assert main(words(encoder, data, out)) == 0
    capsys.readouterr()
    assert main(["embed", "--verify", str(out)]) == 0
    assert "every bit of" in " ".join(capsys.readouterr().err.split())
    assert main(["embed", "--info", str(out)]) == 0
    assert "and 1 random ones of each training image" in " ".join(capsys.readouterr().out.split())
    for file in (out / "train" / "00000.npy", out / "test" / "00000.json"):
        changed = bytearray(file.read_bytes())
        changed[-40] ^= 4
        file.write_bytes(changed)
    assert main(["embed", "--verify", str(out)]) == 2
    told = capsys.readouterr().err
    assert f"{out} is damaged in 2 places" in told
    assert f"remove {out / 'train' / '00000.json'} and run `compress-ssl embed --encoder " in told
    assert f"expected {out / 'test' / '00000.json'} as `embed` wrote it" in told


def test_the_mend_that_verify_names_gives_back_the_table(encoder, tmp_path, capsys):
    """One would follow the sentence and have another table than before."""
    data, out = photos(tmp_path / "photos", 23), tmp_path / "table"
    command = [*words(encoder, data, out), "--shard-rows", "5"]
    assert main(command) == 0
    before, file = contents(out), out / "train" / "00001.npy"
    file.write_bytes(file.read_bytes()[:-7])
    assert main(["embed", "--verify", str(out)]) == 2
    file.with_suffix(".json").unlink()
    assert main(command) == 0
    assert contents(out) == before
    assert main(["embed", "--verify", str(out)]) == 0
    capsys.readouterr()


def test_nothing_to_verify_is_refused(tmp_path, capsys):
    """A wrong path would be reported as a table without a fault."""
    for option in ("--verify", "--info"):
        assert main(["embed", option, str(tmp_path)]) == 2
        assert "expected an embeddings table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "expected --encoder, --data, --out, got nothing for them: see compress-ssl embed --help"),
        (["--encoder", "a", "--out", "b"], "expected --data, got nothing for it"),
        (["--views", "-1"], "--views expected 0 or more, got -1"),
        (["--seed", "-1"], "--seed expected 0 or more, got -1"),
        (["--shard-rows", "0"], "--shard-rows expected at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size expected at least 1, got 0"),
    ],
)
def test_options_that_make_no_table_are_refused(tmp_path, capsys, given, told):
    """A traceback, or a table in a folder called None."""
    rest = [] if "--encoder" in given or not given else ["--encoder", SPEC, "--data", "digits"]
    rest += ["--out", str(tmp_path / "table")] if rest else []
    assert main(["embed", *rest, *given]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "table").exists()


def test_unusable_images_are_listed_and_left_out(encoder, tmp_path, capfd):
    """A broken file would be a black image's row, or end the run."""
    data = photos(tmp_path / "photos", 23)
    (data / "train" / "a" / "000.png").write_bytes(b"")
    (data / "train" / "b" / "zz.jpg").write_bytes(b"no picture")
    embed.run(config(encoder, data, tmp_path / "table"))
    table = Table(tmp_path / "table")
    assert table.skipped("train") == {"train/a/000.png": 0, "train/b/zz.jpg": len(b"no picture")}
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


def test_strict_does_not_forgive_what_an_earlier_start_has_skipped(encoder, tmp_path):
    """Started again with --strict, a table without some of the images would pass for one of all of them."""
    data = photos(tmp_path / "photos", 11)
    broken = data / "train" / "b" / "zz.png"
    broken.write_bytes(b"")
    embed.run(config(encoder, data, tmp_path / "table"))
    with pytest.raises(
        Refusal, match=r"--strict expected .*, got 1 that were found not to be .*\(train/b/zz\.png, …\)"
    ):
        embed.run(config(encoder, data, tmp_path / "table", strict=True))
    broken.unlink()
    embed.run(config(encoder, data, tmp_path / "table", strict=True))
    assert len(Table(tmp_path / "table").ids("train")) == 8


def test_rows_in_the_teachers_space_go_through_the_projector(encoder, tmp_path):
    """Queries of a 1q student would be looked for in the wrong space of the teacher's index."""
    data = photos(tmp_path / "photos", 23)
    torch.manual_seed(3)
    opened = open_encoder(str(encoder), weights="random")
    into = About(Shape((opened.width, 11)), "teacher")
    student = Student(opened, into.shape.build()).eval()
    save_student(student, tmp_path / "run" / "student", [into])
    embed.run(config(tmp_path / "run", data, tmp_path / "table", space="teacher", dtype="float32"))
    table, images = Table(tmp_path / "table"), datasets.open_splits(str(data)).test
    assert table.width == 11
    views = [evaluation_view(images.read(place), student.encoder.preprocessing) for place in range(len(images))]
    with torch.no_grad():
        expected = student(torch.stack(views)).numpy()
    np.testing.assert_allclose(table.embeddings("test").rows, expected, atol=1e-6)


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
