"""Speeds and sizes -> hours and bytes, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compress_ssl.checkup import forecast
from compress_ssl.record import record_dtype


def test_hours_go_by_what_is_slowest():
    """A short measurement starts with batches that were already read: a slow disk would not show in the step."""
    assert forecast.live(3600, epochs=10, step=5.0, loader=50.0).total == pytest.approx(2)
    assert forecast.live(3600, epochs=10, step=5.0, loader=2.5).total == pytest.approx(4)
    stored = forecast.stored(3600, epochs=10, step=20.0, loader=50.0, embed=0.25)
    assert stored.train == pytest.approx(0.5)
    assert stored.total == pytest.approx(0.75)


def test_embedding_takes_all_views_of_every_image_and_the_test_images_too():
    """`embed` stores rows of held-out and test images as well; on a small training split they are most of the work."""
    hours = forecast.embedding(3600, 1800, views=4, teacher=10.0, reading=50.0, loader=50.0)
    assert hours == pytest.approx((3600 * 5 + 1800) / 10 / 3600)
    slow = forecast.embedding(3600, 1800, views=4, teacher=1000.0, reading=1.0, loader=2.0)
    assert slow == pytest.approx(1 + 0.25), "each image is read once for all of its views"


def test_bytes_are_those_of_what_is_made():
    """A disk that is full after a night of embedding."""
    rows = np.zeros((7, 1 + 3), record_dtype(5, "float16")).nbytes + np.zeros(2, record_dtype(5, "float16")).nbytes
    assert forecast.table_bytes(7, 2, views=3, width=5) == rows
    assert forecast.bank_bytes(11, (5, 3), dtype="bfloat16") == 11 * (8 * 2 + 8), "an anchor knows its image"
    assert forecast.training_bytes(100, slow_copy=True, optimizer_states=1) == 1600
