"""Rows in eight bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from compress_ssl.quantised import quantise

pytestmark = pytest.mark.filterwarnings("error")


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 70), levels=st.sampled_from([127, 63]), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_each_entry_is_off_by_half_a_scale_at_most(width: int, levels: int, scale: float, seed: int) -> None:
    """A bank of int8 rows would be another bank."""
    rows = scale * torch.randn(5, width, generator=torch.Generator().manual_seed(seed))
    small = quantise(rows, levels=levels)
    assert small.values.dtype == torch.int8
    assert int(small.values.abs().max()) == levels
    assert bool(((small.float() - rows).abs() <= small.scale[:, None] * 0.5001).all())


@pytest.mark.parametrize("width", [64, 512, 2048])
def test_a_unit_row_keeps_its_direction_to_five_digits(width: int) -> None:
    """design.md: an int8 row with its scale loses 1e-5 to 4e-5 of cosine."""
    rows = functional.normalize(torch.randn(101, width, generator=torch.Generator().manual_seed(0)))
    lost = 1 - functional.cosine_similarity(rows, quantise(rows).float())
    assert 0 < float(lost.mean()) < 5e-5


def test_a_zero_row_stays_zero() -> None:
    """0/0 would fill the bank with NaN."""
    small = quantise(torch.zeros(2, 3))
    assert small.float().tolist() == [[0.0] * 3] * 2
