"""Several models on the same images: one table, the teacher first."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from compress_ssl import datasets, distill, embed, evaluate, evaluations, report
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import multiply_adds, open_encoder, parameter_count, save_encoder
from compress_ssl.evaluate import Protocols
from compress_ssl.evaluations import Embedded, few_labels, linear_probe
from compress_ssl.hardware import HardwareConfig
from compress_ssl.objectives import regression
from compress_ssl.projector import About, Shape
from compress_ssl.refusal import Refusal
from compress_ssl.student import Student, save_student
from compress_ssl.training import TrainingConfig
from compress_ssl.transforms import EvaluationView, RandomView, Sample, TrainView

TEACHER, STUDENT = "compress/resnet10_small_w16@random", "compress/resnet10_small_w8@random"
METRICS = {"nearest_neighbour", "nearest_neighbour_20", "linear_probe", "cluster_alignment", "neighbour_overlap_10"}
WITHOUT_LABELS = {*(f"neighbour_overlap_{count}" for count in (1, 5, 10, 50)), "cka", "cka_unbiased"}


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_SSL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """runs/teacher (128 numbers), runs/student (64, with a projector to 128), and 2q's runs/plain (64)."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(5)
    save_encoder(open_encoder(TEACHER, weights="random", size=8), folder / "teacher" / "student")
    student = open_encoder(STUDENT, weights="random", size=8)
    into = About(Shape((64, 128)), "teacher")
    save_student(Student(student, into.shape.build()), folder / "student" / "student", [into])
    save_student(Student(student), folder / "plain" / "student")
    return folder


@pytest.fixture(scope="module")
def scored(models, tmp_path_factory) -> tuple[Path, dict]:
    """results.json of teacher and both students on digits."""
    out = tmp_path_factory.mktemp("scored") / "results"
    chosen = (f"teacher={models / 'teacher'}", f"student_1q={models / 'student'}", str(models / "plain"))
    evaluate.run(config(chosen, "digits", out))
    return out, json.loads((out / "results.json").read_text())


def config(models, data, out, **options) -> evaluate.Config:
    return evaluate.Config(models=tuple(map(str, models)), data=str(data), out=out, device="cpu",
                           **{"workers": 0, **options})  # fmt: skip


def run(models, data, out, **options) -> dict:
    evaluate.run(config(models, data, out, **options))
    return json.loads((out / "results.json").read_text())


def photos(folder: Path, count: int, *, labelled: bool = False) -> Path:
    random = np.random.default_rng(7)
    for number in range(count):
        place = folder / f"kind{number % 3}" if labelled else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (9, 11, 3)) + np.array([120, 60, 0])[(np.arange(3) + number) % 3]
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:03d}.png")
    return folder


def test_results_hold_what_readers_of_them_expect(models, scored):
    """The page, and whoever compares runs by a program, would break on a renamed key."""
    _, results = scored
    assert results["data"] == "digits"
    assert results["images"] == {"train": 1437, "test": 360}
    assert list(results["models"]) == ["teacher", "student_1q", "plain"], "the teacher first, then in the order given"
    assert {"hardware", "versions", "command"} <= results.keys()
    for name, size in (("teacher", 128), ("student_1q", 64)):
        found = results["models"][name]
        assert found["metrics"].keys() >= METRICS
        assert all(0 <= value <= 1 for value in found["metrics"].values())
        assert not any(name.startswith(("few_labels", "linear_transfer")) for name in found["metrics"])
        assert found["metrics"]["linear_probe"] <= found["metrics"]["linear_probe_5"]
        encoder = open_encoder(found["spec"], weights="random")
        assert found["spec"] == str(models / name.removesuffix("_1q"))
        assert (found["width"], found["input_size"]) == (size, 8)
        assert found["parameters"] == parameter_count(encoder)
        assert found["flops"] == multiply_adds(encoder)
        assert found["weights_bytes"] == 4 * found["parameters"]
        assert found["images_per_second"] > 0


def test_metrics_are_the_evaluations_own(models, scored):
    """The verb would mix up splits or models: train for test, the student's rows for the teacher's."""
    metrics = scored[1]["models"]["plain"]["metrics"]
    splits = datasets.open_splits("digits")

    def embedded(name):
        encoder = open_encoder(str(models / name), weights="random")
        view = EvaluationView(encoder.preprocessing)
        return [
            embed.embed(encoder, part, view=view, device=torch.device("cpu"), workers=0)
            for part in (splits.train, splits.test)
        ]

    train, test = embedded("plain")
    nearest = (test.rows.astype(np.float64) @ train.rows.T.astype(np.float64)).argmax(axis=1)
    assert metrics["nearest_neighbour"] == pytest.approx(np.mean(train.labels[nearest] == test.labels), abs=1.5 / 360)
    kept = []
    teacher_train, teacher_test = embedded("teacher")
    for mine, theirs in zip(test.rows @ train.rows.T, teacher_test.rows @ teacher_train.rows.T, strict=True):
        kept.append(len(set(np.argsort(-mine)[:10]) & set(np.argsort(-theirs)[:10])) / 10)
    assert metrics["neighbour_overlap_10"] == pytest.approx(np.mean(kept), abs=1e-3)


def test_the_teacher_keeps_all_of_its_own_neighbours(scored):
    """The students would be compared with another model than the first."""
    shares = {name: found["metrics"]["neighbour_overlap_10"] for name, found in scored[1]["models"].items()}
    assert shares["teacher"] == 1
    assert shares["student_1q"] == shares["plain"] < 1, "the projector takes no part in the student's own space"


def test_only_a_student_with_a_projector_queries_the_teachers_gallery(scored):
    """A number for 2q, whose rows have another width, could only be nonsense; a missing one needs its reason."""
    found = scored[1]["models"]
    assert "asymmetric_nearest_neighbour" in found["student_1q"]["metrics"]
    for name in ("teacher", "plain"):
        assert "asymmetric_nearest_neighbour" not in found[name]["metrics"]
        assert found[name]["missing"]["asymmetric_nearest_neighbour"]
    assert found["student_1q"]["missing"] == {}


def test_a_projector_that_no_student_has_is_refused_before_anything_is_embedded(models, tmp_path):
    """It would be left aside in silence, or refused after an hour of embedding."""
    for students, told in ((["plain"], "got teacher_2 and none: leave it out"), (["student"], "got teacher_2: ")):
        asked = [models / "teacher", *(models / name for name in students)]
        with pytest.raises(Refusal, match=f"--projector expected .*{told}"):
            run(asked, "digits", tmp_path / "out", projector="teacher_2")
        assert not (tmp_path / "out").exists()


def test_the_table_is_shown_and_the_pictures_are_written(models, tmp_path, capfd):
    """Hours of scoring would end without a number on the screen."""
    run(
        [models / "teacher", models / "plain"],
        "digits",
        tmp_path / "out",
        metrics=("nearest_neighbour", "neighbour_overlap"),
    )
    told = capfd.readouterr().err
    assert "teacher" in told
    assert "100.0" in told
    assert "1-NN" in told
    assert "kept@10" in told
    shown = json.loads((tmp_path / "out" / "pictures.json").read_text())
    assert list(shown["neighbours"]) == ["teacher", "plain"]


def test_the_terminal_shows_the_main_scores_and_counts_the_others(scored):
    """Thirty columns would be thirty broken lines; scores that nobody hears of are not looked at."""
    models = scored[1]["models"]
    for asked in ((), ("neighbour_overlap",)):
        told = shown_on(80, models, asked=asked)
        assert max(map(len, told.splitlines())) <= 80
        assert all(heading in told for heading in ("1-NN", "20-NN", "linear", "CA", "kept@10", "asym.", "params"))
        assert "shot" not in told
        hidden = [name for name in models["teacher"]["metrics"] if name not in METRICS and "_interval" not in name]
        assert f"{len(hidden)} more scores of each model are in results.json" in " ".join(told.split())


def test_scores_that_were_asked_for_are_shown_with_their_spread():
    """Whoever asks for few labels would get a table without a number, or a mean without its worth."""
    metrics = {"few_labels_1": 0.5, "few_labels_1_std": 0.0123, "nearest_neighbour": 0.75, "mine": 0.25}
    models = {"teacher": {"metrics": metrics, "missing": {}}}
    told = shown_on(80, models, asked=("few_labels", "my_package.mine"))
    assert all(words in told for words in ("1 % labels", "50.0 ± 1.2", "75.0", "mine", "25.0"))
    assert "results.json" not in told
    assert "% labels" not in shown_on(80, models)


def test_many_scores_stand_one_below_the_other():
    """Thirty columns squeezed into a terminal are thirty empty columns, and nine of long names nine cut ones."""
    metrics = {f"n_shot_class_mean_{count}": count / 100 for count in range(1, 31)}
    models = {name: {"metrics": metrics, "missing": {}} for name in ("teacher", "student")}
    lines = shown_on(80, models, asked=("n_shot",)).splitlines()
    for count in range(1, 31):
        assert any(f"{count}-shot mean " in line and line.count(f" {count}.0 ") == 2 for line in lines), count
    assert any("teacher" in line and "student" in line for line in lines)
    main = dict.fromkeys((*evaluate.MAIN, "cka"), 1.0)
    costs = {"parameters": 1_230_000, "flops": 15_900_000}
    told = shown_on(80, {name: {"metrics": main, "missing": {}} | costs for name in ("teacher_of_kind_3", "student")},
                    asked=("cka",))  # fmt: skip
    assert "…" not in told
    assert told.count("100.0") == 14
    names = ("teacher", "student_1q", "student_2q", "student_alone", "student_random")
    told = shown_on(80, {name: {"metrics": main, "missing": {}} | costs for name in names})
    assert "…" not in told, "five models of the demo"
    assert told.count("100.0") == 5 * len(evaluate.MAIN)


def shown_on(width: int, models: dict, **options) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(evaluate.result_table(models, models, **options))
    return console.export_text()


@pytest.mark.parametrize("unlabelled", [0, 2])
def test_on_how_many_images_the_scores_rest_is_told_once(unlabelled, models, tmp_path, capfd):
    """Half a point between two students would be believed where one test image weighs twenty."""
    data = photos(tmp_path / "photos", 60, labelled=True)
    other = photos(tmp_path / "other", 40, labelled=True)
    for folder in (data, other):
        for number in range(unlabelled):
            (folder / f"kind0/{3 * number:03d}.png").rename(folder / f"stray{number}.png")
    evaluate.run(config([models / "plain"], data, tmp_path / "out", held_out=5, metrics=("nearest_neighbour",),
                        on=(str(other),), on_metrics=("nearest_neighbour",)))  # fmt: skip
    shown = " ".join(re.sub(r"[^\w,;]+", " ", capfd.readouterr().err).split())
    assert shown.count("test images") == 2, "once for each table"
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    for images in (told["images"], told["transfer"][str(other)]["images"]):
        known = f"{images['test']} test images, {images['train']} training images as gallery and to fit on"
        assert known in shown
        if unlabelled:
            assert images["test_labelled"] + images["train_labelled"] == images["test"] + images["train"] - unlabelled
            assert f"{known}; with a label {images['test_labelled']} and {images['train_labelled']}" in shown
        else:
            assert "with a label" not in shown


def test_what_takes_minutes_is_done_where_it_is_named(models, tmp_path):
    """A first look at a folder would take as long as the whole proof; what is on request could not be had."""
    assert "few_labels" in evaluations.names()
    assert not {"few_labels", "linear_transfer"}.intersection(evaluations.usual())
    assert set(evaluations.usual()) > {"linear_probe", "n_shot", "retrieval", "cka"}
    chosen = Protocols(few_labels=few_labels.Config(shares=(0.02,), repeats=2))
    found = run([models / "plain"], "digits", tmp_path / "out", metrics=("few_labels",), protocols=chosen)
    found = found["models"]["plain"]
    assert found["metrics"].keys() == {f"few_labels_2{top}{std}" for top in ("", "_top_5") for std in ("", "_std")}
    assert 0.2 < found["metrics"]["few_labels_2"] < found["metrics"]["few_labels_2_top_5"] <= 1


PROTOCOL = "--protocols.linear-probe"
IDLE = {
    f"{PROTOCOL}.epochs expected {PROTOCOL}.protocol paper, got 7 with stored: leave it out": {
        "linear_probe": linear_probe.Config(epochs=7)
    },
    f"{PROTOCOL}.to-the-end expected {PROTOCOL}.protocol stored, got 7 with paper: leave it out": {
        "linear_probe": linear_probe.Config(protocol="paper", to_the_end=7)
    },
    "--protocols.few-labels.repeats expected few_labels among --metrics, got 7 without it: name few_labels there": {
        "few_labels": few_labels.Config(repeats=7)
    },
}


@pytest.mark.parametrize("told", IDLE)
def test_options_of_what_is_not_done_are_refused(told, models, tmp_path):
    """Scores of five draws would be read as those of the seven that were asked for."""
    with pytest.raises(Refusal, match=re.escape(told)):
        run([models / "plain"], "digits", tmp_path / "out", protocols=Protocols(**IDLE[told]))
    assert not (tmp_path / "out").exists()


def test_classes_that_are_confused_are_kept_by_name(scored):
    """The page could only say that class 3 is taken for class 8 of who knows which folder."""
    tables = scored[1]["models"]["plain"]["tables"]
    assert tables.keys() == {"confusion_classes", "confusion_clusters"}
    names = list(datasets.open_splits("digits").train.classes)
    for table in tables.values():
        assert table["columns"] == names
        assert np.shape(table["counts"]) == (10, 10)
        assert np.sum(table["counts"]) == 360
    right = np.trace(tables["confusion_classes"]["counts"]) / 360
    assert right == pytest.approx(scored[1]["models"]["plain"]["metrics"]["nearest_neighbour"])


def test_large_tables_are_kept_where_they_are_named():
    """results.json of a thousand classes would be 20 MB a model for whoever only wants the scores."""
    rows = np.eye(21, dtype=np.float32)
    part = Embeddings(rows=rows, labels=np.arange(21), ids=tuple(map(str, range(21))))
    embedded = Embedded(train=part, test=replace(part, ids=tuple(f"t{number}" for number in range(21))))
    chosen = {name: evaluations.find(name) for name in ("nearest_neighbour", "confusion")}
    assert evaluate.counted(embedded, chosen, Protocols()) == {}
    named = evaluate.counted(embedded, chosen, Protocols(), whole=("confusion",))["tables"]
    assert named["confusion_classes"]["counts"] == np.eye(21).tolist()
    unlabelled = replace(embedded, test=replace(part, labels=np.full(21, -1)))
    assert evaluate.counted(unlabelled, chosen, Protocols(), whole=("confusion",)) == {}


def test_chosen_metrics_are_the_only_ones(models, tmp_path):
    """Whoever wants one number of a million images would wait for all of them."""
    found = run([models / "plain"], "digits", tmp_path / "out", metrics=("nearest_neighbour",))["models"]["plain"]
    assert found["metrics"].keys() == {"nearest_neighbour", "nearest_neighbour_20"}
    assert found["missing"] == {}


def test_an_unknown_metric_is_refused_before_anything_is_done(models, tmp_path):
    """After an hour of embedding would be too late."""
    with pytest.raises(Refusal, match="got 'cluster_alignmnt': did you mean 'cluster_alignment'"):
        run([models / "plain"], "digits", tmp_path / "out", metrics=("nearest_neighbour", "cluster_alignmnt"))
    assert not (tmp_path / "out").exists()


def test_an_evaluation_of_ones_own_takes_part(models, tmp_path, monkeypatch):
    """A metric outside the package would need a change inside it."""
    (tmp_path / "my_package_for_tests").mkdir()
    (tmp_path / "my_package_for_tests" / "__init__.py").write_text("")
    (tmp_path / "my_package_for_tests" / "rows.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n    scale: float = 0.5\n"
        "def unfit(embedded): return None\n"
        "def evaluate(embedded, config): return {'my_share': config.scale * len(embedded.test.ids) / 360}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = run([models / "plain"], "digits", tmp_path / "out", metrics=("my_package_for_tests.rows",))
    assert found["models"]["plain"]["metrics"] == {"my_share": 0.5}


def test_images_without_labels_are_scored_by_neighbours_alone(models, tmp_path):
    """A folder of pictures has no labels: everything else would fail, or count -1 as a class."""
    data = photos(tmp_path / "photos", 60)
    results = run([models / "teacher", models / "plain"], data, tmp_path / "out")
    assert results["images"] == {"train": 54, "test": 6}, "a tenth becomes the queries"
    for found in results["models"].values():
        assert found["metrics"].keys() == WITHOUT_LABELS
        assert found["missing"].keys() == set(evaluations.usual()) - {"neighbour_overlap", "cka"}
        assert "labels" in found["missing"]["linear_probe"]


def test_the_queries_are_those_that_distill_held_out(tmp_path):
    """Queries that a student was trained on would flatter it, and only on sets of more than ten thousand images."""
    data = str(photos(tmp_path / "photos", 60))
    config = distill.Config(teacher="t", data=data, out=tmp_path / "run", held_out=4)
    _, trained_on, watched = distill._split(config)
    splits = evaluate.open_data(data, 4, unusual="skip")
    assert list(splits.test.ids) == list(watched.test.ids)
    assert list(splits.train.ids) == list(trained_on.ids)


def test_the_number_held_out_can_be_chosen_and_they_are_always_the_same(models, tmp_path):
    """Two students scored on different queries cannot be compared."""
    data = photos(tmp_path / "photos", 60, labelled=True)
    first = run([models / "plain"], data, tmp_path / "a", held_out=5)
    second = run([models / "plain"], data, tmp_path / "b", held_out=5)
    assert first["images"] == {"train": 55, "test": 5}
    assert first["models"]["plain"]["metrics"] == second["models"]["plain"]["metrics"]
    with pytest.raises(Refusal, match=r"--held-out expected at least 1, got 0"):
        run([models / "plain"], data, tmp_path / "c", held_out=0)


@pytest.mark.parametrize("count", [4, 5, 11])
def test_a_handful_of_images_is_enough(models, tmp_path, count):
    """Fewer images than neighbours, clusters or queries to show would end in an index error."""
    results = run([models / "teacher", models / "plain"], photos(tmp_path / "photos", count), tmp_path / "out")
    assert results["models"]["teacher"]["metrics"].get("neighbour_overlap_10", 1) == 1
    assert json.loads((tmp_path / "out" / "pictures.json").read_text())["queries"]


def test_stored_embeddings_are_scored_like_the_encoder(models, tmp_path):
    """A teacher that only exists as a table could not be compared with."""
    spec = str(models / "teacher")
    embed.run(
        embed.Config(encoder=spec, data="digits", out=tmp_path / "table", device="cpu", workers=0, dtype="float32")
    )
    chosen = ("nearest_neighbour", "neighbour_overlap")
    results = run([f"stored={tmp_path / 'table'}", f"live={spec}"], "digits", tmp_path / "out", metrics=chosen)
    stored, live = results["models"]["stored"], results["models"]["live"]
    assert stored["metrics"] == pytest.approx(live["metrics"], abs=1 / 360)
    assert live["metrics"]["neighbour_overlap_10"] > 0.999
    assert stored["width"] == 128
    assert "parameters" not in stored, "nobody knows what made it"


def test_a_table_serves_images_that_were_held_out_of_one_split(models, tmp_path):
    """A table of a folder without test split has all its rows in train: the queries would not be found."""
    data = photos(tmp_path / "photos", 40)
    spec = str(models / "teacher")
    embed.run(embed.Config(encoder=spec, data=str(data), out=tmp_path / "table", device="cpu", workers=0))
    results = run([spec, f"stored={tmp_path / 'table'}"], data, tmp_path / "out")
    assert results["models"]["stored"]["metrics"]["neighbour_overlap_10"] > 0.95


def test_options_that_a_table_was_not_made_with_are_refused(models, tmp_path, monkeypatch):
    """--size would be ignored for one of the models compared, --unusual would leave images out without a word."""
    data, table = photos(tmp_path / "photos", 30), tmp_path / "table"
    embed.run(embed.Config(encoder=str(models / "plain"), data=str(data), out=table, device="cpu", workers=0))
    monkeypatch.setattr(evaluate, "embed", lambda *_, **__: pytest.fail("embedded"))
    told = r"--size expected the size that the stored rows of .*table were made with, got 16, where they were made at 8"
    with pytest.raises(Refusal, match=told):
        run([table, models / "plain"], data, tmp_path / "out", size=16)
    with pytest.raises(Refusal, match=r"--unusual expected skip, .*table were made, got convert"):
        run([table], data, tmp_path / "out", unusual="convert")
    vectors, ids = vectors_of(models / "plain", data, tmp_path / "service")
    with pytest.raises(Refusal, match=r"--size expected an encoder among the models, got 8"):
        run([vectors], data, tmp_path / "out", ids=ids, size=8)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    run([table, vectors, models / "plain"], data, tmp_path / "out", ids=ids, size=8)


def test_strict_refuses_an_image_that_a_table_has_no_row_of(models, tmp_path):
    """A benchmark with an image missing is another benchmark."""
    data, table = photos(tmp_path / "photos", 30), tmp_path / "table"
    (data / "empty.png").write_bytes(b"")
    embed.run(embed.Config(encoder=str(models / "plain"), data=str(data), out=table, device="cpu", workers=0))
    with pytest.raises(Refusal, match=r"--strict .*, got 1 that could not be when .*table was made \(empty\.png, …\)"):
        run([table], data, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()
    assert sum(run([table], data, tmp_path / "out")["images"].values()) == 30


def test_a_table_of_other_images_is_refused(models, tmp_path):
    """Rows by position instead of by id would be compared with other images."""
    data = photos(tmp_path / "photos", 30)
    embed.run(
        embed.Config(encoder=str(models / "plain"), data=str(data), out=tmp_path / "table", device="cpu", workers=0)
    )
    with pytest.raises(Refusal, match="expected a stored embedding for every image of digits:train"):
        run([tmp_path / "table"], "digits", tmp_path / "out")


def vectors_of(spec, data, folder) -> tuple[Path, Path]:
    """What a service would return for the images of both splits: any order, rows of any length."""
    encoder, rows, ids = open_encoder(str(spec), weights="pretrained").eval(), [], []
    splits = datasets.open_splits(str(data))
    for images in (splits.train, splits.test):
        if images is not None:
            view = EvaluationView(encoder.preprocessing)
            found = embed.embed(encoder, images, view=view, device=torch.device("cpu"), workers=0)
            rows.append(found.rows)
            ids += found.ids
    random = np.random.default_rng(4)
    order = random.permutation(len(ids))
    folder.mkdir(exist_ok=True)
    np.save(folder / "vectors.npy", np.concatenate(rows)[order] * random.uniform(0.1, 9, (len(ids), 1)))
    (folder / "ids.txt").write_text("".join(f"{ids[place]}\n" for place in order))
    return folder / "vectors.npy", folder / "ids.txt"


def test_a_teacher_known_by_its_vectors_is_scored_like_the_encoder_that_made_them(models, scored, tmp_path):
    """Whoever has no more than the answers of a service could not tell how much his student keeps of it."""
    vectors, ids = vectors_of(models / "teacher", "digits", tmp_path / "service")
    chosen = [f"teacher={vectors}", f"student_1q={models / 'student'}", models / "plain"]
    found, live = run(chosen, "digits", tmp_path / "out", ids=ids)["models"], scored[1]["models"]
    for name in ("teacher", "student_1q", "plain"):
        assert found[name]["metrics"] == pytest.approx(live[name]["metrics"], abs=2 / 360), name
        assert found[name]["missing"].keys() == live[name]["missing"].keys()
    assert "asymmetric_nearest_neighbour" in found["student_1q"]["metrics"], "the vectors are the gallery"
    assert found["teacher"].keys() == {"metrics", "missing", "spec", "tables", "width"}, "nobody knows what made them"
    assert (found["teacher"]["spec"], found["teacher"]["width"]) == (str(vectors), 128)


def test_vectors_of_another_width_are_compared_as_far_as_it_goes(models, tmp_path):
    """One evaluation that does not fit would cost the others."""
    vectors, ids = vectors_of(models / "plain", "digits", tmp_path / "service")
    found = run([vectors, models / "student"], "digits", tmp_path / "out", ids=ids)["models"]["student"]
    assert found["metrics"].keys() >= METRICS
    assert "128 and 64" in found["missing"]["asymmetric_nearest_neighbour"]


def test_unlabelled_pictures_with_vectors_are_scored_and_reported(models, tmp_path):
    """The page is what a person looks at: it must not need a model's parameters or labels."""
    data = photos(tmp_path / "photos", 60)
    vectors, ids = vectors_of(models / "teacher", data, tmp_path / "service")
    results = run([f"teacher={vectors}", f"student={models / 'plain'}"], data, tmp_path / "out", ids=ids)
    assert results["models"]["teacher"]["metrics"] == pytest.approx(dict.fromkeys(WITHOUT_LABELS, 1))
    assert results["models"]["student"]["metrics"].keys() == WITHOUT_LABELS
    page = report.run(report.Config(runs=(str(tmp_path / "out"),)))
    assert "teacher" in Path(page).read_text()


def test_tables_and_files_of_vectors_of_several_kinds_stand_side_by_side(models, tmp_path):
    """Ids of one would be taken for those of another."""
    data = photos(tmp_path / "photos", 40)
    vectors, ids = vectors_of(models / "teacher", data, tmp_path / "service")
    rows = np.load(vectors)
    columns = {"path": ids.read_text().splitlines(), "embedding": list(rows)}
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")
    embed.run(embed.Config(encoder=str(models / "teacher"), data=str(data), out=tmp_path / "table", device="cpu",
                           workers=0))  # fmt: skip
    results = run([tmp_path / "table", vectors, tmp_path / "vectors.parquet"], data, tmp_path / "out", ids=ids)
    assert list(results["models"]) == ["table", "vectors.npy", "vectors.parquet"]
    for found in results["models"].values():
        assert found["metrics"]["neighbour_overlap_10"] > 0.95


def test_pictures_that_only_others_can_read_are_left_out_and_counted(models, tmp_path, capfd):
    """ImageNet has CMYK pictures: with vectors of a service no student could be scored on it."""
    data = photos(tmp_path / "photos", 40)
    service = tmp_path / "service"
    vectors, ids = vectors_of(models / "teacher", data, service)
    Image.new("CMYK", (9, 11)).save(data / "print.jpg")
    np.save(vectors, np.concatenate([np.load(vectors), np.ones((1, 128))]))
    ids.write_text(ids.read_text() + "print.jpg\n")
    results = run([vectors, models / "plain"], data, tmp_path / "out", ids=ids)
    assert sum(results["images"].values()) == 40
    assert "one of the models has no row of them: 1" in " ".join(capfd.readouterr().err.split())


def test_a_training_against_vectors_is_scored_on_the_pictures_that_can_be_read(models, tmp_path):
    """It would end at its first score, for a CMYK picture among those held out."""
    data = photos(tmp_path / "photos", 40)
    vectors, ids = vectors_of(models / "teacher", data, tmp_path / "service")
    for number in range(20):
        Image.new("CMYK", (9, 11)).save(data / f"print{number}.jpg")
    np.save(vectors, np.concatenate([np.load(vectors), np.random.default_rng(1).normal(size=(20, 128))]))
    ids.write_text(ids.read_text() + "".join(f"print{number}.jpg\n" for number in range(20)))
    training = TrainingConfig(epochs=1, batch_size=16)
    hardware = HardwareConfig(accelerator="cpu", workers=0)
    out = distill.run(
        distill.Config(teacher=str(vectors), ids=ids, student=STUDENT, student_size=8, data=str(data),
                       out=tmp_path / "run", objective=regression.Config(), training=training, hardware=hardware)
    )  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert 0 < sum(results["images"].values()) <= 40
    assert results["models"]["teacher"]["metrics"]["neighbour_overlap_10"] == 1


def test_an_image_without_a_vector_is_refused_before_anything_is_embedded(models, tmp_path, monkeypatch):
    """After an hour of embedding the students would be too late."""
    data = photos(tmp_path / "photos", 40)
    vectors, ids = vectors_of(models / "teacher", data, tmp_path / "service")
    Image.new("RGB", (9, 11)).save(data / "new.png")
    monkeypatch.setattr(evaluate, "embed", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises(Refusal, match=r"got none for 1 of .* \(new\.png, …\) in .*vectors\.npy: add their rows"):
        run([models / "plain", vectors], data, tmp_path / "out", ids=ids)
    assert not (tmp_path / "out").exists()


def test_one_row_is_not_that_of_two_images(tmp_path, models, monkeypatch):
    """1.png of test would be scored with the row of 1.png of train."""
    data = photos(tmp_path / "photos", 40)
    vectors, ids = vectors_of(models / "teacher", data, tmp_path / "service")
    images = datasets.open_splits(str(data)).train
    monkeypatch.setattr(evaluate, "open_data", lambda *_, **__: datasets.Splits(images, images))
    with pytest.raises(Refusal, match=r"tell the images of .*, got 000\.png in both, and one row for it in"):
        run([vectors], data, tmp_path / "out", ids=ids)


def test_ids_without_an_array_that_needs_them_are_refused(models, tmp_path):
    """Given in vain they would seem to be used."""
    with pytest.raises(Refusal, match=r"--ids expected vectors in a \.npy among the models, got ids\.txt and none"):
        run([models / "plain"], "digits", tmp_path / "out", ids=Path("ids.txt"))
    vectors, _ = vectors_of(models / "plain", "digits", tmp_path / "service")
    with pytest.raises(Refusal, match=r"expected --ids with .*vectors\.npy, got none"):
        run([vectors], "digits", tmp_path / "out")


def test_the_papers_linear_probe_runs(models, tmp_path):
    """The paper's numbers could not be compared with ours under its own protocol."""
    data = photos(tmp_path / "photos", 60, labelled=True)
    protocols = Protocols(linear_probe=linear_probe.Config(protocol="paper", epochs=3, milestones=(1, 2)))
    options = {"metrics": ("linear_probe",), "protocols": protocols}
    first = run([models / "plain"], data, tmp_path / "a", **options)["models"]["plain"]["metrics"]
    assert first.keys() == {"linear_probe"}
    assert first == run([models / "plain"], data, tmp_path / "b", **options)["models"]["plain"]["metrics"]


def test_every_epoch_of_the_papers_probe_sees_other_views():
    """Forty epochs over one view are not the protocol, and nothing in the number would show it."""
    images = datasets.open_splits("digits").train
    view = RandomView(TrainView(), 8)
    picture = images.read(3)
    views = [view(picture, Sample(0, epoch, 3, images.ids[3])) for epoch in range(4)]
    assert len({bytes(one.numpy().tobytes()) for one in views}) == 4
    assert views[0].shape == (3, 8, 8)
    assert torch.equal(views[1], view(picture, Sample(0, 1, 3, images.ids[3])))


def test_a_table_alone_cannot_do_the_papers_probe(models, tmp_path):
    """Random views of images need the encoder; the evaluation view would be passed off as them."""
    embed.run(embed.Config(encoder=str(models / "plain"), data="digits", out=tmp_path / "t", device="cpu", workers=0))
    protocols = Protocols(linear_probe=linear_probe.Config(protocol="paper", epochs=1))
    with pytest.raises(Refusal, match="expected"):
        run([tmp_path / "t"], "digits", tmp_path / "out", metrics=("linear_probe",), protocols=protocols)


def test_workers_change_no_number(models, scored, tmp_path):
    """Scores would depend on the machine they were computed on."""
    results = run([f"teacher={models / 'teacher'}", models / "plain"], "digits", tmp_path / "out", workers=2)
    for name in ("teacher", "plain"):
        assert results["models"][name]["metrics"] == scored[1]["models"][name]["metrics"]


def test_unusable_images_are_counted_once_and_listed(models, tmp_path, capfd):
    """Two models over one broken file would make it two, or it would be missing without a word."""
    data = photos(tmp_path / "photos", 40)
    (data / "empty.png").write_bytes(b"")
    (data / "broken.png").write_bytes(b"no picture")
    results = run([models / "teacher", models / "plain"], data, tmp_path / "out")
    assert sum(results["images"].values()) == 40
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {line["id"]: line["kind"] for line in lines} == {"empty.png": "empty", "broken.png": "broken"}
    assert len(lines) == 2
    assert "1 broken, 1 empty" in " ".join(capfd.readouterr().err.split())


def test_strict_refuses_an_unusable_image(models, tmp_path):
    """A benchmark with an image missing is another benchmark."""
    data = photos(tmp_path / "photos", 40)
    (data / "empty.png").write_bytes(b"")
    with pytest.raises(Refusal, match=r"--strict .*empty\.png"):
        run([models / "plain"], data, tmp_path / "out", strict=True)
    assert not (tmp_path / "out" / "results.json").exists()


def test_results_that_are_there_are_not_overwritten(models, scored):
    """The scores of another comparison, or of the run itself, would be gone."""
    out, _ = scored
    before = (out / "results.json").read_bytes()
    with pytest.raises(Refusal, match=r"--out expected a folder without results, got .*results\.json"):
        run([models / "plain"], "digits", out)
    assert (out / "results.json").read_bytes() == before


def test_models_of_one_name_are_told_apart(models, tmp_path):
    """Of two runs called `student` one would vanish from the table."""
    twice = [models / "plain", models / "plain" / ".." / "plain"]
    found = run(twice, "digits", tmp_path / "out", metrics=("nearest_neighbour",))["models"]
    assert list(found) == ["plain", str(twice[1])]
    with pytest.raises(Refusal, match="twice: name them apart with NAME=SPEC"):
        run([f"a={models / 'plain'}", f"a={models / 'student'}", f"a={models / 'student'}"], "digits", tmp_path / "b")


def test_the_order_of_models_decides_who_is_the_teacher(models, tmp_path):
    """Swapping teacher and student would give the same table."""
    chosen = [models / "plain", f"teacher={models / 'teacher'}"]
    found = run(chosen, "digits", tmp_path / "out", metrics=("neighbour_overlap",))["models"]
    assert list(found) == ["plain", "teacher"]
    assert found["plain"]["metrics"]["neighbour_overlap_10"] == 1
    assert found["teacher"]["metrics"]["neighbour_overlap_10"] < 1
