"""The doctor: what it finds was planted, what it says fits a terminal, and it leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from compress_ssl import doctor, objectives
from compress_ssl.calibration import calibrate
from compress_ssl.checkup import inspection
from compress_ssl.cli import main
from compress_ssl.datasets import hold_out, open_splits, set_aside, trained_and_watched
from compress_ssl.objectives import cc
from compress_ssl.quantised import Int8Rows
from compress_ssl.refusal import Refusal
from compress_ssl.weighted import Weighted, leaves

MODELS = ["--teacher", "compress/resnet10_small_w16_s2@random", "--student", "compress/resnet10_small_w8_s2"]
QUICK = ["--seconds", "0.5", "--workers", "0", "--batch-size", "8", "--student-size", "32", "--teacher-size", "32"]
NUMBERS = {"speed", "forecast", "advice"}  # which measured speeds change


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_SSL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def scene(seed: int, side: int = 64) -> Image.Image:
    random = np.random.default_rng(seed)
    layers = [random.integers(0, 256, (cells, cells, 3), dtype=np.uint8) for cells in (3, 7)]
    scaled = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC), float) for one in layers]
    return Image.fromarray((0.6 * scaled[0] + 0.4 * scaled[1]).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 training and 8 test images of two classes, and more that are planted."""
    root = tmp_path / "photos"
    for split, count, first in (("train", 30, 0), ("test", 8, 100)):
        for number in range(count):
            path = root / split / ("cat" if number % 2 else "dog") / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            scene(first + number, 48 + number).save(path, quality=90)
    train, test = root / "train", root / "test"
    (test / "dog" / "same.jpg").write_bytes((train / "dog" / "04.jpg").read_bytes())  # leaks
    (train / "cat" / "wrong.jpg").write_bytes((train / "dog" / "06.jpg").read_bytes())  # under another label
    with Image.open(train / "cat" / "07.jpg") as image:
        image.resize((40, 40)).save(train / "cat" / "smaller.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(test / "cat" / "mirrored.jpg", quality=70)
    (train / "cat" / "cut.jpg").write_bytes((train / "cat" / "09.jpg").read_bytes()[:400])
    (train / "cat" / "none.jpg").write_bytes(b"")
    Image.new("CMYK", (50, 50)).save(train / "dog" / "ink.jpg")
    return root


def examined(capsys, *words: str) -> dict:
    assert main(["doctor", *words, *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_was_planted_is_found(photos, capsys):
    """Each of these spoils a training or a score, and none of them shows while it runs."""
    data = examined(capsys, "--data", str(photos))["data"]
    assert data["splits"]["train"] == {"images": 35, "looked_at": 35, "usable": 32, "labelled": 35}
    assert data["splits"]["test"] == {"images": 10, "looked_at": 10, "usable": 10, "labelled": 10}
    assert {kind["kind"]: (kind["count"], kind["first"]) for kind in data["unusable"]} == {
        "cmyk": (1, ["train/dog/ink.jpg"]),
        "empty": (1, ["train/cat/none.jpg"]),
        "truncated": (1, ["train/cat/cut.jpg"]),
    }
    exact = data["exact_duplicates"]
    assert (exact["copies"], exact["groups"], exact["leaks"], exact["other_label"]) == (2, 2, 1, 1)
    assert sorted(exact["first"]) == [
        ["train/cat/wrong.jpg", "train/dog/06.jpg"],
        ["train/dog/04.jpg", "test/dog/same.jpg"],
    ]
    near = data["near_duplicates"]
    assert (near["copies"], near["mirrored"], near["groups"], near["leaks"]) == (2, 1, 1, 1)
    assert data["short_side"]["smallest"] == 40
    assert data["short_side"]["largest"] == 77
    assert data["formats"] == {"jpeg": 41, "png": 1}
    assert data["labels"]["smallest"]["name"] == "dog"
    assert data["labels"]["classes"] == 2


def test_a_sample_is_scaled_up_and_exact_copies_are_looked_for_among_all(photos, capsys):
    """A million images are not opened one by one; but a file that is there twice is seen by its size."""
    found = examined(capsys, "--data", str(photos), "--images", "9")["data"]
    assert found["looked_at"] == 9
    assert found["splits"]["train"]["looked_at"] == 7
    assert found["exact_duplicates"]["copies"] == 2
    assert found == examined(capsys, "--data", str(photos), "--images", "9")["data"], "the same sample again"
    for kind in found["unusable"]:
        assert kind["expected"] == round(kind["count"] * 35 / 7)


def test_files_of_one_size_are_read_whole_only_if_their_middle_agrees(tmp_path, monkeypatch):
    """Of a million photographs nearly all have the size of another: reading all takes hours, on a network disk days."""
    root = tmp_path / "raw"
    root.mkdir()
    for number in range(30):
        scene(number).save(root / f"{number:02d}.jpg", quality=90)
    longest = max(path.stat().st_size for path in root.iterdir())
    for path in root.iterdir():  # as photographs of a million are: many of one size
        path.write_bytes(path.read_bytes().ljust(longest, b"\0"))
    (root / "copy.jpg").write_bytes((root / "03.jpg").read_bytes())
    read: list[int] = []
    whole = inspection.contents
    monkeypatch.setattr(
        inspection, "contents", lambda images, places, **how: read.extend(places) or whole(images, places, **how)
    )
    found = inspection.inspect(open_splits(str(root)), count=3, seed=0, workers=0)
    assert found["exact_duplicates"]["copies"] == 1
    assert found["exact_duplicates"]["first"] == [["03.jpg", "copy.jpg"]]
    assert len(read) <= 2


def test_teacher_and_student_are_those_that_distill_would_take(photos, capsys):
    """Numbers about other images, another input or another bank would be advice for another training."""
    objective = ["--objective", "compress_2q", "--objective.temperature", "auto"]
    found = examined(capsys, "--data", str(photos), *MODELS, *objective)
    assert set(found) == {
        "data", "teacher", "student", "speed", "forecast", "advice", "left_out"
    }  # fmt: skip
    training, held_out = set_aside(open_splits(str(photos)).train, at_most=1000)
    gallery = hold_out(training, count=len(training) - 1)[1]
    teacher = found["teacher"]
    assert teacher["queries"] in (len(held_out), len(held_out) - 1, len(held_out) - 2, len(held_out) - 3)
    assert len(gallery) - 3 <= teacher["gallery"] <= len(gallery)
    assert teacher["width"] == 128
    assert teacher["temperature"]["suggested"] is None
    assert "images to look for neighbours among" in teacher["temperature"]["why_not"]
    assert 0 < teacher["temperature"]["default_share"] <= 1
    assert teacher["bank"]["suggested"] == len(training)
    assert teacher["bank"]["bytes"]["float32"] == len(training) * ((128 + 64) * 4 + 8)
    assert -1 <= teacher["cosine"]["quantiles"]["0.01"] <= teacher["cosine"]["quantiles"]["0.99"] <= 1
    assert 1 <= teacher["effective_dimension"] <= 128
    student = found["student"]
    assert student["width"] == 64
    assert student["parameter_share"] == pytest.approx(student["parameters"] / teacher["parameters"])
    assert student["unsafe"] is None
    for part in ("loader", "teacher", "step_alone", "step_stored", "step_live"):
        assert found["speed"][part]["images_per_second"] > 0, part
    assert found["speed"]["batch_size"] == 8
    assert found["speed"]["parts_live"]["teacher"] > 0
    forecast = found["forecast"]
    assert forecast["images"] == len(training)
    slower = min(found["speed"][part]["images_per_second"] for part in ("loader", "step_live"))
    assert forecast["live"]["hours"] == pytest.approx(130 * len(training) / slower / 3600)
    speed = found["speed"]
    assert speed["loader_stored"] is None, "both models look at 32 pixels"
    tested = len(open_splits(str(photos)).test)
    views = (len(training) + len(held_out)) * 5 + tested
    assert forecast["stored"]["embed_hours"] >= views / speed["teacher"]["images_per_second"] / 3600 * 0.999
    assert forecast["memory"]["whole"] == sum(forecast["memory"][part] for part in ("weights", "activations", "bank"))
    assert forecast["memory"]["weights"] == 4 * (4 * student["parameters"] + teacher["parameters"])
    assert found["left_out"] == []


def test_of_few_images_two_neighbours_are_found_as_the_default_objective_does(photos, capsys):
    """`distill` would find a temperature for a handful of pictures that `doctor` said there is none for."""
    teacher = examined(capsys, "--data", str(photos), *MODELS)["teacher"]
    assert teacher["temperature"]["why_not"] is None
    assert 0 < teacher["temperature"]["suggested"] < 100
    assert teacher["temperature"]["share"] * teacher["gallery"] == pytest.approx(2, rel=2e-3)


def test_the_same_seed_finds_the_same(photos, capsys):
    """Findings that change by themselves cannot be compared before and after mending something."""
    one, two = (examined(capsys, "--data", str(photos), *MODELS) for _ in range(2))
    assert {name: one[name] for name in one if name not in NUMBERS} == {
        name: two[name] for name in two if name not in NUMBERS
    }


def test_nothing_is_written_and_the_text_fits_a_terminal(photos, capsys, monkeypatch, tmp_path):
    """A look must leave no trace; lines that are broken twice cannot be read."""
    monkeypatch.setenv("COLUMNS", "80")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["doctor", "--data", str(photos), *MODELS, *QUICK]) == 0
    out = capsys.readouterr().out
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert max(map(len, out.splitlines())) <= 80
    for heading in ("Data", "Teacher", "Student", "Speed", "Forecast", "What to change first"):
        assert f"\n{heading}" in f"\n{out}", heading
    assert "1 truncated (train/cat/cut.jpg)" in out
    assert "take these images out of one split" in out
    assert "None" not in out


def test_what_was_not_given_is_left_out_and_said_so(photos, capsys):
    """A section full of dashes would look like a fault."""
    assert main(["doctor", "--data", str(photos), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "Teacher" not in out
    assert "Left out: teacher: no --teacher given; student: no --student given." in out
    found = examined(capsys, "--data", str(photos), *MODELS[2:])
    assert found["teacher"] is None
    assert found["student"]["parameter_share"] is None
    assert found["forecast"] is None
    assert any("they need --teacher and --student" in line for line in found["left_out"])


def test_stored_rows_are_forecast_as_they_would_be_trained_with(photos, capsys, monkeypatch):
    """A student of 16 pixels beside a teacher of 48 reads a ninth of the pixels once rows are stored."""
    cut: dict[str, set[int]] = {}
    training = doctor.Bench.training

    def noted(bench, step, view, **how):
        cut.setdefault(type(how["prepare"].__self__).__name__, set()).add(view.size)
        return training(bench, step, view, **how)

    monkeypatch.setattr(doctor.Bench, "training", noted)
    sizes = ["--student-size", "16", "--teacher-size", "48"]
    assert main(["doctor", "--data", str(photos), *MODELS, *QUICK[:-4], *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert cut == {"AtHand": {16}, "LiveTeacher": {48}}
    assert found["speed"]["input_size"] == 48
    for part in ("loader", "loader_stored", "loader_embed"):
        assert found["speed"][part]["images_per_second"] > 0, part
    # each image is cut for the evaluation view and four random ones
    assert found["speed"]["loader_embed"]["images_per_second"] < found["speed"]["loader"]["images_per_second"]


@pytest.mark.parametrize("usable", [0, 1])
def test_a_gallery_that_cannot_be_used_is_left_out_and_the_rest_is_told(tmp_path, capsys, usable):
    """Of a folder that is mostly broken one wants to hear just that, not the end of a statistic."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(12):
        scene(number).save(folder / f"{number:02d}.jpg")
    training, held_out = set_aside(open_splits(str(folder)).train, at_most=1000)
    gallery = hold_out(training, count=3)[1]
    for id in gallery.ids[usable:]:
        (folder / id).write_bytes(b"no picture")
    found = examined(capsys, "--data", str(folder), *MODELS, "--gallery", "3")
    teacher = found["teacher"]
    assert teacher["width"] == 128
    assert teacher["parameters"] > 0
    assert teacher["cosine"] is teacher["temperature"] is teacher["bank"] is teacher["gallery"] is None
    assert any(line.startswith("the teacher's space: ") for line in found["left_out"])
    assert found["speed"]["step_live"]["images_per_second"] > 0
    assert found["forecast"]["live"]["hours"] > 0
    assert main(["doctor", "--data", str(folder), *MODELS, *QUICK, "--gallery", "3"]) == 0
    assert "None" not in capsys.readouterr().out
    assert len(held_out) == 1


def test_a_teacher_whose_rows_are_not_numbers_is_a_finding(photos, capsys, monkeypatch):
    """A training would end there; what else was found is still true."""
    opened = doctor.open_teacher

    def damaged(*words, **how):
        teacher = opened(*words, **how)
        for weight in teacher.encoder.parameters():
            weight.fill_(float("nan"))
        teacher.swift = torch.nn.Sequential(teacher.swift, torch.nn.Threshold(math.inf, math.nan))
        return teacher

    monkeypatch.setattr(doctor, "open_teacher", damaged)
    found = examined(capsys, "--data", str(photos), *MODELS)
    assert any(line.startswith("the teacher's space: ") for line in found["left_out"])
    assert any(line.startswith("the rest of the speeds: ") for line in found["left_out"])
    assert found["speed"]["step_live"] is None
    assert found["data"]["looked_at"] == 45
    assert found["speed"]["step_stored"]["images_per_second"] > 0


def test_a_table_is_a_teacher_without_speed_of_its_own(photos, capsys):
    """Its rows cost nothing any more: a forecast that embeds them again would talk someone out of it."""
    embed = ["embed", "--encoder", MODELS[1], "--data", str(photos), "--out", "table", "--size", "32", "--workers", "0"]
    assert main(embed) == 0
    capsys.readouterr()
    words = ["doctor", "--data", str(photos), "--teacher", "table", *MODELS[2:], *QUICK[:-2], "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["teacher"]["stored"]
    assert found["speed"]["teacher"] is found["speed"]["step_live"] is None
    assert found["speed"]["step_stored"]["images_per_second"] > 0
    assert found["forecast"]["stored"]["embed_hours"] == 0
    assert found["forecast"]["live"] is found["forecast"]["table_bytes"] is None


def test_every_objective_can_be_forecast_and_none_clusters_for_it(photos, capsys, monkeypatch):
    """One without a bank or a temperature must not end in an error after a minute of looking; of a million images the
    clusters that `cc` finds before its first step would be that minute's end, and those of noise nobody's gain."""
    monkeypatch.setattr(cc, "k_means", lambda *_, **__: pytest.fail("an hour, of a million images"))
    for name in ("regression", "compress_1q", "cc"):
        found = examined(capsys, "--data", str(photos), *MODELS, "--objective", name)
        assert found["speed"]["step_live"]["images_per_second"] > 0, name
        assert (
            (found["teacher"]["bank"] is None) == (found["forecast"]["memory"]["bank"] == 0) == (name != "compress_1q")
        )
        first = [told for told in found["left_out"] if told.startswith("hours before the first step: cc looks at")]
        assert bool(first) == (name == "cc"), "the forecast is of steps alone"


@pytest.mark.parametrize("centre", ["none", "mean"])
def test_rows_are_looked_at_as_the_training_compares_them(photos, capsys, tmp_path, centre):
    """Of a cone of rows doctor would tell the temperature and the cosines of the cone, and the training, which takes
    the mean away first, would have other ones."""
    images = open_splits(str(photos)).train
    _, watched = trained_and_watched(images, held_out=1000, gallery=5000)
    random = np.random.default_rng(3)
    rows = {id: 2 + random.standard_normal(7) for id in images.ids}
    rows = {id: row / np.linalg.norm(row) for id, row in rows.items()}
    np.save(tmp_path / "rows.npy", np.stack(list(rows.values())).astype(np.float32))
    (tmp_path / "ids.txt").write_text("".join(f"{id}\n" for id in rows))
    given = ["--teacher", "rows.npy", "--ids", "ids.txt", "--objective.centre", centre, "--objective.perplexity", "0.3"]
    assert main(["doctor", "--data", str(photos), *given, *QUICK[:-2], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["teacher"]

    queries, others = (np.stack([rows[id] for id in part.ids]) for part in (watched.test, watched.train))
    if centre == "mean":
        mean = others.mean(axis=0)
        queries, others = (
            (side - mean) / np.linalg.norm(side - mean, axis=1, keepdims=True) for side in (queries, others)
        )
    pairs = (others @ others.T)[np.triu_indices(len(others), 1)]
    assert found["cosine"]["mean"] == pytest.approx(pairs.mean(), abs=1e-5)
    expected = calibrate(torch.from_numpy(queries), torch.from_numpy(others), share=0.3)
    assert found["temperature"]["suggested"] == pytest.approx(expected.temperature, rel=1e-3)
    assert found["centred"] == (centre == "mean")
    assert (found["cosine"]["mean"] > 0.5) == (centre == "none"), "or both would be the same"


@pytest.mark.parametrize("name", [name for name in objectives.names() if name != "tokens"])
def test_the_memory_of_anchors_and_of_what_learns_is_what_a_training_keeps(name):
    """Half of the bank that was forecast for 1q was never kept, and a smaller one advised for the room it did not take;
    of a wide teacher the heads are larger than the student."""
    given = [{}, {"bank_dtype": "int8", "bank_size": 5}, {"anchors": "stored", "bank_size": 5}, {"clusters": 7}]
    student = torch.nn.Linear(3, 4)
    module, teacher = objectives.find(name), SimpleNamespace(width=9)
    for options in given:
        if not options.keys() <= {field.name for field in dataclasses.fields(module.Config)}:
            continue
        config = doctor.Config(data="digits", objective=module.Config(**options))
        device = torch.device("cpu")
        student.width = 4
        small, ends = doctor._objective(config, teacher, student, device, images=2)
        case = SimpleNamespace(config=config, objective=small, projector=ends, training=range(11))
        forecast = doctor._memory(case, student, teacher)
        whole, _ = doctor._objective(config, teacher, student, device, images=11)
        kept = 0
        for leaf in leaves(whole).values():
            if hasattr(leaf, "bank"):
                leaf.bank.fill_randomly(torch.Generator())
                sides = [leaf.bank.anchors(side) for side in leaf.bank.widths]
                tensors = [part for side in sides for part in (side if isinstance(side, Int8Rows) else [side])]
                kept += sum(tensor.nbytes for tensor in [*tensors, leaf.bank.index])
        assert forecast["bank"] == kept, options
        copied = sum(weight.nbytes for module in (student, ends.build()) for weight in module.parameters())
        head = sum(weight.nbytes for weight in Weighted([whole], [1.0], [(4, 9)]).trained.parameters())
        # weight, gradient and sgd's momentum; and the slow copy, which has no head
        assert forecast["weights"] == 3 * (copied + head) + (0 if whole.momentum is None else copied), options


def test_a_student_that_cannot_be_trained_here_is_a_finding(photos, capsys):
    """It would write outside of its memory; a look says so and goes on."""
    student = ["--student", "compress/resnet10_small_w4_s2", "--accelerator", "cpu"]
    found = examined(capsys, "--data", str(photos), *MODELS[:2], *student)
    assert "at least 8 channels" in found["student"]["unsafe"]
    assert found["speed"]["step_alone"] is None
    assert any("another student" in one["do"] for one in found["advice"])


def test_images_none_of_which_can_be_used_are_a_finding(tmp_path, capsys):
    """Someone who looks at such a folder wants to be told what is wrong with it."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(b"no picture")
    found = examined(capsys, "--data", str(folder), *MODELS)
    assert found["data"]["unusable"][0]["count"] == 5
    assert found["teacher"] is found["speed"] is None
    assert "none can be used" in found["left_out"][0]
    assert main(["doctor", "--data", str(folder), *QUICK]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seconds", "0"], "--seconds expected more than 0, got 0"),
        (["--images", "-1"], "--images expected 0"),
        (["--gallery", "1"], "--gallery expected at least 2"),
        (["--batch-size", "1"], "--batch-size expected at least 2"),
        (["--views", "-1"], "--views expected 0 or more"),
        (["--teacher", "nowhere"], "expected"),
        (["--ids", "ids.txt"], "--ids"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(photos, words, told, capsys):
    """A minute of looking first, then a typing error, is a minute lost."""
    assert main(["doctor", "--data", str(photos), *words]) == 2
    out = capsys.readouterr()
    assert told in out.err
    assert out.out == ""


def test_too_few_images_to_train_on_are_refused():
    """As `distill` does: there would be nothing to compare."""
    folder = Path("few")
    folder.mkdir()
    for number in range(3):
        scene(number).save(folder / f"{number}.png")
    with pytest.raises(Refusal, match="expected at least 4 images to train on"):
        doctor.run(doctor.Config(data="few", teacher="compress/resnet10_small_w8@random"))
    assert doctor.run(doctor.Config(data="few", seconds=0.1, workers=0)) is None
