"""Files of given boxes, and a detector that looks at these alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.io import savemat

from compress_ssl import datasets, detections
from compress_ssl.cli import main
from compress_ssl.detector import Config as Shape
from compress_ssl.detector import Detector, detect
from compress_ssl.detector_training import Config, Pictures, Sample, find, train
from compress_ssl.encoder import open_encoder
from compress_ssl.optim import OptimizerConfig
from compress_ssl.proposals import read_proposals
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder
from compress_ssl.voc_layout import classes_of, halves, read_annotations

BOXES = {"a": [[0, 2, 7, 11]], "b": [[1.5, 0, 3, 40], [5, 6, 9, 8], [0, 0, 48, 40]], "c": []}


def lines(file: Path, boxes: dict) -> Path:
    file.write_text("".join(json.dumps({"id": id, "boxes": some}) + "\n" for id, some in boxes.items()))
    return file


def matlab(file: Path, boxes: dict) -> Path:
    """As selective search's: top, left, bottom, right counted from 1, the last pixel included."""
    cells = np.empty((1, len(boxes)), dtype=object)
    for place, some in enumerate(boxes.values()):
        cells[0, place] = np.array([[top + 1, left + 1, bottom, right] for left, top, right, bottom in some])
    ids = np.array([[id] for id in boxes], dtype=object)
    savemat(file, {"images": ids, "boxes": cells})
    return file


def test_both_kinds_of_files_tell_the_same_boxes(tmp_path: Path) -> None:
    """Every box would lie a pixel off, or be taken for its mirror in the diagonal."""
    written = [lines(tmp_path / "boxes.jsonl", BOXES)], [matlab(tmp_path / "boxes.mat", BOXES)]
    apart = [lines(tmp_path / "a.jsonl", {"a": BOXES["a"]}), matlab(tmp_path / "bc.mat", {"b": BOXES["b"], "c": []})]
    for files in (*written, apart):
        found = read_proposals(files, ["c", "b", "a"])
        assert found.keys() == BOXES.keys()
        for id, some in BOXES.items():
            assert found[id].dtype == np.float32
            np.testing.assert_array_equal(found[id], np.array(some).reshape(-1, 4))
    assert read_proposals(written[0], ["b"]).keys() == {"b"}, "of 10 000 images those that are needed"


# fmt: off
WRONG = [
    ("boxes.jsonl", '{"id": "a", "boxes": [[0, 2, 7, 11]]}', r"got none for 1 of 2 \(b, …\): name the files"),
    ("boxes.jsonl", '{"id": "a", "boxes": []}\n{"id": "a", "boxes": []}', "every image once, got a twice"),
    ("boxes.jsonl", '{"id": "a", "boxes": [[0, 2, 0, 11]]}', "left < right and top < bottom for a"),
    ("boxes.jsonl", '{"id": "a", "boxes": [[0, 2, NaN, 11]]}', "left < right and top < bottom for a"),
    ("boxes.jsonl", '{"id": "a", "boxes": [[0, 2, 7]]}', "boxes of four numbers for a"),
    ("boxes.jsonl", '{"id": "a", "boxes": [[0, 2], [7, 11]]}', "boxes of four numbers for a"),
    ("boxes.jsonl", '{"id": "a", "boxes": [0, 2, 7, 11]}', "boxes of four numbers for a"),
    ("boxes.jsonl", '{"id": "a", "boxes": 7}', "boxes of four numbers for a"),
    ("boxes.jsonl", '{"id": "a"}', r"in line 1 of .*boxes\.jsonl, got '{\"id\": \"a\"}': mend the line"),
    ("boxes.jsonl", "[1, 2]", "in line 1 of"),
    ("boxes.jsonl", "\udcff", "in line 1 of"),  # a byte that UTF-8 does not have
    ("boxes.mat", "no matrix", "expected the cells images and boxes in .*boxes.mat, got"),
    ("boxes.csv", "a,0,2,7,11", r"files that end in \.jsonl or \.mat, got .*boxes\.csv"),
]
# fmt: on


@pytest.mark.parametrize(("name", "text", "told"), WRONG)
def test_files_that_cannot_be_used_are_told_in_a_sentence(name: str, text: str, told: str, tmp_path: Path) -> None:
    """An image without boxes would never be found right, and the student be blamed for it."""
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Refusal, match=told) as caught:
        read_proposals([tmp_path / name], ["a", "b"])
    assert "\n" not in str(caught.value)
    with pytest.raises(Refusal, match="which is none: check the path"):
        read_proposals([tmp_path / "nothing.mat"], ["a"])


# ---- the detector --------------------------------------------------------------------------------------------------


def small(*, proposes: bool = False) -> Detector:
    torch.manual_seed(0)
    shape = Shape(channels=8, head=16, proposals=16, sizes=(40,), longest=48)
    encoder = open_encoder("compress/resnet10_small_w8@random", weights="random")
    return Detector(encoder, shape, classes=3, proposes=proposes)


@pytest.fixture(scope="module")
def voc(make_voc: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("data"), train=3, val=4, test=9)


def around(voc: Path, *, seed: int = 0) -> dict[str, list]:
    """For every image its objects' boxes, each within a pixel or two, and three others."""
    random, found = np.random.default_rng(seed), {}
    both = halves(voc)
    for id, objects in read_annotations(voc, (*both.learn, *both.report)).items():
        near = [np.clip(np.array(one.box) + random.integers(-1, 2, 4), 0, (48, 40, 48, 40)) for one in objects]
        corners = random.integers(0, 20, (3, 2))
        far = np.concatenate([corners, corners + random.integers(6, 20, (3, 2))], axis=1)
        found[id] = [box.tolist() for box in (*near, *far)]
    return found


def pictures(voc: Path, half: str, given: dict[str, np.ndarray]) -> Pictures:
    both, splits = halves(voc), datasets.open_splits(str(voc))
    ids, images = (both.learn, splits.train) if half == "learn" else (both.report, splits.test)
    assert images is not None
    annotations = read_annotations(voc, ids)
    return Pictures(images, list(annotations.values()), classes_of(annotations), [given[id] for id in ids])


def test_the_head_looks_at_the_given_boxes_where_the_picture_is_enlarged_or_mirrored(voc: Path) -> None:
    """It would look beside the objects, and learn that what it sees is background."""
    truth = {id: np.array([one.box for one in some], dtype=np.float32).reshape(-1, 4)
             for id, some in read_annotations(voc, halves(voc).report).items()}  # fmt: skip
    shown = pictures(voc, "report", truth)
    detector = small().eval()
    detector.model.transform.min_size, detector.model.transform.max_size = (80,), 200  # 48 × 40 becomes 96 × 80
    seen: list[list[torch.Tensor]] = []
    detector.model.roi_heads.register_forward_pre_hook(lambda _module, given: seen.append(given[1]))
    for position in range(9):
        for mirrored in (False, True):
            sample = shown[position, mirrored]
            assert isinstance(sample, Sample)
            assert sample.proposals is not None
            assert torch.equal(sample.proposals, sample.boxes)
            detect(detector, [sample.pixels.float() / 255], [sample.proposals])
            torch.testing.assert_close(seen.pop()[0], 2 * sample.boxes)


def test_a_detector_of_given_boxes_learns_what_is_in_them(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    """Hours of fine-tuning would end in a detector that has learnt nothing, or found what it was not shown."""
    voc = make_voc(tmp_path / "data", train=1, val=2, test=2)
    given = read_proposals([lines(tmp_path / "boxes.jsonl", around(voc))], around(voc))
    shown = pictures(voc, "learn", given)
    detector, quiet = small(), Console(quiet=True)
    assert not any("rpn" in name for name, _ in detector.named_parameters())
    first = {name: value.clone() for name, value in detector.named_parameters() if value.requires_grad}

    def score() -> float:
        found = find(detector, shown, batch_size=2, workers=0, console=quiet)
        return detections.score(found, shown.objects, classes=sorted(shown.numbers))["map_all"]

    before = score()
    how = Config(epochs=50, batch_size=3, optimizer=OptimizerConfig(learning_rate=0.05))
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    train(detector, shown, how, folder=folder, seed=0, workers=0, console=quiet)
    assert score() > before + 0.2
    still = {name for name, value in detector.named_parameters()
             if name in first and torch.equal(value, first[name])}  # fmt: skip
    assert not [name for name in still if ".maps.backbone." in name or "box_" in name], "all of the encoder learns"
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([line["loss"] for line in logged[-9:]]) < 0.8 * np.mean([line["loss"] for line in logged[:9]])
    assert {"classifier", "box_reg"} < logged[0].keys()
    assert not {"objectness", "rpn_box_reg"} & logged[0].keys()
    sample = shown[0, False]
    assert isinstance(sample, Sample)
    (nothing,) = detect(detector, [sample.pixels.float() / 255], [torch.zeros(0, 4)])
    assert not len(nothing["boxes"]), "where nothing is proposed, nothing is found"


def test_boxes_go_with_a_detector_that_does_not_look_for_them() -> None:
    """They would be left aside in silence, or those of the batch before be taken."""
    images = [torch.rand(3, 40, 48)]
    with pytest.raises(ValueError, match="proposals of each picture, got none"):
        small().eval()(images)
    with pytest.raises(ValueError, match="to be looked for here, got 1"):
        small(proposes=True).eval()(images, proposals=[torch.zeros(0, 4)])


# ---- the verb ------------------------------------------------------------------------------------------------------


def detected(voc: Path, out: Path, *files: Path) -> int:
    return main(["voc", "compress/resnet10_small_w8@random", "--data", str(voc), "--out", str(out), "--task",
                 "detection", "--detector.channels", "8", "--detector.head", "16", "--detector.sizes", "40",
                 "--detector.longest", "48", "--detection.epochs", "1", "--detection.optimizer.learning-rate", "0.02",
                 "--device", "cpu", "--workers", "0", "--proposals", *map(str, files)])  # fmt: skip


def test_the_verb_scores_by_given_boxes_and_either_kind_of_file_gives_the_same(voc: Path, tmp_path: Path) -> None:
    """The paper's detector could not be had from the command line, or be another for MATLAB's files."""
    boxes = around(voc)
    parts = [{id: some for id, some in boxes.items() if id.startswith("test") == told} for told in (False, True)]
    assert detected(voc, tmp_path / "one", lines(tmp_path / "all.jsonl", boxes)) == 0
    assert detected(voc, tmp_path / "two", lines(tmp_path / "trainval.jsonl", parts[0]),
                    matlab(tmp_path / "test.mat", parts[1])) == 0  # fmt: skip
    one, two = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("one", "two"))
    (model,) = one["models"].values()
    assert one["models"] == two["models"]
    assert model["proposals_per_image"] == pytest.approx(np.mean([len(some) for some in boxes.values()]))
    for rule in ("11", "all"):
        mean = np.mean([told[f"ap_{rule}"] for told in model["per_class"].values()])
        assert model["metrics"][f"detection_map_{rule}"] == pytest.approx(mean)


def test_boxes_outside_of_their_picture_end_the_detection(voc: Path, tmp_path: Path, capsys) -> None:
    """Those of pictures of another size would be looked at where nothing is."""
    boxes = around(voc) | {"test_003": [[0, 0, 49, 40]]}
    assert detected(voc, tmp_path / "out", lines(tmp_path / "all.jsonl", boxes)) == 2
    told = "expected the proposals of JPEGImages/test_003.jpg within its 48 x 40 pixels, got one outside"
    assert told in capsys.readouterr().err
