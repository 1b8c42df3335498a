"""mixup and CutMix against loops over pixels, and what they promise of the draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from compress_ssl.loader import Batch
from compress_ssl.mixing import Mix, MixingConfig, draw, mix, mixed_images, mixed_rows, refuse_odd
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")
MIXUP, CUTMIX = MixingConfig(kind="mixup"), MixingConfig(kind="cutmix")


def pictures(count: int = 6, height: int = 7, width: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def draws(config: MixingConfig, count: int = 2000) -> list[Mix]:
    return [drawn for seed in range(count) if (drawn := draw(config, seed)) is not None]


@pytest.mark.parametrize("share", [0.5, 0.7, 0.913, 1.0])
def test_mixup_equals_a_loop_over_pixels(share: float) -> None:
    """Truncated numbers would darken every picture; another pairing would mix them with the wrong targets."""
    images = pictures()
    found, kept = mixed_images(images, Mix(share))
    assert kept == share
    for place in np.ndindex(*images.shape):
        one, other = int(images[place]), int(images[(place[0] ^ 1, *place[1:])])
        exact = share * one + (1 - share) * other
        assert abs(int(found[place]) - exact) <= 0.5 + 1e-4
    assert found.dtype == torch.uint8


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.02, 0.9), (1.0, 0.0), (0.31, 0.62)])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.99, 1.0])
def test_cutmix_takes_a_box_of_the_other_picture_and_tells_what_it_took(share: float, centre: tuple) -> None:
    """Targets would be mixed in other proportions than the pictures."""
    images = pictures(2, 17, 29)
    images[1] = ~images[0]  # no pixel is alike in both
    found, kept = mixed_images(images, Mix(share, centre))
    changed = (found[0] != images[0]).all(dim=0)
    assert torch.equal(found[0][:, changed], images[1][:, changed])
    assert torch.equal(found[1][:, changed], images[0][:, changed])
    assert torch.equal(found[1][:, ~changed], images[1][:, ~changed])
    assert kept == pytest.approx(1 - float(changed.double().mean()))
    rows, columns = changed.any(dim=1), changed.any(dim=0)
    assert int(changed.sum()) == int(rows.sum()) * int(columns.sum()), "a box"
    if centre == (0.5, 0.5):
        assert kept == pytest.approx(share, abs=0.06), "to a pixel"
    assert kept >= share - 0.06, "the border can only cut off"


def test_the_order_of_memory_stays() -> None:
    """A GPU would compute the first layer on pictures in the slower order."""
    images = pictures().contiguous(memory_format=torch.channels_last)
    for drawn in (Mix(0.7), Mix(0.7, (0.5, 0.5))):
        found, _ = mixed_images(images, drawn)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, mixed_images(pictures(), drawn)[0])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_the_larger_ones_of_beta_s(alpha: float) -> None:
    """Another distribution would be another method under the papers' name."""
    beta = stats.beta(alpha, alpha)
    for kind in ("mixup", "cutmix"):
        shares = np.array([one.share for one in draws(MixingConfig(kind=kind, alpha=alpha))])
        assert shares.min() >= 0.5
        assert stats.kstest(shares, lambda x: beta.cdf(x) - beta.cdf(1 - x)).pvalue > 0.01
    centres = np.array([one.centre for one in draws(CUTMIX)])
    assert stats.kstest(centres.ravel(), "uniform").pvalue > 0.01


def test_as_many_batches_are_mixed_as_was_asked_for_and_none_by_default() -> None:
    """An option would be ignored; every run of before would be another one."""
    assert len(draws(MixingConfig(kind="mixup", probability=0.3))) == pytest.approx(600, abs=80)
    assert len(draws(MIXUP)) == 2000
    assert draws(MixingConfig()) == []


def test_a_step_draws_the_same_again_and_steps_differ() -> None:
    """A resumed run, or a second process, would train on other pictures."""
    assert draw(MIXUP, 7) == draw(MIXUP, 7)
    assert len({one.share for one in draws(MIXUP, 99)}) == 99


def test_two_processes_mix_as_one() -> None:
    """More devices would mean another training."""
    images = pictures(8)
    for drawn in (Mix(0.7), Mix(0.7, (0.4, 0.5))):
        whole = mixed_images(images, drawn)[0]
        assert torch.equal(torch.cat([mixed_images(part, drawn)[0] for part in images.chunk(2)]), whole)


def test_stored_targets_are_means_of_length_one_each_teacher_for_itself() -> None:
    """A longer row of one teacher would swallow the others'; the mean of two rows is shorter than they are."""
    generator = torch.Generator().manual_seed(1)
    teachers = [functional.normalize(torch.randn(6, width, generator=generator)) for width in (5, 9)]
    batch = Batch(pictures(), torch.arange(6), [], target=torch.cat(teachers, dim=1))
    mixed = mix(batch, Mix(0.7), [5, 9])
    assert mixed.target is not None
    for rows, found in zip(teachers, mixed.target.split([5, 9], dim=1), strict=True):
        for place in range(6):
            mean = 0.7 * rows[place].double() + 0.3 * rows[place ^ 1].double()
            torch.testing.assert_close(found[place].double(), mean / mean.norm(), rtol=1e-6, atol=1e-7)
    assert torch.equal(mixed.index, batch.index)
    assert mix(Batch(pictures(), torch.arange(6), []), Mix(0.7), []).target is None


def test_targets_follow_the_pixels_that_cutmix_really_took() -> None:
    """At the border the box is smaller than was drawn."""
    rows = functional.normalize(torch.randn(2, 5, generator=torch.Generator().manual_seed(1)))
    drawn = Mix(0.5, (0.0, 0.0))
    images = pictures(2, 20, 20)
    kept = mixed_images(images, drawn)[1]
    assert kept > 0.8
    target = mix(Batch(images, torch.arange(2), [], target=rows), drawn, [5]).target
    torch.testing.assert_close(target, mixed_rows(rows, kept, [5]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "mixup", "alpha": 0}, r"--mixing.alpha expected more than 0, got 0"),
        ({"kind": "mixup", "alpha": float("nan")}, r"--mixing.alpha expected more than 0, got nan"),
        ({"kind": "cutmix", "probability": 0}, r"--mixing.probability expected .* got 0"),
        ({"kind": "cutmix", "probability": 1.5}, r"--mixing.probability expected .* got 1.5"),
        ({"alpha": 0.4}, r"--mixing.alpha expected --mixing.kind mixup or cutmix beside it, got none"),
        ({"probability": 0.5}, r"--mixing.probability expected --mixing.kind mixup or cutmix beside it, got none"),
    ],
)
def test_what_cannot_be_drawn_or_would_be_ignored_is_refused(options: dict, told: str) -> None:
    """A run would stop in its first step, or train unmixed."""
    with pytest.raises(Refusal, match=told):
        MixingConfig(**options)


def test_batches_that_do_not_go_into_pairs_are_refused() -> None:
    """The last picture of each process would have nobody to be mixed with."""
    for batch_size, processes in itertools.product((6, 8, 10), (1, 2)):
        config = CUTMIX
        if (batch_size // processes) % 2:
            with pytest.raises(Refusal, match=r"--batch-size expected an even number of images on each process"):
                refuse_odd(config, batch_size=batch_size, processes=processes)
        else:
            refuse_odd(config, batch_size=batch_size, processes=processes)
        refuse_odd(MixingConfig(), batch_size=batch_size - 1, processes=processes)
