"""A linear probe on each layer, against hooks and pooling written here and scikit-learn's regression."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from compress_ssl import datasets, evaluate, layers, report
from compress_ssl.encoder import Encoder, open_encoder, save_encoder
from compress_ssl.evaluations import linear_probe, linear_transfer
from compress_ssl.layers import layers_of, pooled
from compress_ssl.refusal import Refusal

RESNET = "compress/resnet10_small_w16"


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """Three kinds of noisy colour; 53 images to train on, 31 to test."""
    root, generator = tmp_path_factory.mktemp("data") / "squares", np.random.default_rng(3)
    for split, count in (("train", 53), ("test", 31)):
        for number in range(count):
            folder = root / split / f"kind{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 241, (16, 16, 3)) + np.array([15, 0, 0])[(np.arange(3) + number) % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "student"
    torch.manual_seed(5)
    save_encoder(open_encoder(RESNET, weights="random", size=16), folder / "student")
    return folder


def config(out: Path, *models: Path | str, data: Path | str, asked: tuple[str, ...], **options) -> evaluate.Config:
    return evaluate.Config(
        models=tuple(map(str, models)), data=str(data), out=out, layers=asked, metrics=("nearest_neighbour",),
        device="cpu", workers=0, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scored(run, squares, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("scored") / "out"
    evaluate.run(config(out, run, data=squares, asked=("layer1", "layer3", "layer4")))
    return out, json.loads((out / "results.json").read_text())


def probed_by_hand(encoder: Encoder, data: Path, maps) -> dict[str, float]:
    """Accuracy by layer: maps from our own pass, cells averaged with slices, regression by scikit-learn in float64."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    splits = datasets.open_splits(str(data))
    found: dict[str, list] = {}
    for part in (splits.train, splits.test):
        images = torch.from_numpy(np.stack([part.read(place) for place in range(len(part))])).permute(0, 3, 1, 2)
        for name, values in maps(encoder, images.contiguous()).items():
            side = round((9216 / values.shape[1]) ** 0.5)
            rows = by_cells(values.double().numpy(), side).reshape(len(part), -1)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            found.setdefault(name, []).append((rows, part.labels))
    accuracies = {}
    for name, ((train, known), (test, truth)) in found.items():
        scaler = StandardScaler().fit(train)
        deviation = np.where(train.std(axis=0) > 1e-6, scaler.scale_, 1.0)
        judge = LogisticRegression(C=1 / (len(train) * 1e-4), tol=1e-6, max_iter=1000)
        judge.fit((train - scaler.mean_) / deviation, known)
        accuracies[name] = judge.score((test - scaler.mean_) / deviation, truth)
    return accuracies


def by_cells(maps: np.ndarray, side: int) -> np.ndarray:
    """(B, C, H, W) -> means over a grid of cells; cell i of n reaches from floor(i·H/n) to ceil((i+1)·H/n)."""
    rows, columns = min(side, maps.shape[2]), min(side, maps.shape[3])
    result = np.empty((*maps.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * maps.shape[2] // rows, -(-(i + 1) * maps.shape[2] // rows)
            left, right = j * maps.shape[3] // columns, -(-(j + 1) * maps.shape[3] // columns)
            result[:, :, i, j] = maps[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return result


def hooked(encoder: Encoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of the stages of a residual network."""
    found, hooks = {}, []
    for name in ("layer1", "layer3", "layer4"):
        stage = encoder.backbone.get_submodule(name)
        hooks.append(stage.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out.clone()})))
    with torch.no_grad():
        encoder(images)
    for hook in hooks:
        hook.remove()
    return found


def test_every_layer_is_scored_as_by_hand(run, squares, scored) -> None:
    """The table would show another layer, another pooling, or another probe than it says."""
    told = scored[1]["models"]["student"]["layers"]
    assert list(told) == ["layer1", "layer3", "layer4"]
    assert [one["width"] for one in told.values()] == [16 * 16 * 16, 64 * 4 * 4, 128 * 2 * 2], "maps of 16, 4, 2 pixels"
    expected = probed_by_hand(open_encoder(str(run), weights="random"), squares, hooked)
    for name, accuracy in expected.items():
        assert told[name]["linear_probe"] == pytest.approx(accuracy, abs=1.5 / 31), name


def test_the_models_own_scores_are_those_without_layers(run, squares, scored, tmp_path) -> None:
    """Looking inside would change what comes out."""
    evaluate.run(config(tmp_path / "out", run, data=squares, asked=()))
    alone = json.loads((tmp_path / "out" / "results.json").read_text())["models"]["student"]
    assert alone["metrics"] == scored[1]["models"]["student"]["metrics"]
    assert "layers" not in alone
    assert not list(scored[0].glob(".layers*")), "gigabytes would be left behind"


def test_the_probes_options_reach_every_layer(run, squares, scored, tmp_path, monkeypatch) -> None:
    """Whoever has a million images would wait for the last digit of each layer, or probe it at another penalty."""
    asked: list[dict] = []
    solve = linear_transfer.softmax_regression

    def watched(*given, **options):
        asked.append(options)
        return solve(*given, **options)

    monkeypatch.setattr(linear_transfer, "softmax_regression", watched)
    protocols = evaluate.Protocols(linear_probe=linear_probe.Config(weight_decay=0.5, to_the_end=1))
    evaluate.run(config(tmp_path / "out", run, data=squares, asked=("layer1", "layer4"), protocols=protocols))
    assert [(one["weight_decay"], one["to_the_end"]) for one in asked] == [(0.5, 1)] * 2
    hasty = json.loads((tmp_path / "out" / "results.json").read_text())["models"]["student"]["layers"]
    assert hasty != {name: scored[1]["models"]["student"]["layers"][name] for name in hasty}


def test_the_images_are_passed_over_once(run, squares, tmp_path, monkeypatch) -> None:
    """Seven layers would take seven passes over a million images."""
    seen = []
    forward = Encoder.forward

    def counted(self, images, **options):
        seen.append(
            len(images) if images.device.type == "cpu" and images.any() else 0
        )  # measuring the speed uses black images
        return forward(self, images, **options)

    monkeypatch.setattr(Encoder, "forward", counted)
    evaluate.run(config(tmp_path / "out", run, data=squares, asked=("layer1", "layer2", "layer3")))
    assert sum(seen) == 53 + 31


def test_alexnets_layers_are_the_outputs_of_its_relus() -> None:
    """c3 of the table would be c2 after pooling, or a map before its ReLU."""
    torch.manual_seed(1)
    for spec in ("compress/alexnet@random", "torchvision/alexnet@random"):
        encoder = open_encoder(spec, weights="random", size=71)
        found: dict[str, torch.Tensor] = {}
        known = layers_of(encoder)
        assert list(known) == ["c1", "c2", "c3", "c4", "c5", "f6", "f7"]
        hooks = [
            part.register_forward_hook(lambda _m, _i, out, name=name, found=found: found.update({name: out.clone()}))
            for name, part in known.items()
        ]
        images = torch.randint(0, 256, (2, 3, 71, 71), dtype=torch.uint8)
        with torch.no_grad():
            rows = encoder(images)
            maps = (images.float() - encoder.mean) * encoder.scale
            features, classifier = encoder.backbone.features, encoder.backbone.classifier
            for name, (convolution, pool) in {
                "c1": (0, 2), "c2": (3, 5), "c3": (6, None), "c4": (8, None), "c5": (10, 12)
            }.items():  # fmt: skip
                maps = functional.relu(features[convolution](maps))
                assert torch.allclose(found[name], maps, atol=1e-5), name
                maps = maps if pool is None else functional.max_pool2d(maps, 3, 2)
            f6 = functional.relu(classifier[1](functional.adaptive_avg_pool2d(maps, 6).flatten(1)))
        assert torch.allclose(found["f6"], f6, atol=1e-5)
        assert torch.equal(found["f7"], rows)
        for hook in hooks:
            hook.remove()


def test_maps_are_averaged_to_about_nine_thousand_numbers() -> None:
    """A layer would win by its size; 96, 256, 384, 384, 256 channels give the sizes that the literature uses."""
    sizes = {channels: pooled(torch.zeros(1, channels, 27, 29)).shape[1] for channels in (64, 96, 192, 256, 384, 2048)}
    assert sizes == {64: 9216, 96: 9600, 192: 9408, 256: 9216, 384: 9600, 2048: 8192}
    maps = torch.randn(3, 96, 13, 11)
    expected = by_cells(maps.double().numpy(), 10).reshape(3, -1)
    np.testing.assert_allclose(pooled(maps).numpy(), expected, atol=1e-6)
    small = torch.randn(2, 64, 5, 3)
    assert torch.equal(pooled(small), small.flatten(1)), "a map is never blown up"
    rows = torch.randn(2, 7)
    assert torch.equal(pooled(rows), rows)


def test_more_dimensions_than_images_give_the_linear_probe_itself(make_rows) -> None:
    """The short cut for wide layers would be another regression."""
    from compress_ssl.evaluations import Embedded, linear_transfer

    train, test = make_rows(23, "train"), make_rows(211, "test")
    for decay in (1e-4, 1e-1):
        expected = linear_probe.evaluate(Embedded(train=train, test=test), linear_probe.Config(weight_decay=decay))
        found = linear_transfer.fit(train, weight_decay=decay)(test) == test.labels
        assert found.mean() == pytest.approx(expected["linear_probe"], abs=1.5 / 211)
        assert 0.4 < found.mean() < 0.98


@pytest.fixture
def make_rows():
    from compress_ssl.embeddings import Embeddings

    generator = np.random.default_rng(0)
    centres = generator.standard_normal((3, 67))

    def rows(count: int, split: str) -> Embeddings:
        labels = np.arange(count) % 3
        found = centres[labels] + 2.5 * generator.standard_normal((count, 67))
        unit = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
        return Embeddings(rows=unit, labels=labels, ids=tuple(f"{split}/{place}" for place in range(count)))

    return rows


def test_layers_that_are_not_there_are_refused_with_those_that_are(run, squares, tmp_path) -> None:
    """The error would come from a dictionary, after the first model was embedded."""
    out = tmp_path / "out"
    for models, asked, told in (
        ((run,), ("layer1", "c1"), r"which are layer1, layer2, layer3, layer4, got c1"),
        (
            (run, "compress/mobilenet_v2_small@random"),
            ("layer1",),
            r"AlexNet: c1 … c5.*got compress/mobilenet_v2_small",
        ),
        ((run,), ("layer1", "layer1"), "every layer once"),
    ):
        with pytest.raises(Refusal, match=told):
            evaluate.run(config(out, *models, data=squares, asked=asked))
    paper = evaluate.Protocols(linear_probe=linear_probe.Config(protocol="paper"))
    with pytest.raises(Refusal, match="once an epoch"):
        evaluate.run(config(out, run, data=squares, asked=("layer1",), protocols=paper))
    rows = tmp_path / "rows.npy"
    splits = datasets.open_splits(str(squares))
    assert splits.test is not None
    np.save(rows, np.random.default_rng(0).standard_normal((84, 5)).astype(np.float32))
    (tmp_path / "ids.txt").write_text("\n".join([*splits.train.ids, *splits.test.ids]))
    with pytest.raises(Refusal, match=r"stored rows .*, which have no layers"):
        evaluate.run(config(out, rows, data=squares, asked=("layer1",), ids=tmp_path / "ids.txt"))
    assert not out.exists()


def test_a_map_that_is_zero_everywhere_names_its_image(tmp_path) -> None:
    """Dead units would end in NaN, or in a complaint about rows of which nobody knows the image."""
    from compress_ssl.embeddings import Embeddings

    encoder = open_encoder(RESNET, weights="random", size=8)
    encoder.backbone.layer2.register_forward_hook(lambda _m, _i, out: out * torch.tensor([1.0, 0, 1]).view(3, 1, 1, 1))
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    with layers.Recorder(encoder, ("layer1", "layer2"), tmp_path / "rows") as recorder:
        recorder(images)
    known = Embeddings(np.eye(3, dtype=np.float32), np.zeros(3, dtype=np.int64), ("a.png", "b.png", "c.png"))
    assert recorder.rows("layer1", known).ids == known.ids
    with pytest.raises(Refusal, match=r"of layer layer2 of .* for image b\.png"):
        recorder.rows("layer2", known)


def test_the_page_shows_layer_by_layer(scored) -> None:
    """The numbers would be in a file that nobody opens."""
    page = report.run(report.Config(runs=(str(scored[0]),), out=scored[0] / "page.html")).read_text()
    section = page[page.index('id="layers"') :].partition("</section>")[0]
    assert "Layer by layer" in section
    for name, told in scored[1]["models"]["student"]["layers"].items():
        assert f">{name}</th>" in section
        assert f'title="{told["linear_probe"]:.6g}"' in section
