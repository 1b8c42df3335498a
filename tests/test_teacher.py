"""A teacher is frozen, and the same images give the same rows, live or stored: opened by one name, called the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress_ssl.encoder import open_encoder
from compress_ssl.loader import Batch
from compress_ssl.refusal import Refusal
from compress_ssl.stored_teacher import StoredConfig, StoredTeacher
from compress_ssl.teacher import LiveTeacher, open_teacher
from compress_ssl.transforms import RandomView, Sample, TrainView

CPU = torch.device("cpu")
IDS = tuple(f"photos/{letter}.png" for letter in "gbfadce")


class Photos:
    """Seven small pictures."""

    name, classes = "photos:train", ()

    def __init__(self, ids: tuple[str, ...] = IDS):
        self.ids, self.labels, self.evidence = ids, np.full(len(ids), -1), np.arange(len(ids))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        return np.random.default_rng(position).integers(0, 256, (9, 11, 3), dtype=np.uint8)

    def fingerprint(self) -> str:
        return "f"


def batch(*positions: int) -> Batch:
    return Batch(torch.zeros(len(positions), 3, 8, 8, dtype=torch.uint8), torch.tensor(positions), [])


# ---- live ----


@pytest.fixture
def live() -> LiveTeacher:
    torch.manual_seed(0)
    encoder = open_encoder(
        "compress/resnet10_small_w8", weights="random", size=8
    ).train()  # as someone may hand it over
    return LiveTeacher(encoder, Photos(), device=CPU, workers=0)


def test_a_live_teacher_is_frozen_whatever_mode_it_came_in(live: LiveTeacher) -> None:
    """Targets would depend on who else is in the batch, and drift as batch norm counts along."""
    before = {name: value.clone() for name, value in live.encoder.state_dict().items()}
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rows = live(Batch(images, torch.arange(5), []))
    alone = live(Batch(images[3:4], torch.tensor([3]), []))
    assert torch.allclose(rows[3], alone[0], atol=1e-6)
    assert torch.allclose(rows.norm(dim=1), torch.ones(5), atol=1e-6)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    assert not any(parameter.requires_grad for parameter in live.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in live.encoder.state_dict().items())


def test_a_teacher_put_into_train_mode_is_noticed(live: LiveTeacher) -> None:
    """Someone who extends the loop with `.train()` on everything would not see it in the loss."""
    live.encoder.train()
    with pytest.raises(AssertionError, match="eval mode"):
        live(batch(0, 1))


def test_targets_can_take_part_in_a_graph(live: LiveTeacher) -> None:
    """Rows of inference mode cannot be saved for backward: the first step would crash."""
    query = torch.randn(2, live.width, requires_grad=True)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    (query * live(Batch(images, torch.arange(2), []))).sum().backward()
    assert query.grad is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_row_that_is_no_embedding_names_its_image(
    live: LiveTeacher, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    """Of a million images the one that breaks the teacher must be found."""
    rows = torch.ones(3, live.width)
    rows[1] = bad
    monkeypatch.setattr(live.swift, "forward", lambda _: rows)
    with pytest.raises(Refusal, match=IDS[6]):
        live(batch(4, 6, 5))


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_a_live_teacher_that_is_checked_later_is_checked(live: LiveTeacher, bad: float) -> None:
    """On a GPU a ruined teacher would be found by nobody."""
    live.check = "later"
    rows = torch.ones(3, live.width)
    rows[1] = bad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live.swift, "forward", lambda _: rows)
        live(batch(4, 6, 5))
    live(batch(4, 6, 5))
    with pytest.raises(Refusal, match=IDS[6]):
        live.settle(wait=True)


@pytest.mark.parametrize(("size", "side"), [(5, 8), (8, 8), (13, 13)])
def test_a_view_has_pixels_enough_for_teacher_and_student(live: LiveTeacher, size: int, side: int) -> None:
    """The larger of the two would be shown a blown-up picture."""
    view, photos = live.view(TrainView(scale=(0.3, 0.6)), size), Photos()
    assert view.size == side
    sample = Sample(0, 1, 2, IDS[2])
    assert torch.equal(
        view(photos.read(2), sample), RandomView(TrainView(scale=(0.3, 0.6)), side)(photos.read(2), sample)
    )


def test_a_teacher_is_known_by_its_weights_and_its_preprocessing(live: LiveTeacher) -> None:
    """A run could be resumed with another teacher, and half of the student be taught by each."""
    before = live.identity()
    assert before.keys() == {"teacher weights", "teacher preprocessing"}
    assert LiveTeacher(live.encoder, Photos(IDS[:3]), device=CPU, workers=None).identity() == before
    with torch.no_grad():
        next(live.encoder.parameters())[0] += 1
    assert live.identity()["teacher weights"] != before["teacher weights"]


# ---- opening one ----


def test_a_live_teacher_takes_no_options_of_stored_rows(tmp_path: Path) -> None:
    """`--stored.student-view replay` with a live encoder would be ignored without a word."""
    spec, options = "compress/resnet10_small_w8@random", {"size": 8, "device": CPU, "workers": 0}
    for stored in (StoredConfig(student_view="replay"), StoredConfig(in_memory=True), StoredConfig(part=True)):
        with pytest.raises(Refusal, match=r"--stored expected a table .*resnet10_small_w8@random, a live encoder"):
            open_teacher(spec, Photos(), stored=stored, **options)
    with pytest.raises(Refusal, match="--ids"):
        open_teacher(spec, Photos(), ids=tmp_path / "ids.txt", **options)
    assert isinstance(open_teacher(spec, Photos(), **options), LiveTeacher)


def test_vectors_with_their_ids_are_a_teacher_without_preprocessing(tmp_path: Path) -> None:
    """Whoever has the rows of a service, and no model, could not compress it."""
    rows = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows)
    (tmp_path / "ids.txt").write_text("\n".join(IDS) + "\n")
    options = {"device": CPU, "workers": 0, "ids": tmp_path / "ids.txt"}
    teacher = open_teacher(str(tmp_path / "v.npy"), Photos(), size=None, **options)
    assert isinstance(teacher, StoredTeacher)
    assert (teacher.width, teacher.preprocessing, teacher.replay) == (5, None, False)
    unit = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    torch.testing.assert_close(teacher(batch(4, 0)), unit[[4, 0]])
    with pytest.raises(Refusal, match=r"--teacher-size expected .* got 32, where nothing is known of their images"):
        open_teacher(str(tmp_path / "v.npy"), Photos(), size=32, **options)
