"""Views against torchvision's on Pillow images: pixel for pixel, or by how much not."""

from __future__ import annotations

import hashlib
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from timm.data import create_transform
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as vision

from compress_ssl import jpeg
from compress_ssl.picture import Picture, decode, open_picture
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import (
    Crop,
    CropMode,
    Interpolation,
    Preprocessing,
    RandomView,
    RecordedViews,
    ReplayView,
    Sample,
    TrainView,
    cut,
    draw_crop,
    evaluation_view,
)

pytestmark = pytest.mark.filterwarnings("error")
SIZES = [(37, 61), (61, 37), (53, 53), (8, 8), (7, 150), (64, 23), (1, 5), (224, 225)]
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(("size", "crop_fraction"), [(21, 0.875), (32, 0.875), (31, 0.95), (32, 1.0), (17, 0.5)])
def test_the_evaluation_view_is_resize_and_center_crop(
    shape: tuple[int, int], size: int, crop_fraction: float, interpolation: Interpolation
) -> None:
    """Published teachers would lose accuracy, and scores could not be compared with anybody's."""
    source = picture(*shape)
    given = Preprocessing(size=size, interpolation=interpolation, crop_fraction=crop_fraction)
    resized = vision.resize(Image.fromarray(source), int(size / crop_fraction), MODES[interpolation])
    view = evaluation_view(source, given)
    assert view.dtype == torch.uint8
    assert torch.equal(view, tensor(vision.center_crop(resized, [size, size])))


@pytest.mark.parametrize("crop", ["center", "squash", "border"])
@pytest.mark.parametrize(("height", "width"), [(41, 63), (63, 41), (23, 23), (9, 70), (24, 70)])
@pytest.mark.parametrize(("size", "fraction"), [(24, 1.0), (21, 0.875), (16, 0.9)])
def test_the_evaluation_view_is_timm_s_in_every_crop_mode(
    crop: CropMode, height: int, width: int, size: int, fraction: float
) -> None:
    """Otherwise a model that was trained on squashed pictures would see only their middle."""
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean = (0.2, 0.5, 0.9)
    timms = create_transform(
        size, crop_pct=fraction, crop_mode=crop, interpolation="bicubic", mean=mean, normalize=False
    )
    preprocessing = Preprocessing(size=size, mean=mean, interpolation="bicubic", crop_fraction=fraction, crop=crop)
    assert torch.equal(evaluation_view(pixels, preprocessing), timms(Image.fromarray(pixels)))


def test_imagenet_s_view_is_resize_256_and_center_crop_224() -> None:
    """The paper's teachers are scored on this view."""
    source = picture(281, 333)
    resized = vision.resize(Image.fromarray(source), 256)
    assert torch.equal(evaluation_view(source, Preprocessing()), tensor(vision.center_crop(resized, [224, 224])))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.integers(1, 40),
    seed=st.integers(0, 999),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_a_cut_is_torchvision_s_resized_crop(
    height: int, width: int, size: int, seed: int, interpolation: Interpolation
) -> None:
    """The student would be trained on other pixels than the paper's."""
    source = picture(height, width, seed=seed)
    crop = draw_crop(height, width, TrainView(), np.random.default_rng(seed))
    image = vision.resized_crop(Image.fromarray(source), *crop[:4], [size, size], MODES[interpolation])
    expected = tensor(vision.hflip(image) if crop.flip else image)
    view = cut(source, crop, size, interpolation)
    assert view.dtype == torch.uint8
    assert view.shape == expected.shape
    difference = (view.int() - expected.int()).abs()
    if interpolation == "bicubic":
        assert not difference.any()
    else:  # torch rounds in another place
        assert difference.max() <= 1


def psnr(view: torch.Tensor, expected: torch.Tensor) -> float:
    """dB of peak over root mean square difference; infinite where there is none."""
    return float(10 * torch.log10(255**2 / ((view.double() - expected.double()) ** 2).mean()))


def photograph(height: int, width: int) -> np.ndarray:
    """Noise of every scale, as much of each as a photograph has."""
    random, picture = np.random.default_rng(height + width), np.zeros((height, width, 3))
    for level in range(8):
        grain = random.normal(0, 20, (-(-height >> level) + 1, -(-width >> level) + 1, 3)).astype(np.float32)
        scaled = [Image.fromarray(grain[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        picture += 0.75 ** (8 - level) * np.dstack([np.asarray(channel) for channel in scaled])
    return (128 + picture).clip(0, 255).astype(np.uint8)


def jpeg_file(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_crop_for_training_is_as_good_as_pillow_s() -> None:
    """A quicker filter that lets fine patterns flicker would cost accuracy that nobody could explain."""
    source, random = photograph(375, 500), np.random.default_rng(0)
    worst = np.inf
    for _ in range(12):
        crop = draw_crop(375, 500, TrainView(flip=0), random)
        expected = vision.resized_crop(Image.fromarray(source), *crop[:4], [224, 224], MODES["bilinear"])
        worst = min(worst, psnr(cut(source, crop, 224), tensor(expected)))
    assert worst > 54  # ImageNet's photographs: 54 dB at worst, 77 in the median; no pixel more than 1 off


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}, {"progressive": True}])
def test_a_view_of_a_picture_not_yet_decoded_is_the_view_of_its_pixels(
    options: dict[str, int], interpolation: Interpolation
) -> None:
    """The same crop would have other pixels in another format of the data set, or where a library is missing."""
    data, random = jpeg_file(Image.fromarray(photograph(97, 131)), **options), np.random.default_rng(1)
    opened = open_picture(data)
    assert isinstance(opened, Picture)
    for _ in range(12):
        crop = draw_crop(97, 131, TrainView(), random)
        assert torch.equal(cut(opened, crop, 40, interpolation), cut(decode(data), crop, 40, interpolation))
    given = Preprocessing(size=40, interpolation=interpolation)
    assert torch.equal(evaluation_view(opened, given), evaluation_view(decode(data), given))


def test_a_view_of_a_large_photograph_is_made_from_fewer_pixels_and_hardly_to_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every photograph of 12 megapixels would be decoded whole for a view of 224, or come out soft or shifted."""
    data = jpeg_file(Image.fromarray(photograph(900, 1230)), quality=92)
    whole, reduces = decode(data), []
    part = jpeg.part
    monkeypatch.setattr(jpeg, "part", lambda *a, reduce: reduces.append(reduce) or part(*a, reduce=reduce))
    for crop in (Crop(0, 0, 900, 1230, False), Crop(101, 203, 600, 500, True), Crop(7, 411, 201, 301, False)):
        assert psnr(cut(open_picture(data), crop, 32), cut(whole, crop, 32)) > 47
    for preprocessing in (Preprocessing(size=32), Preprocessing(size=32, interpolation="bicubic")):
        assert psnr(evaluation_view(open_picture(data), preprocessing), evaluation_view(whole, preprocessing)) > 47
    assert reduces == [8, 4, 2, 8, 8]


def test_views_lie_in_memory_as_the_encoder_wants_them() -> None:
    """Every batch would be moved once more, channels to the end."""
    source = picture(11, 13)
    for view in (cut(source, Crop(1, 2, 7, 5, True), 6), cut(source, Crop(1, 2, 6, 6, False), 6)):
        assert view.permute(1, 2, 0).is_contiguous()
    assert evaluation_view(source, Preprocessing(size=6)).permute(1, 2, 0).is_contiguous()


def test_a_flip_mirrors_left_and_right() -> None:
    """Pictures would stand on their heads."""
    source = picture(7, 7)
    view = cut(source, Crop(0, 0, 7, 7, True), 7)
    assert torch.equal(view, torch.from_numpy(source.transpose(2, 0, 1).copy()).flip(2))
    assert torch.equal(cut(source, Crop(0, 0, 7, 7, False), 7), view.flip(2))


@pytest.mark.parametrize("flip", [False, True])
def test_a_view_is_never_the_data_set_s_own_memory(flip: bool) -> None:
    """Whoever changes a batch in place would change the images of every epoch to come."""
    source = np.zeros((3, 5, 5), np.uint8).transpose(1, 2, 0)  # channels lie as the view wants them
    source.flags.writeable = False  # as an array in a memory map does
    for view in (
        cut(source, Crop(0, 0, 5, 5, flip), 5),
        evaluation_view(source, Preprocessing(size=5, crop_fraction=1)),
    ):
        view += 1
    assert source.sum() == 0


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 0.5)])
@pytest.mark.parametrize(("height", "width"), [(97, 61), (61, 97), (100, 400)])
def test_crops_are_distributed_as_torchvision_s(height: int, width: int, scale: tuple[float, float]) -> None:
    """The student would see smaller details, or other shapes, than the paper's."""
    random, view, count = np.random.default_rng(1), TrainView(scale=scale), 1500
    ours = np.array([draw_crop(height, width, view, random)[:4] for _ in range(count)])
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = np.array(theirs)
    for column in range(4):  # the smallest p of 24 comparisons of equal distributions is below 1e-4 once in 400
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    assert ks_2samp(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]).pvalue > 1e-4


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 999))
def test_a_crop_lies_in_the_picture_and_keeps_its_limits(height: int, width: int, seed: int) -> None:
    """An empty crop is an error in the middle of the night; a slice beyond the edge silently changes its shape."""
    top, left, box_height, box_width, _ = draw_crop(height, width, TrainView(), np.random.default_rng(seed))
    assert 0 <= top <= height - box_height
    assert 0 <= left <= width - box_width
    assert min(box_height, box_width) >= 1
    if min(height, width) > 40:
        assert 3 / 4 * 0.9 < box_width / box_height < 4 / 3 * 1.1
        assert 0.07 < box_height * box_width / (height * width) <= 1


@pytest.mark.parametrize(("height", "width"), [(7, 90), (90, 7), (11, 13), (1, 50), (50, 1), (1, 1)])
def test_where_no_crop_fits_the_largest_centred_one_is_taken(height: int, width: int) -> None:
    """A panorama would be squeezed into a square."""
    crop = draw_crop(height, width, TrainView(scale=(50, 60)), np.random.default_rng(0))
    assert crop[:4] == RandomResizedCrop.get_params(torch.empty(3, height, width), [50, 60], [3 / 4, 4 / 3])


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (1.0, 400, 400), (0.5, 150, 250)])
def test_the_share_of_mirrored_crops_is_what_was_asked_for(flip: float, low: int, high: int) -> None:
    """Digits and text would be learned mirrored."""
    random = np.random.default_rng(0)
    mirrored = sum(draw_crop(9, 7, TrainView(flip=flip), random).flip for _ in range(400))
    assert low <= mirrored <= high


# ---- views that can be drawn again, kept and replayed ----

LOOKED = Preprocessing(size=21, interpolation="bicubic", crop_fraction=0.8)


def test_what_is_random_belongs_to_seed_epoch_and_id_by_the_documented_rule() -> None:
    """Images added to a folder would change the views of all others: `embed` and a later training would differ."""
    number = int.from_bytes(hashlib.sha256("cat/ä.png".encode()).digest()[:8], "little")
    expected = np.random.default_rng((3, 5, number)).integers(0, 2**60, 4)
    for position in (0, 7):
        np.testing.assert_array_equal(Sample(3, 5, position, "cat/ä.png").random.integers(0, 2**60, 4), expected)
    others = [Sample(4, 5, 0, "cat/ä.png"), Sample(3, 6, 0, "cat/ä.png"), Sample(3, 5, 0, "cat/a.png")]
    drawn = {tuple(sample.random.integers(0, 2**60, 4)) for sample in others}
    assert len(drawn | {tuple(expected)}) == 4


def test_a_sample_s_numbers_begin_anew_whenever_they_are_asked_for() -> None:
    """A view that draws twice would depend on who looked before it."""
    sample = Sample(3, 5, 0, "a")
    assert sample.random.random() == sample.random.random()


def as_array() -> np.ndarray:
    return photograph(97, 131)


def as_jpeg() -> Picture:
    opened = open_picture(jpeg_file(Image.fromarray(photograph(97, 131)), restart_marker_blocks=1))
    assert isinstance(opened, Picture)
    return opened


def as_large_jpeg() -> Picture:
    """For views of 21 pixels some crops are decoded at a half of their size or less, some are not."""
    opened = open_picture(jpeg_file(Image.fromarray(photograph(300, 410)), quality=92))
    assert isinstance(opened, Picture)
    return opened


@pytest.mark.parametrize("source", [as_array, as_jpeg, as_large_jpeg])
@pytest.mark.parametrize("views", [0, 1, 4])
def test_recorded_views_are_those_of_a_live_training_and_their_crops_give_them_again(source, views: int) -> None:
    """Stored rows would be of other pixels than a live teacher sees in the same epoch, or than the student is shown."""
    train = TrainView(scale=(0.1, 0.9))
    sample = Sample(3, 99, 0, "a.jpg")
    images, crops = RecordedViews(train, LOOKED, views)(source(), sample)
    assert images.shape == (1 + views, 3, 21, 21)
    assert images.dtype == torch.uint8
    assert crops.shape == (1 + views, 5)
    assert crops.dtype == np.int32
    assert not crops[0].any()
    assert torch.equal(images[0], evaluation_view(source(), LOOKED))
    live = RandomView(train, 21)
    for view in range(views):
        assert torch.equal(images[1 + view], live(source(), sample._replace(epoch=view)))
        *box, flip = crops[1 + view].tolist()
        assert torch.equal(images[1 + view], cut(source(), Crop(*box, bool(flip)), 21))
    assert all(view.permute(1, 2, 0).is_contiguous() for view in images)


def test_several_views_of_a_picture_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`embed --views 16` would spend its time on decoding the same file seventeen times."""
    whole, calls = jpeg.whole, []
    monkeypatch.setattr(jpeg, "whole", lambda data: calls.append("whole") or whole(data))
    monkeypatch.setattr(jpeg, "part", lambda *_, **__: pytest.fail("decoded around a crop"))
    RecordedViews(TrainView(), LOOKED, 5)(as_jpeg(), Sample(0, 0, 0, "a"))
    assert calls == ["whole"]


@pytest.mark.parametrize("source", [as_array, as_jpeg])
@pytest.mark.parametrize("size", [21, 34])
def test_a_replayed_view_is_the_part_that_was_looked_at_in_one_s_own_size(source, size: int) -> None:
    """The student would be taught the teacher's answer to another picture: the loss that replay is there to avoid."""
    kept = {0: Crop(3, 5, 60, 71, True), 1: Crop(20, 0, 33, 30, False), 2: None}
    view = pickle.loads(pickle.dumps(ReplayView(Kept(kept), size, LOOKED)))
    for epoch in (0, 1):
        crop = kept[epoch]
        assert crop is not None
        shown = view(source(), Sample(8, epoch, 4, "a"))
        assert torch.equal(shown, cut(source(), crop, size))
    shown = view(source(), Sample(8, 2, 4, "a"))
    expected = evaluation_view(source(), Preprocessing(size=size, interpolation="bicubic", crop_fraction=0.8))
    assert torch.equal(shown, expected)


class Kept:
    def __init__(self, crops: dict[int, Crop | None]):
        self.crops = crops

    def __call__(self, position: int, epoch: int) -> Crop | None:
        assert position == 4
        return self.crops[epoch]


@pytest.mark.parametrize("crop", [(60, 5, 40, 40), (5, 100, 40, 40), (-1, 0, 9, 9), (0, 0, 0, 9)])
def test_a_crop_outside_of_the_picture_is_refused_with_the_image(crop: tuple[int, int, int, int]) -> None:
    """An exchanged picture would be taught what the teacher said of the old one, of a part cut off at its edge."""
    view = ReplayView(Kept({0: Crop(*crop, False)}), 21, LOOKED)
    with pytest.raises(Refusal, match=r"crop of cat/1\.jpg, .* to lie in the picture, got one of 97 x 131: .*embed"):
        view(as_jpeg(), Sample(0, 0, 4, "cat/1.jpg"))


def test_a_centre_crop_is_told_as_before_there_were_others():
    """Every run and every table begun before then would be refused as made with other images."""
    assert list(Preprocessing().identity()) == ["size", "mean", "std", "interpolation", "crop_fraction"]
    assert Preprocessing(crop="squash").identity()["crop"] == "squash"
