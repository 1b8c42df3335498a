"""Models on other data sets than their own: `evaluate --on`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress_ssl import datasets, embed, evaluate, report
from compress_ssl.embed import Config as EmbedConfig
from compress_ssl.encoder import open_encoder, save_encoder
from compress_ssl.evaluations import linear_probe, nearest_neighbour
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import EvaluationView


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """runs/teacher and runs/student: encoders with random weights that the test can open again."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(5)
    for name, spec in (("teacher", "compress/resnet10_small_w16@random"), ("student", "compress/resnet10_small_w8")):
        save_encoder(open_encoder(spec, weights="random", size=16), folder / name / "student")
    return folder


def squares(root: Path, *, train: int = 47, test: int = 29, labelled: bool = True) -> Path:
    """Three kinds of noisy colour, of unequal number in the test split."""
    generator = np.random.default_rng(3)
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            kind = number % 3 if split == "train" else (0, 0, 0, 1, 2)[number % 5]
            folder = root / split / f"kind{kind}" if labelled else root / split
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 216, (13, 11, 3)) + np.array([40, 0, 0])[(np.arange(3) + kind) % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return squares(tmp_path_factory.mktemp("other") / "squares")


def config(models: Path, out: Path, *on: Path | str, names: tuple[str, ...] = ("teacher", "student"), **options):
    return evaluate.Config(
        models=tuple(f"{name}={models / name}" for name in names),
        data=str(options.pop("data", "digits")),
        out=out,
        on=tuple(map(str, on)),
        metrics=("nearest_neighbour",),
        **{"device": "cpu", "workers": 0, **options},
    )


@pytest.fixture(scope="module")
def scored(models, other, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("scored") / "out"
    evaluate.run(config(models, out, other))
    return out, json.loads((out / "results.json").read_text())


def rows(models: Path, name: str, data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and labels of both splits, embedded here."""
    encoder = open_encoder(str(models / name), weights="random")
    splits = datasets.open_splits(str(data))
    how = {"view": EvaluationView(encoder.preprocessing), "device": torch.device("cpu"), "workers": 0}
    found = [embed.embed(encoder, part, **how) for part in (splits.train, splits.test)]
    return [(one.rows.astype(np.float64), one.labels) for one in found]


def test_the_other_sets_own_splits_are_scored(models, other, scored) -> None:
    """The neighbours would be looked for among the images of --data, or the splits be swapped."""
    from sklearn.metrics import balanced_accuracy_score

    transfer = scored[1]["transfer"]
    assert list(transfer) == [str(other)]
    assert transfer[str(other)]["images"] == {"train": 47, "test": 29}
    for name in ("teacher", "student"):
        (train, known), (test, truth) = rows(models, name, other)
        found = known[(test @ train.T).argmax(axis=1)]
        metrics = transfer[str(other)]["models"][name]["metrics"]
        assert metrics["nearest_neighbour"] == pytest.approx((found == truth).mean())
        assert metrics["nearest_neighbour_per_class"] == pytest.approx(balanced_accuracy_score(truth, found))
        assert metrics["nearest_neighbour"] != metrics["nearest_neighbour_per_class"], "the classes are unequal"
        assert {"linear_transfer", "linear_transfer_per_class", "nearest_neighbour_20"} <= metrics.keys()
        assert "linear_probe" not in metrics


def test_the_linear_score_picks_its_penalty_on_training_images(models, other, scored) -> None:
    """Picked on the test split, it would be too good a number, and nobody could tell."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from compress_ssl.embeddings import Embeddings
    from compress_ssl.evaluations.linear_transfer import Config, choose_weight_decay

    (train, known), (test, truth) = rows(models, "student", other)
    ids = datasets.open_splits(str(other)).train.ids
    decay = choose_weight_decay(Embeddings(train.astype(np.float32), known, tuple(ids)), Config())
    scaler = StandardScaler().fit(train)
    judge = LogisticRegression(C=1 / (len(train) * decay), tol=1e-8, max_iter=10_000).fit(
        scaler.transform(train), known
    )
    metrics = scored[1]["transfer"][str(other)]["models"]["student"]["metrics"]
    assert metrics["linear_transfer"] == pytest.approx(judge.score(scaler.transform(test), truth), abs=1.5 / 29)


def test_the_scores_on_the_data_itself_stay_as_they_were(models, scored, tmp_path) -> None:
    """Asking for more would change what was asked for before."""
    evaluate.run(config(models, tmp_path / "out"))
    alone = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "transfer" not in alone
    for name, told in alone["models"].items():
        assert told["metrics"] == scored[1]["models"][name]["metrics"]
        assert "nearest_neighbour_per_class" not in told["metrics"]


def test_which_evaluations_run_there_is_an_option(models, other, tmp_path, capfd) -> None:
    """Cluster alignment on the other data, or 5-NN alone, could not be asked for; the table would not be shown."""
    protocols = evaluate.Protocols(nearest_neighbour=nearest_neighbour.Config(neighbours=(5,)))
    evaluate.run(
        config(models, tmp_path / "out", other, on_metrics=("nearest_neighbour", "cluster_alignment"),
               protocols=protocols)
    )  # fmt: skip
    told = json.loads((tmp_path / "out" / "results.json").read_text())["transfer"][str(other)]["models"]["student"]
    assert set(told["metrics"]) == {"nearest_neighbour_5", "nearest_neighbour_5_per_class", "cluster_alignment"}
    shown = capfd.readouterr().err
    assert f"on {other}"[:40] in shown
    assert f"{100 * told['metrics']['nearest_neighbour_5_per_class']:.1f}" in shown


def test_stored_rows_are_scored_only_on_the_data_they_hold(models, other, tmp_path) -> None:
    """Hours of embedding would end in an error about ids, or the rows of other images be taken."""
    table = tmp_path / "table"
    embed.run(EmbedConfig(encoder=str(models / "teacher"), data="digits", out=table, workers=0, device="cpu"))
    asked = evaluate.Config(
        models=(f"stored={table}", str(models / "student")), data="digits", out=tmp_path / "out", on=(str(other),)
    )
    with pytest.raises(Refusal, match="scored only on the data they hold rows of: name the encoder") as caught:
        evaluate.run(asked)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_data_sets_that_cannot_be_scored_are_refused_before_anything_is_embedded(models, other, tmp_path) -> None:
    """A typing error in the last name would cost all the hours before it."""
    bare = squares(tmp_path / "bare", train=5, test=4, labelled=False)
    out = tmp_path / "out"
    for on, told in (
        ((other, other), "is named twice"),
        (("digits",), "is --data already"),
        ((bare,), "got none with a label in"),
        ((other, "nowhere/at/all"), "no such file or folder"),
    ):
        with pytest.raises(Refusal, match=told):
            evaluate.run(config(models, out, *on))
    paper = evaluate.Protocols(linear_probe=linear_probe.Config(protocol="paper"))
    with pytest.raises(Refusal, match="name linear_transfer instead"):
        evaluate.run(config(models, out, other, on_metrics=("linear_probe",), protocols=paper))
    assert not out.exists()


def test_evaluations_for_other_data_without_any_are_refused(models, tmp_path) -> None:
    """Cluster alignment on the other data was asked for, and nobody would say that it was not done."""
    told = (
        "--on-metrics expected --on OTHER_DATA, got cluster_alignment without: name the data there, or write --metrics"
    )
    with pytest.raises(Refusal, match=told):
        evaluate.run(config(models, tmp_path / "out", on_metrics=("cluster_alignment",)))
    assert not (tmp_path / "out").exists()


def test_the_page_shows_the_other_data(other, scored) -> None:
    """The numbers would be in a file that nobody opens."""
    page = report.run(report.Config(runs=(str(scored[0]),), out=scored[0] / "page.html")).read_text()
    section = page[page.index('id="transfer"') :].partition("</section>")[0]
    assert "On other data" in section
    assert f"Scores on {other}" in section
    assert "29 test images, 47 training images" in section
    for told in scored[1]["transfer"][str(other)]["models"].values():
        for value in told["metrics"].values():
            assert f'title="{value:.6g}"' in section
    for heading in ("1-NN", "1-NN, by class", "Linear transfer", "Linear transfer, by class"):
        assert f">{heading}</a>" in section
    assert "cluster alignment" not in section.lower(), "what is not usual there is not missing either"
    assert page.count("On other data") == 2, "the heading and the link to it"
