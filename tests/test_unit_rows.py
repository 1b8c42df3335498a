"""Rows of length one, checked at once or later: the same image is named."""

from __future__ import annotations

import pytest
import torch

from compress_ssl import unit_rows
from compress_ssl.refusal import Refusal
from compress_ssl.unit_rows import UncheckedRows

IDS = tuple("abcdefg")
INDEX = torch.tensor([4, 6, 1, 5, 0])


def rows(**changes: float) -> torch.Tensor:
    """(5, 3); row 1 and row 3 hold what is given for `one` and `three`."""
    found = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for name, value in changes.items():
        found[{"one": 1, "three": 3}[name]] = value
    return found


def test_rows_checked_later_are_the_rows_checked_at_once() -> None:
    """A GPU would train on other targets than a CPU."""
    late = UncheckedRows(IDS)
    ours = late(rows(), INDEX)
    assert torch.equal(ours, unit_rows.unit_rows(rows(), INDEX, IDS))
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(5))
    late.settle(wait=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"one": float("nan")}, r"NaN or infinity for image g \(1 of 5"),
        ({"three": float("inf")}, r"NaN or infinity for image f \(1 of 5"),
        ({"one": 0.0, "three": float("nan")}, r"a zero vector for image g \(2 of 5"),
    ],
)
def test_a_row_without_a_length_is_named_at_once_or_later(changes: dict[str, float], told: str) -> None:
    """NaN losses with no image to look at, in a set of a million."""
    late = UncheckedRows(IDS)
    late(rows(), INDEX.flip(0))
    late(rows(**changes), INDEX)
    with pytest.raises(Refusal, match=told):
        late.settle(wait=True)
    with pytest.raises(Refusal, match=told):
        unit_rows.unit_rows(rows(**changes), INDEX, IDS)


def test_a_check_that_has_not_arrived_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step would wait for the one before it, and the device run dry."""
    here = {"now": False}

    class Slow(unit_rows.HostCopy):
        def arrived(self) -> bool:
            return here["now"]

    monkeypatch.setattr(unit_rows, "HostCopy", Slow)
    late = UncheckedRows(IDS)
    late(rows(one=0.0), INDEX)
    late.settle(wait=False)
    here["now"] = True
    with pytest.raises(Refusal, match="image g"):
        late.settle(wait=False)
    late.settle(wait=True)  # told once


@pytest.mark.parametrize("shape", [(5, 3, 1), (4, 3), (5,)])
def test_what_is_no_row_an_image_is_refused_at_once(shape: tuple[int, ...]) -> None:
    """A feature map would be taken for embeddings."""
    for check in (lambda x: UncheckedRows(IDS)(x, INDEX), lambda x: unit_rows.unit_rows(x, INDEX, IDS)):
        with pytest.raises(Refusal, match="one embedding per image"):
            check(torch.ones(shape))
