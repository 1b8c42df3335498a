"""The verb on pictures laid out like VOC 2007: from a command to results.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from compress_ssl import checkpoint, datasets, embed, report
from compress_ssl import voc as verb
from compress_ssl.cli import main
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.transforms import EvaluationView
from compress_ssl.voc_layout import halves, read_annotations

CLASSES = ("apple", "leaf", "sea")  # the classes of conftest's pictures
MODEL = "compress/resnet10_small_w8@random"


@pytest.fixture(scope="module")
def data(make_voc, tmp_path_factory) -> Path:
    return make_voc(tmp_path_factory.mktemp("data"), train=23, val=17, test=19)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "student_2q"
    torch.manual_seed(3)
    save_encoder(open_encoder(MODEL, weights="random", size=32), folder / "student")
    return folder


def voc(*words: object) -> int:
    return main(["voc", *map(str, words), "--device", "cpu", "--workers", "0"])


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def classified(model, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("voc") / "results"
    assert voc(model, "--data", data, "--out", out) == 0
    return out


def test_classification_writes_both_means_and_every_class(classified):
    """A mean without its classes cannot be checked, and one rule cannot be compared with papers of the other."""
    found = results(classified)
    assert found["splits"] == {"learnt_from": "trainval", "reported_on": "test"}
    assert found["images"] == {"train": 40, "test": 19}
    one = found["models"]["student_2q"]
    assert set(one["per_class"]) == {"apple", "leaf", "sea"}
    for rule in ("11", "all"):
        mean = np.mean([value[f"ap_{rule}"] for value in one["per_class"].values()])
        assert one["metrics"][f"classification_map_{rule}"] == pytest.approx(mean)
        assert 0.6 < mean <= 1, "colours are easy"
    assert one["parameters"] > 0


def test_classification_is_what_scikit_learn_makes_of_the_rows(classified, model, data):
    """The verb could mix up images and targets, train and test, or count difficult objects."""
    splits = datasets.open_splits(str(data))
    encoder = open_encoder(str(model), weights="random")
    view = EvaluationView(encoder.preprocessing)
    rows = {
        name: embed.embed(encoder, images, view=view, device=torch.device("cpu"), workers=0).rows.astype(np.float64)
        for name, images in (("learn", splits.train), ("report", splits.test))
    }
    ids = {name: [Path(id).stem for id in images.ids] for name, images in
           (("learn", splits.train), ("report", splits.test))}  # fmt: skip
    found = results(classified)["models"]["student_2q"]["per_class"]
    for name in ("apple", "leaf", "sea"):
        parts = [(rows[part], *shown(data, ids[part], name)) for part in ("learn", "report")]
        assert found[name]["ap_all"] == pytest.approx(precision(*parts, cost=found[name]["cost"]), abs=1e-9)


def shown(data: Path, ids: list[str], name: str) -> tuple[list[int], np.ndarray]:
    """Places of the images that count for a class, and whether it is in them: not those with difficult ones alone."""
    objects = read_annotations(data, ids)
    said = [{one.difficult for one in objects[id] if one.name == name} for id in ids]
    kept = [place for place, difficult in enumerate(said) if difficult != {True}]
    return kept, np.array([False in said[place] for place in kept])


def precision(learn: tuple, look: tuple, *, cost: float) -> float:
    """All-point average precision on `look` of scikit-learn's machine; both are rows, places that count, and truth."""
    (rows, kept, truth), (asked, asked_kept, there) = learn, look
    machine = LinearSVC(C=cost, dual=False, tol=1e-5, max_iter=10_000).fit(rows[kept], truth)
    ranked = there[np.argsort(-machine.decision_function(asked[asked_kept]))]
    precisions = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(np.mean([precisions[rank:].max() for rank in np.flatnonzero(ranked)]))


def test_stored_rows_score_as_the_encoder_does(classified, model, data, tmp_path):
    """A teacher that is known by its rows alone could not be compared with its students."""
    assert main(["embed", "--encoder", str(model), "--data", str(data), "--out", str(tmp_path / "table"),
                 "--dtype", "float32", "--device", "cpu", "--workers", "0"]) == 0  # fmt: skip
    assert voc(tmp_path / "table", "--data", data, "--out", tmp_path / "results") == 0
    stored, live = results(tmp_path / "results")["models"]["table"], results(classified)["models"]["student_2q"]
    assert stored["per_class"] == live["per_class"]
    assert stored["metrics"] == live["metrics"]


def test_vectors_from_elsewhere_are_scored(data, tmp_path):
    """Rows that some other program made of VOC are a model like any other."""
    splits = datasets.open_splits(str(data))
    ids = [*splits.train.ids, *splits.test.ids]
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((len(ids), 5)).astype(np.float32))
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    assert voc(tmp_path / "rows.npy", "--ids", tmp_path / "ids.txt", "--data", data, "--out", tmp_path / "out") == 0
    metrics = results(tmp_path / "out")["models"]["rows.npy"]["metrics"]
    assert metrics.keys() == {"classification_map_11", "classification_map_all"}


def test_the_table_names_every_class(model, data, tmp_path, capfd):
    """A score that has to be dug out of a file is not looked at."""
    assert voc(model, "--data", data, "--out", tmp_path / "out", "--classification.costs", "1", "10") == 0
    captured = capfd.readouterr()
    for word in ("apple", "leaf", "sea", "mean", "11 points", "all points"):
        assert word in captured.err
    assert captured.out.strip() == str(tmp_path / "out")


def test_a_page_can_be_made_of_it(classified):
    """The page of a student would not show its VOC scores."""
    page = report.run(report.Config(runs=(str(classified),)))
    assert "classification" in Path(page).read_text()


DIVIDED = [
    ({"train": 67, "val": 47}, ("train", "val")),
    ({"train": 53, "val": 41, "test": 47}, ("trainval", "test")),
]


@pytest.mark.parametrize(("splits", "names"), DIVIDED)
def test_costs_are_chosen_within_what_is_learnt_from(splits, names, make_voc, tmp_path):
    """VOC 2012 reports on val: choosing on it too would flatter every model. Of VOC 2007 it would be test."""
    data = make_voc(tmp_path, **splits)
    learn, report = (list(both) for both in (halves(data).learn, halves(data).report))
    noise = np.random.default_rng(5).standard_normal((len(learn) + len(report), 9))
    for place, objects in enumerate(read_annotations(data, [*learn, *report]).values()):
        for one in objects:
            noise[place, CLASSES.index(one.name)] += 1.5
    rows = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "ids.txt").write_text("\n".join(f"JPEGImages/{id}.jpg" for id in [*learn, *report]))
    assert voc(tmp_path / "rows.npy", "--ids", tmp_path / "ids.txt", "--data", data, "--out", tmp_path / "out") == 0
    found = results(tmp_path / "out")
    assert found["splits"] == dict(zip(("learnt_from", "reported_on"), names, strict=True))
    assert found["images"] == {"train": len(learn), "test": len(report)}
    of = dict(zip([*learn, *report], rows.astype(np.float64), strict=True))
    if "test" in splits:
        held = [id for id in learn if id.startswith("val")]
    else:  # half of them, those whose ids have the smallest sha256
        held = sorted(learn, key=lambda id: hashlib.sha256(f"JPEGImages/{id}.jpg".encode()).digest())[:33]

    def best(learnt: list[str], look: list[str]) -> dict[str, float]:
        costs = {}
        for name in CLASSES:
            parts = [(np.array([of[id] for id in ids]), *shown(data, ids, name)) for ids in (learnt, look)]
            costs[name] = max((10.0**power for power in range(-2, 4)), key=lambda cost: precision(*parts, cost=cost))
        return costs

    told = {name: one["cost"] for name, one in found["models"]["rows.npy"]["per_class"].items()}
    assert told == best([id for id in learn if id not in held], held)
    for peeked in (best([id for id in learn if id not in held], report), best(learn, report)):
        assert told != peeked, "this data could not tell a choice on the reported split from ours"


def broken_picture(data: Path) -> None:
    (data / "JPEGImages/test_003.jpg").write_bytes(b"no picture")


def no_annotation(data: Path) -> None:
    (data / "Annotations/val_002.xml").unlink()


def no_objects(data: Path) -> None:
    for file in (data / "Annotations").glob("*.xml"):
        file.write_text("<annotation/>")


# fmt: off
HARM = [
    (broken_picture, "expected every image of the splits to be usable, got JPEGImages/test_003.jpg: broken"),
    (no_annotation, "Annotations/val_002.xml, got none: restore it"),
    (no_objects, "expected objects in the annotations of"),
]
# fmt: on


@pytest.mark.parametrize(("harm", "told"), HARM)
def test_data_that_would_falsify_the_score_is_refused(harm, told, make_voc, model, tmp_path, capsys):
    """The score would be that of another test split than everybody else's."""
    data = make_voc(tmp_path, train=5, val=5, test=5)
    harm(data)
    assert voc(model, "--data", data, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_image_without_a_stored_row_is_refused(make_voc, model, tmp_path, capsys):
    """It would be left out of the test in silence, since it could not be read when the rows were made."""
    data = make_voc(tmp_path, train=5, val=5, test=5)
    broken_picture(data)
    assert main(["embed", "--encoder", str(model), "--data", str(data), "--out", str(tmp_path / "table"),
                 "--device", "cpu", "--workers", "0"]) == 0  # fmt: skip
    assert voc(tmp_path / "table", "--data", data, "--out", tmp_path / "out") == 2
    assert "got none of 1 (JPEGImages/test_003.jpg, …)" in capsys.readouterr().err


# fmt: off
UNUSABLE_OPTIONS = [
    (["--data", "digits"], "expected a folder with JPEGImages, Annotations and ImageSets/Main, got 'digits' without"),
    (["--task", "segmentation"], "--task"),
    (["--classification.costs", "0"], "--classification.costs expected numbers above 0"),
    (["--ids", "ids.txt"], "leave --ids out"),
]
# fmt: on


@pytest.mark.parametrize(("words", "told"), UNUSABLE_OPTIONS)
def test_options_that_cannot_be_used_are_told(words, told, model, data, tmp_path, capsys):
    """One sentence, before anything is embedded."""
    given = [model, "--data", data, "--out", tmp_path / "out", *words]
    if "--data" in words:
        given = [model, "--out", tmp_path / "out", *words]
    assert voc(*given) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_that_are_there_are_not_overwritten(classified, model, data, capsys):
    """Yesterday's numbers would be gone."""
    assert voc(model, "--data", data, "--out", classified) == 2
    assert "expected an empty or new folder" in capsys.readouterr().err


# ---- detection -----------------------------------------------------------------------------------------------------

SMALL = ("--task", "detection", "--detector.channels", "8", "--detector.head", "16", "--detector.proposals", "8",
         "--detector.sizes", "40", "--detector.longest", "48", "--detection.batch-size", "3", "--detection.epochs", "3",
         "--detection.optimizer.learning-rate", "0.05")  # fmt: skip


@pytest.fixture(scope="module")
def few(make_voc, tmp_path_factory) -> Path:
    return make_voc(tmp_path_factory.mktemp("few"), train=5, val=4, test=7)


@pytest.fixture(scope="module")
def detected(model, few, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("detected") / "results"
    assert voc(model, "--data", few, "--out", out, *SMALL) == 0
    return out


def steps(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_detection_learns_and_scores_every_class(detected):
    """Hours of fine-tuning would end without a number, or with one of a detector that never learnt."""
    found = results(detected)
    assert (found["task"], found["splits"]["reported_on"]) == ("detection", "test")
    one = found["models"]["student_2q"]
    assert set(one["per_class"]) | set(one["missing"]) == {"apple", "leaf", "sea"}
    assert one["metrics"].keys() == {"detection_map_11", "detection_map_all"}
    assert all(0 <= value <= 1 for value in one["metrics"].values())
    assert [place["name"] for place in one["maps"]] == ["layer3", "layer4"]
    losses = [line["loss"] for line in steps(detected)]
    assert len(losses) == 9
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_an_interrupted_detection_goes_on_as_if_nothing_had_been(detected, model, few, tmp_path, monkeypatch, capsys):
    """A night of fine-tuning would be lost to a power cut, or end with other numbers than without it."""
    save, saved = checkpoint.save, []

    def save_and_stop(*given):
        save(*given)
        saved.append(given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save_and_stop)
        assert voc(model, "--data", few, "--out", tmp_path / "out", *SMALL) == 130
    assert len(saved) == 1
    assert "--resume" in capsys.readouterr().err
    assert voc(model, "--data", few, "--out", tmp_path / "out", *SMALL, "--resume") == 0
    assert steps(tmp_path / "out") == steps(detected)
    ours, theirs = (results(out)["models"]["student_2q"] for out in (tmp_path / "out", detected))
    assert ours == theirs


# fmt: off
UNFIT = [
    (["--seed", "-1"], "--seed expected 0 or more"),
    (["--size", "64"], "--size expected --task classification, got 64 with --task detection: write --detector.sizes"),
    (["--batch-size", "2"], "got 2 with --task detection: write --detection.batch-size"),
    (["--ids", "ids.txt"], "--ids expected --task classification, got ids.txt with --task detection: leave it out"),
    (["--classification.costs", "1", "10"], "--classification.costs expected --task classification, got 1.0 10.0 with"),
    (["--task", "classification", "--resume"], "--resume expected --task detection"),
    (["--task", "classification", "--seed", "3"], "--seed expected --task detection, got 3 with --task classification"),
    (["--task", "classification", "--detector.head", "16"], "--detector.head expected --task detection, got 16 with"),
    (["--task", "classification", "--detection.epochs", "3"], "--detection.epochs expected --task detection, got 3"),
    (["--task", "classification", "--detection.optimizer.learning-rate", "1e-3"],
     "--detection.optimizer.learning-rate expected --task detection, got 0.001 with --task classification: leave it"),
]
# fmt: on


def test_stored_rows_cannot_be_fine_tuned(few, tmp_path, capsys):
    """A table of vectors would end in an error about weights."""
    np.save(tmp_path / "rows.npy", np.eye(16, 5, dtype=np.float32))
    assert voc(tmp_path / "rows.npy", "--data", few, "--out", tmp_path / "out", "--task", "detection") == 2
    assert "expected an encoder, which is fine-tuned" in capsys.readouterr().err


def test_every_option_is_read_by_a_task_or_refused_by_it():
    """A new option of one task would be heard by neither reader nor refusal in the other."""
    both = {"model", "data", "out", "task", "workers", "device"}
    names = {field.name for field in dataclasses.fields(verb.Config)}
    for task, other in (("classification", "detection"), ("detection", "classification")):
        assert set(verb.IDLE[task]) <= names
        assert not set(verb.IDLE[task]) & set(verb.IDLE[other])
    assert names == both.union(*verb.IDLE.values())


@pytest.mark.parametrize(("words", "told"), UNFIT)
def test_what_detection_cannot_use_is_told(words, told, model, few, tmp_path, capsys):
    """An option that is parsed and left aside is a wish that nobody hears."""
    given = ["--data", few, "--out", tmp_path / "out", *([] if "--task" in words else ["--task", "detection"]), *words]
    assert voc(model, *given) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_ends_the_detection(make_voc, model, tmp_path, capsys):
    """It would be missing from the score, or end a worker with a stack trace."""
    data = make_voc(tmp_path, train=3, val=3, test=4)
    broken_picture(data)
    assert voc(model, "--data", data, "--out", tmp_path / "out", *SMALL, "--detection.epochs=1") == 2
    assert "got JPEGImages/test_003.jpg: broken" in capsys.readouterr().err
