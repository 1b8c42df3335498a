"""Changes of colour against torchvision, image by image."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from compress_ssl.colour import OFF, Change, Config, apply, draw, refuse_idle
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")
BATCH = 7


def pictures(height: int = 23, width: int = 23, *, count: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    images[0] = images[0, :1]  # grey: hue and saturation have nothing to hold on to
    images[1] = 0
    images[2] = 255
    return images


def still(count: int = BATCH) -> Change:
    """Changes nothing."""
    one, zero = torch.ones(count), torch.zeros(count)
    return Change((0, 1, 2, 3), one, one, one, zero, zero.bool(), zero, zero.bool())


def change(config: Config, *, seed: int = 3, count: int = BATCH) -> Change:
    return draw(count, config, torch.Generator().manual_seed(seed))


STRONG = Config(probability=1, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, grey=0.3, blur=0.7, solarise=0.4)
ADJUST = {
    "brightness": vision.adjust_brightness,
    "contrast": vision.adjust_contrast,
    "saturation": vision.adjust_saturation,
    "hue": vision.adjust_hue,
}


def blurred(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, image.shape[-1] // 20)
    return vision.gaussian_blur(image, [2 * radius + 1] * 2, [sigma] * 2) if sigma > 0 else image


def by_torchvision(images: Tensor, drawn: Change) -> Tensor:
    """One image after the other, in float."""
    results = []
    for place, image in enumerate(images.float() / 255):
        for operation in drawn.order:
            name = ("brightness", "contrast", "saturation", "hue")[operation]
            image = ADJUST[name](image, float(getattr(drawn, name)[place]))
        if drawn.grey[place]:
            image = vision.rgb_to_grayscale(image, num_output_channels=3)
        image = blurred(image, float(drawn.sigma[place]))
        results.append(vision.solarize(image, 0.5) if drawn.solarise[place] else image)
    return torch.stack(results) * 255


def assert_within_one_step(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == torch.uint8
    assert float((got.double() - expected.double()).abs().max()) <= 0.5 + 0.02  # rounding to a whole step, and float32


@pytest.mark.parametrize("name", list(ADJUST))
def test_one_operation_is_torchvision_s(name: str) -> None:
    """SimCLR's published strengths would mean something else here."""
    factors = getattr(change(STRONG), name)
    assert factors.unique().numel() == BATCH
    drawn = replace(still(), **{name: factors})
    got = apply(pictures(), drawn)
    assert_within_one_step(got, by_torchvision(pictures(), drawn))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(23, 23), (45, 47), (64, 64)])
def test_all_operations_together_are_torchvision_s(seed: int, shape: tuple[int, int]) -> None:
    """An order or an image's own numbers would be mixed up."""
    drawn = change(STRONG, seed=seed)
    assert_within_one_step(apply(pictures(*shape), drawn), by_torchvision(pictures(*shape), drawn))


def test_nothing_drawn_changes_nothing() -> None:
    """Rounding there and back would dim every image."""
    assert torch.equal(apply(pictures(), still()), pictures())
    assert torch.equal(apply(pictures(), change(Config(probability=0, grey=0))), pictures())


def test_every_image_has_its_own_numbers() -> None:
    """The batch would share one blur or one tint, and a contrastive teacher would learn to see it."""
    drawn = change(STRONG)
    whole = apply(pictures(), drawn)
    for place in range(BATCH):
        alone = apply(pictures()[place : place + 1], drawn.part(place, place + 1))
        assert int((alone[0].int() - whole[place].int()).abs().max()) <= 1


def test_a_part_of_a_draw_is_the_draw() -> None:
    """Several processes would see other colours than one."""
    drawn = change(STRONG, count=11)
    part = drawn.part(3, 7)
    assert part.order == drawn.order
    for field in fields(Change):
        if field.name != "order":
            assert torch.equal(getattr(part, field.name), getattr(drawn, field.name)[3:7])
    images = pictures(count=11)
    difference = apply(images[3:7], part).int() - apply(images, drawn)[3:7].int()
    assert int(difference.abs().max()) <= 1  # convolutions of other batch sizes round differently


def test_the_same_generator_gives_the_same_numbers_and_leaves_the_global_one() -> None:
    """A resumed step would see other colours; drawing them would change the dropout after it."""
    before = torch.get_rng_state()
    first, second, other = change(STRONG), change(STRONG), change(STRONG, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.hue, second.hue)
    assert first.order == second.order
    assert not torch.equal(first.hue, other.hue)


def test_numbers_lie_in_the_limits_and_are_as_frequent_as_asked_for() -> None:
    """A strength of 0.4 would brighten but never darken, or reach every image instead of four in five."""
    config = Config(probability=0.8, brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1, grey=0.2, blur=0.5)
    drawn = change(config, count=5000)
    for name, low, high in [("brightness", 0.6, 1.4), ("contrast", 0.7, 1.3), ("saturation", 0, 2.5)]:
        factors = getattr(drawn, name)
        assert low <= factors.min() < low + 0.02
        assert high - 0.02 < factors.max() <= high
        assert float((factors != 1).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(drawn.hue.abs().max()) == pytest.approx(0.1, abs=0.005)
    assert float(drawn.grey.float().mean()) == pytest.approx(0.2, abs=0.03)
    blurs = drawn.sigma[drawn.sigma > 0]
    assert len(blurs) / 5000 == pytest.approx(0.5, abs=0.03)
    assert 0.1 <= blurs.min() < 0.12
    assert 1.98 < blurs.max() <= 2
    orders = {change(config, seed=seed, count=1).order for seed in range(200)}
    assert len(orders) == 24


def test_the_memory_format_of_the_images_does_not_matter() -> None:
    """Blur would smear the colours of one image over the next."""
    drawn = change(STRONG)
    laid_out = pictures().contiguous(memory_format=torch.channels_last)
    assert int((apply(laid_out, drawn).int() - apply(pictures(), drawn).int()).abs().max()) <= 1


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_part_of_a_batch_changes_as_it_does_in_the_whole(parts: int) -> None:
    """With --accumulate, or in several processes, a student would see other colours."""
    images = pictures()
    for seed in range(5):
        drawn = change(replace(STRONG, probability=0.4), seed=seed)
        places = torch.arange(BATCH).tensor_split(parts)
        parted = [apply(images[part], drawn.part(int(part[0]), int(part[-1]) + 1)) for part in places]
        assert torch.equal(torch.cat(parted), apply(images, drawn))


def test_off_is_off_and_anything_above_is_not() -> None:
    """Each step would pay for a change that changes nothing, or an option would be ignored."""
    assert not OFF.changes
    assert torch.equal(apply(pictures(), change(OFF)), pictures())
    assert all(replace(OFF, **{name: 0.1}).changes for name in ("probability", "grey", "blur"))


@pytest.mark.parametrize("name", ["probability", "grey", "blur"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(name: str, value: float) -> None:
    """80 for 80 % would change every image, without a word."""
    with pytest.raises(Refusal, match=rf"expected a probability in \[0, 1\] for colour\.{name}, got"):
        Config(**{name: value})


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("value", [-3, float("inf"), float("nan")])
def test_what_is_no_strength_is_refused(name: str, value: float) -> None:
    """Brightness -3 would draw factors from 4 down to -2: black pictures, without a word."""
    with pytest.raises(Refusal, match=rf"expected a strength of 0 or more for colour\.{name}, got {value}"):
        Config(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 7, float("nan")])
def test_more_than_half_of_the_colour_circle_is_refused(value: float) -> None:
    """Hue 7, meant as degrees, would turn every colour into any other."""
    with pytest.raises(Refusal, match=rf"in \[0, 0\.5\] for colour\.hue, got {value}"):
        Config(hue=value)


def test_a_strength_without_a_probability_is_refused_by_its_option() -> None:
    """`--student-colour.hue 0.3` alone would change nothing, and a table of results would say that it did."""
    for name in ("brightness", "contrast", "saturation", "hue"):
        idle = replace(OFF, **{name: 0.3})
        told = rf"--student-colour\.{name} expected --student-colour\.probability above 0 .* got 0\.3 and probability 0"
        with pytest.raises(Refusal, match=told):
            refuse_idle(idle, "--student-colour")
        refuse_idle(replace(idle, probability=0.1), "--student-colour")
    for fine in (OFF, Config(), replace(OFF, grey=0.5, blur=0.5)):
        refuse_idle(fine, "--student-colour")
