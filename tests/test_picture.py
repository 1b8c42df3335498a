"""Pictures of every kind of trouble, made here, decoded or refused by name."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from compress_ssl import jpeg, picture
from compress_ssl.picture import KINDS, SUFFIXES, Box, Picture, UnusableImage, decode, open_picture

HEIGHT, WIDTH = 5, 7


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def noise(*, channels: int = 3, low: int = 20, high: int = 236, seed: int = 0) -> np.ndarray:
    """(5, 7, channels) uint8, or (5, 7) for one channel."""
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def deep_grey() -> np.ndarray:
    """(5, 7) uint16 over nearly the whole range."""
    return np.random.default_rng(1).integers(256, 65_536, (HEIGHT, WIDTH), dtype=np.uint16)


def png(rows: np.ndarray, *, bits: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG written by hand, for what Pillow cannot write: 16-bit colour. `rows` is (H, W * channels), big-endian."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    height, samples = rows.shape
    width = samples // {0: 1, 2: 3, 6: 4}[colour]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    body = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def trns(*values: int) -> bytes:
    """The chunk that makes one grey value or one colour of a PNG transparent."""
    body = b"".join(value.to_bytes(2, "big") for value in values)
    return len(body).to_bytes(4, "big") + b"tRNS" + body + zlib.crc32(b"tRNS" + body).to_bytes(4, "big")


def palette_image() -> Image.Image:
    return Image.fromarray(noise()).quantize(11)


def with_alpha(alpha: int | np.ndarray) -> Image.Image:
    image = Image.fromarray(noise())
    image.putalpha(Image.fromarray(np.broadcast_to(np.uint8(alpha), (HEIGHT, WIDTH)).copy()))
    return image


@functools.cache
def unusual_files() -> dict[str, tuple[str, bytes]]:
    """Name -> (kind, file) of what "skip" refuses and "convert" converts."""
    rgb = Image.fromarray(noise())
    other = Image.fromarray(noise(seed=9))
    deep_rgb = np.random.default_rng(2).integers(256, 65_536, (HEIGHT, WIDTH * 3), dtype=np.uint16)
    return {
        "cmyk.jpg": ("cmyk", encode(rgb.convert("CMYK"), "JPEG")),
        "cmyk.tif": ("cmyk", encode(rgb.convert("CMYK"), "TIFF")),
        "grey16.png": ("16-bit", encode(Image.fromarray(deep_grey()), "PNG")),
        "grey16.tif": ("16-bit", encode(Image.fromarray(deep_grey()), "TIFF")),
        "grey16.pgm": ("16-bit", b"P5 7 5 65535\n" + deep_grey().astype(">u2").tobytes()),
        "rgb16.ppm": ("16-bit", b"P6 7 5 65535\n" + deep_rgb.astype(">u2").tobytes()),
        "rgb16.png": ("16-bit", png(deep_rgb, bits=16, colour=2)),
        "palette.png": ("palette", encode(palette_image(), "PNG")),
        "palette.gif": ("palette", encode(palette_image(), "GIF")),
        "palette_transparent.png": ("palette", encode(palette_image(), "PNG", transparency=0)),
        "rgba.png": ("transparent", encode(with_alpha(100), "PNG")),
        "opaque.png": ("transparent", encode(with_alpha(255), "PNG")),
        "rgba.webp": ("transparent", encode(with_alpha(100), "WEBP", lossless=True)),
        "grey_alpha.png": ("transparent", encode(with_alpha(100).convert("LA"), "PNG")),
        "key_colour.png": ("transparent", encode(rgb, "PNG", transparency=(1, 2, 3))),
        "animated.gif": ("animated", encode(palette_image(), "GIF", save_all=True, append_images=[other])),
        "animated.png": ("animated", encode(rgb, "PNG", save_all=True, append_images=[other])),
        "animated.webp": ("animated", encode(rgb, "WEBP", save_all=True, append_images=[other])),
        "pages.tif": ("animated", encode(rgb, "TIFF", save_all=True, append_images=[other])),
    }


@functools.cache
def hopeless_files() -> dict[str, tuple[str, bytes]]:
    """Name -> (kind, file) of what nothing can be made of."""
    large = np.random.default_rng(3).integers(0, 256, (61, 67, 3), dtype=np.uint8)
    jpeg, whole_png = encode(Image.fromarray(large), "JPEG"), encode(Image.fromarray(large), "PNG")
    webp, gif = encode(Image.fromarray(large), "WEBP"), encode(Image.fromarray(large[..., 0]), "GIF")
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    return {
        "nothing.jpg": ("empty", b""),
        "text.jpg": ("broken", b"<html>404 not found</html>"),
        "zeros.png": ("broken", bytes(4096)),
        "postscript.eps": ("broken", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 7\nshowpage\n"),
        "telephone.heic": ("broken", heic),
        "float.tif": ("broken", encode(Image.fromarray(np.ones((HEIGHT, WIDTH), dtype=np.float32)), "TIFF")),
        "int32.tif": ("broken", encode(Image.fromarray(np.full((HEIGHT, WIDTH), 70_000, dtype=np.int32)), "TIFF")),
        "half.jpg": ("truncated", jpeg[: len(jpeg) // 2]),
        "half.png": ("truncated", whole_png[: len(whole_png) // 2]),
        "half.webp": ("truncated", webp[: len(webp) // 2]),
        "half.gif": ("truncated", gif[: len(gif) * 3 // 4]),
        "half.bmp": ("truncated", encode(Image.fromarray(large), "BMP")[:5000]),
        "two_bytes_short.jpg": ("truncated", jpeg[:-2]),
        "bomb.png": ("huge", encode(Image.new("1", (20_000, 10_000)), "PNG")),
    }


@pytest.mark.parametrize("name", unusual_files())
def test_skip_names_the_trouble_of(name: str) -> None:
    """A user would look for a CMYK file among 'broken' ones, or never hear that it was left out."""
    kind, data = unusual_files()[name]
    with pytest.raises(UnusableImage) as caught:
        decode(data)
    assert caught.value.kind == kind
    assert caught.value.detail


@pytest.mark.parametrize("name", unusual_files())
def test_convert_makes_a_picture_that_is_not_black_of(name: str) -> None:
    """The encoder would learn that all 16-bit or CMYK pictures are one and the same black one."""
    image = decode(unusual_files()[name][1], unusual="convert")
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.max() > 100
    assert len(np.unique(image)) > 5


@pytest.mark.parametrize("unusual", ["skip", "convert"])
@pytest.mark.parametrize("name", hopeless_files())
def test_nothing_is_made_of(name: str, unusual: str) -> None:
    """Half a photograph would enter training as a photograph with a grey lower half."""
    kind, data = hopeless_files()[name]
    with pytest.raises(UnusableImage) as caught:
        decode(data, unusual=unusual)
    assert caught.value.kind == kind, str(caught.value)


def test_every_kind_is_met_by_a_file_here() -> None:
    """A kind added later would be promised in the documentation and never tried."""
    assert {kind for kind, _ in (unusual_files() | hopeless_files()).values()} == set(KINDS)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_passes_exactly_in(form: str) -> None:
    """A lossless file would not be what the encoder sees."""
    np.testing.assert_array_equal(decode(encode(Image.fromarray(noise()), form)), noise())


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_pass_close_to_the_original_in(form: str) -> None:
    """A format a user's camera writes would be refused, or its channels swapped."""
    smooth = np.stack(np.meshgrid(np.linspace(30, 220, 37), np.linspace(30, 220, 41)), axis=-1)
    smooth = np.dstack([smooth, np.full((41, 37), 90.0)]).astype(np.uint8)
    decoded = decode(encode(Image.fromarray(smooth), form, quality=95))
    assert np.abs(decoded.astype(int) - smooth).mean() < 4


def test_a_jpeg_is_decoded_to_the_pixels_pillow_gives() -> None:
    """Embeddings would differ from those of every other program that reads the same file."""
    data = encode(Image.fromarray(noise()), "JPEG")
    np.testing.assert_array_equal(decode(data), np.array(Image.open(io.BytesIO(data))))


def test_grey_and_bilevel_pictures_are_repeated_over_three_channels() -> None:
    """A folder of scans or X-rays would be refused, or have one channel where encoders want three."""
    grey = noise(channels=1)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(grey), "PNG")), np.dstack([grey] * 3))
    bits = grey > 128
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits), "PNG")), np.dstack([bits * np.uint8(255)] * 3))


def test_the_result_can_be_written_to() -> None:
    """torch.from_numpy warns for every image, and an augmentation in place fails."""
    image = decode(encode(Image.fromarray(noise()), "PNG"))
    assert image.flags.writeable
    image[0, 0] = 0


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_becomes_its_high_byte_in(form: str) -> None:
    """Pillow's own conversion clips: every value above 255 turns white."""
    data = encode(Image.fromarray(deep_grey()), form)
    expected = (deep_grey() >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(data, unusual="convert"), np.dstack([expected] * 3))


def test_16_bit_colour_becomes_its_high_bytes() -> None:
    """The three channels of a 16-bit photograph would be scaled or ordered differently from a grey one."""
    rows = np.random.default_rng(4).integers(0, 65_536, (HEIGHT, WIDTH * 3), dtype=np.uint16)
    expected = (rows >> 8).astype(np.uint8).reshape(HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(decode(png(rows, bits=16, colour=2), unusual="convert"), expected)


def test_12_bit_tiff_keeps_its_brightness() -> None:
    """>> 8 leaves 4 of 12 bits: an X-ray comes out nearly black."""
    values = np.random.default_rng(5).integers(0, 4096, (4, 6), dtype=np.uint16)
    packed = bytearray()
    for first, second in values.reshape(-1, 2).tolist():  # two samples in three bytes
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    entries = [(256, 6), (257, 4), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 4), (279, len(packed))]
    header = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    for tag, value in entries:
        header += tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        header += value.to_bytes(4, "little")
    data = (header + bytes(4)).ljust(200, b"\0") + bytes(packed)
    np.testing.assert_array_equal(decode(data, unusual="convert")[..., 0], (values >> 4).astype(np.uint8))


def test_16_bit_tiff_whose_white_is_zero_is_not_a_negative() -> None:
    """Scanners write it; every picture would be inverted."""
    data = encode(Image.fromarray(deep_grey()), "TIFF", tiffinfo={262: 0})
    expected = ((65_535 - deep_grey().astype(int)) >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(data, unusual="convert")[..., 0], expected)


def test_16_bit_pictures_too_dark_for_8_bits_are_named_and_not_blackened() -> None:
    """A depth map in millimetres would become a black picture without a word."""
    dim = np.full((HEIGHT, WIDTH), 200, dtype=np.uint16)
    dim_colour = np.full((HEIGHT, WIDTH * 3), 200, dtype=np.uint16)
    for data in (encode(Image.fromarray(dim), "PNG"), png(dim_colour, bits=16, colour=2)):
        with pytest.raises(UnusableImage, match="black in 8 bits") as caught:
            decode(data, unusual="convert")
        assert caught.value.kind == "16-bit"


def test_a_16_bit_picture_that_is_black_stays_black() -> None:
    """The guard against blackened pictures would throw out honest ones."""
    assert not decode(encode(Image.fromarray(np.zeros((3, 4), dtype=np.uint16)), "PNG"), unusual="convert").any()


def test_transparent_red_lies_over_white() -> None:
    """Dropping the alpha channel shows whatever colour hides below it, mostly black."""
    alpha = np.array([[0, 1, 51], [128, 254, 255]], dtype=np.uint8)
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[..., 0], rgba[..., 3] = 255, alpha
    image = decode(encode(Image.fromarray(rgba), "PNG"), unusual="convert")
    np.testing.assert_array_equal(image[..., 0], 255)
    np.testing.assert_array_equal(image[..., 1], 255 - alpha)
    np.testing.assert_array_equal(image[..., 2], 255 - alpha)


def test_a_fully_transparent_black_picture_is_white() -> None:
    """A logo on nothing would be a black picture."""
    assert (decode(encode(Image.new("RGBA", (WIDTH, HEIGHT)), "PNG"), unusual="convert") == 255).all()


def test_a_transparent_palette_entry_lies_over_white() -> None:
    """The background of an icon would take the colour of its first palette entry."""
    image = palette_image()
    indices = np.array(image)
    converted = decode(encode(image, "PNG", transparency=int(indices[0, 0])), unusual="convert")
    expected = np.array(image.convert("RGB"))
    expected[indices == indices[0, 0]] = 255
    np.testing.assert_array_equal(converted, expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_of_a_png_lies_over_white(bits: int) -> None:
    """In 16 bits Pillow compares the full colour with halved pixels and finds nothing transparent."""
    scale = 1 if bits == 8 else 257
    rows = np.arange(10, 10 + HEIGHT * WIDTH * 3, dtype=np.uint16).reshape(HEIGHT, WIDTH * 3) * np.uint16(scale)
    key = [int(value) for value in rows[2, 3:6]]
    converted = decode(png(rows, bits=bits, colour=2, extra=trns(*key)), unusual="convert")
    expected = (rows // scale).astype(np.uint8).reshape(HEIGHT, WIDTH, 3)
    expected[2, 1] = 255
    np.testing.assert_array_equal(converted, expected)


def test_a_transparent_value_of_a_16_bit_grey_png_lies_over_white() -> None:
    """The empty border of a scan would be black."""
    values = deep_grey()
    data = png(values, bits=16, colour=0, extra=trns(int(values[3, 4])))
    expected = (values >> 8).astype(np.uint8)
    expected[values == values[3, 4]] = 255
    np.testing.assert_array_equal(decode(data, unusual="convert")[..., 1], expected)


def test_an_opaque_alpha_channel_changes_no_pixel() -> None:
    """Screenshots would shift in colour for a channel that says nothing."""
    np.testing.assert_array_equal(decode(encode(with_alpha(255), "PNG"), unusual="convert"), noise())


def test_palette_colours_are_looked_up() -> None:
    """Indices taken for brightness make noise of a picture."""
    image = palette_image()
    np.testing.assert_array_equal(decode(encode(image, "PNG"), unusual="convert"), np.array(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_first_frame_of_several_is_taken_in(form: str) -> None:
    """Which frame a picture stands for would depend on the library's mood."""
    data = encode(Image.fromarray(noise()), form, save_all=True, append_images=[Image.fromarray(noise(seed=9))])
    np.testing.assert_array_equal(decode(data, unusual="convert"), noise())


def test_cmyk_ink_is_turned_into_light() -> None:
    """Channels read as they stand show a negative."""
    ink = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    ink[:, :4, 1] = 255  # magenta on the left, paper on the right
    image = decode(encode(Image.fromarray(ink, mode="CMYK"), "TIFF"), unusual="convert")
    np.testing.assert_array_equal(image[:, :4], np.broadcast_to([255, 0, 255], (HEIGHT, 4, 3)))
    np.testing.assert_array_equal(image[:, 4:], 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Every portrait from a telephone would lie on its side, for the encoder and on the page."""
    upright = noise()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    for form in ("PNG", "TIFF"):
        data = encode(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif)
        np.testing.assert_array_equal(decode(data), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduced", [False, True])
def test_part_of_a_turned_jpeg_is_part_of_the_upright_one(orientation: int, reduced: bool) -> None:
    """Crops of a telephone's portraits would come from another place of the picture, or lie on their side."""
    rows, columns = np.mgrid[:203, :310]
    smooth = np.stack([rows, columns * 0.8, 255 - rows], axis=-1).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(Image.fromarray(smooth), "JPEG", exif=exif, quality=95, restart_marker_blocks=5)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    opened = open_picture(data)
    assert isinstance(opened, Picture)
    assert opened.shape == upright.shape
    np.testing.assert_array_equal(np.asarray(opened), upright)
    box = Box(33, 21, 120, 150)
    pixels, inside = opened.part(box, enough=15 if reduced else 150)
    if not reduced:
        assert inside == (0, 0, 120, 150)
        np.testing.assert_array_equal(pixels, upright[33:153, 21:171])
        return
    assert inside[2:] == (60, 75)
    corners = inside.left, inside.top, inside.left + inside.width, inside.top + inside.height
    small = Image.fromarray(pixels).resize((15, 12), Image.Resampling.BILINEAR, box=corners)
    expected = Image.fromarray(upright).resize((15, 12), Image.Resampling.BILINEAR, box=(21, 33, 171, 153))
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).max() <= 2


def test_a_colour_profile_changes_no_pixel() -> None:
    """Photographs with a profile would be read by other rules than before."""
    data = encode(
        Image.fromarray(noise()), "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    np.testing.assert_array_equal(decode(data), np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("name", hopeless_files() | unusual_files())
def test_without_the_quick_way_the_answers_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which images are skipped, and why, would depend on what else is installed."""
    kind, data = (hopeless_files() | unusual_files())[name]
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    with pytest.raises(UnusableImage) as caught:
        decode(data)
    assert caught.value.kind == kind


@pytest.mark.parametrize("name", [name for name in hopeless_files() if name.endswith(".jpg")])
def test_a_picture_that_is_decoded_later_has_the_troubles_of_one_decoded_now(name: str) -> None:
    """Half a photograph would be found out in evaluation and trained on in training."""
    kind, data = hopeless_files()[name]

    def part() -> None:
        opened = open_picture(data)
        assert isinstance(opened, Picture)
        opened.part(Box(0, 0, 5, 5), enough=5)

    with pytest.raises(UnusableImage) as caught:
        part()
    assert caught.value.kind == kind


def test_the_size_of_a_jpeg_is_checked_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a gigapixel would take the memory of the machine before it is refused."""
    monkeypatch.setattr(jpeg, "whole", None)
    monkeypatch.setattr(picture, "_by_pillow", None)
    with pytest.raises(UnusableImage, match="7 x 5 pixels, more than 34") as caught:
        decode(encode(Image.fromarray(noise()), "JPEG"), max_pixels=34)
    assert caught.value.kind == "huge"


@pytest.mark.parametrize("part", [False, True])
def test_where_the_quick_way_doubts_pillow_decides(part: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with harmless flaws that every viewer shows would be left out of the data."""
    data = encode(Image.fromarray(noise()), "JPEG")
    monkeypatch.setattr(jpeg, "_decoded", lambda *_, **__: None)
    opened = open_picture(data)
    assert isinstance(opened, Picture)
    pixels = opened.part(Box(1, 2, 3, 4), enough=1)[0] if part else opened.whole()
    expected = np.array(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels, expected[1:4, 2:6] if part else expected)


def test_damaged_exif_does_not_cost_the_picture() -> None:
    """One bad byte written by a photo program would throw out an intact photograph."""
    data = encode(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


def test_a_camera_jpeg_with_a_second_picture_is_not_animated() -> None:
    """Half of all telephones write MPO; their whole camera roll would be skipped."""
    image = Image.fromarray(noise())
    data = encode(image, "MPO", save_all=True, append_images=[image])
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


def test_size_is_checked_against_the_callers_limit() -> None:
    """A user who lowers the limit for a small machine would still run out of memory, one who raises it be refused."""
    data = encode(Image.fromarray(noise()), "PNG")
    assert decode(data, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(UnusableImage) as caught:
        decode(data, max_pixels=HEIGHT * WIDTH - 1)
    assert caught.value.kind == "huge"


def test_the_limit_can_be_raised_above_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Satellite images could not be used at all: Pillow refuses them before we are asked."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encode(Image.fromarray(noise()), "PNG")
    assert decode(data, max_pixels=35).shape == (HEIGHT, WIDTH, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(UnusableImage) as caught:
        decode(data, max_pixels=34)
    assert caught.value.kind == "huge"


def test_truncated_files_are_refused_even_where_pillow_was_told_to_accept_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that sets this switch on import would turn the lower half of damaged photographs grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnusableImage) as caught:
        decode(hopeless_files()["half.jpg"][1])
    assert caught.value.kind == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_no_warning_reaches_the_user() -> None:
    """A progress bar over a million images would drown in Pillow's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encode(Image.new("1", (10_000, 9_000)), "PNG")).shape == (9_000, 10_000, 3)  # warns above 89 Mpx
        decode(encode(palette_image(), "PNG", transparency=bytes([0, 100, 200])), unusual="convert")


def test_threads_leave_pillow_as_they_found_it() -> None:
    """Two decoding threads would leave the process with silenced warnings or somebody else's limits."""
    before = (list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    data = encode(Image.fromarray(np.zeros((211, 223, 3), dtype=np.uint8)), "JPEG")
    threads = [threading.Thread(target=lambda: [decode(data, max_pixels=10**9) for _ in range(30)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == before


def test_trouble_survives_the_way_out_of_a_worker_process() -> None:
    """The main process would die of a TypeError while unpickling instead of counting one broken file."""
    trouble = pickle.loads(pickle.dumps(UnusableImage("huge", "9 x 9 pixels")))
    assert (trouble.kind, trouble.detail, str(trouble)) == ("huge", "9 x 9 pixels", "huge: 9 x 9 pixels")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_damaged_bytes_never_leave_a_stack_trace_of_pillows(form: str) -> None:
    """One bad sector in a million files would end a night of training."""
    rng = np.random.default_rng(6)
    whole = encode(Image.fromarray(noise()), form)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for position in rng.integers(0, len(data), 3):
            data[position] = rng.integers(256)
        with contextlib.suppress(UnusableImage):
            assert decode(bytes(data), unusual="convert", max_pixels=10**6).ndim == 3


def test_suffixes_are_lower_case_with_a_dot() -> None:
    """A suffix that cannot match would silently leave its files out."""
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
