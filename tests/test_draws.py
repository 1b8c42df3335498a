"""Class-balanced draws."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_ssl.draws import balanced_draw


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None)
def test_every_class_gives_as_many_different_images_as_it_can(sizes: list[int], per_class: int, seed: int) -> None:
    """A rare class would not be learnt at all, or an image count twice."""
    numbered = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    drawn = balanced_draw(numbered, per_class=per_class, generator=np.random.default_rng(seed))
    assert drawn.shape == (len(sizes), per_class)
    for kind, row in enumerate(drawn.tolist()):
        found = row[: min(per_class, sizes[kind])]
        assert min(found) >= 0
        assert len(set(found)) == len(found)
        assert set(numbered[found].tolist()) == {kind}
        assert set(row[len(found) :]) <= {-1}


def test_every_image_is_drawn_as_often_as_every_other() -> None:
    """Draws would favour the first files of a folder, which are often alike."""
    numbered = np.array([0, 1, 0, 0, 1, 0, 0])
    generator = np.random.default_rng(0)
    counts = np.zeros(len(numbered))
    for _ in range(2000):
        counts[balanced_draw(numbered, per_class=2, generator=generator).ravel()] += 1
    assert np.abs(counts / 2000 - np.where(numbered == 0, 2 / 5, 1)).max() < 0.05


def test_a_seed_repeats_its_draw_and_another_gives_another() -> None:
    """Repeats would all be one draw, or none could be repeated."""
    numbered = np.arange(60) % 3
    first, same, other = (
        balanced_draw(numbered, per_class=4, generator=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
