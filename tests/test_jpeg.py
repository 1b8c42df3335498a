"""Plain JPEGs, whole and in part, against Pillow's pixels: equal, not close."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compress_ssl import jpeg

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "restarts in every block": {"restart_marker_blocks": 1},
    "restarts every three blocks": {"restart_marker_blocks": 3},
    "restarts in every row": {"restart_marker_rows": 1},
    "restarts in every second row": {"restart_marker_rows": 2},
}
SIZES = [(97, 131), (96, 144), (33, 17), (5, 7), (8, 300), (119, 48)]


def texture(height: int, width: int) -> Image.Image:
    """Edges, colours and noise in one picture: what interpolation at a wrong border changes."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 3 + columns / 7), np.sign(np.sin(columns / 5)), np.cos(rows / 11)], axis=-1)
    noise = np.random.default_rng(height * width).normal(0, 25, (height, width, 3))
    return Image.fromarray((128 + 90 * waves + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **({"quality": 88} | options))
    return buffer.getvalue()


def pillows(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def header_of(data: bytes) -> jpeg.Header:
    header = jpeg.read_header(data)
    assert header is not None
    return header


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0", "grey"])
@pytest.mark.parametrize("size", SIZES)
def test_whole_and_part_are_pillows_pixels(size: tuple[int, int], sampling: str, kind: str) -> None:
    """The same file would be other pixels in another program, or in another crop of this one."""
    image = texture(*size)
    options = KINDS[kind] | ({} if sampling == "grey" else {"subsampling": sampling})
    data = encode(image.convert("L") if sampling == "grey" else image, **options)
    expected, header = pillows(data), header_of(data)
    assert (header.height, header.width) == size
    np.testing.assert_array_equal(jpeg.whole(data), expected)
    random = np.random.default_rng(0)
    for _ in range(6):
        height, width = (int(random.integers(1, side + 1)) for side in size)
        top, left = int(random.integers(size[0] - height + 1)), int(random.integers(size[1] - width + 1))
        found = jpeg.part(data, header, (top, left, height, width))
        assert found is not None
        pixels, row, column = found
        got = pixels[top - row : top - row + height, left - column : left - column + width]
        np.testing.assert_array_equal(got, expected[top : top + height, left : left + width])


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_part_is_part_of_the_reduced_whole(kind: str, reduce: int) -> None:
    """A crop of a large photograph would be shifted against the same crop of a small one."""
    data = encode(texture(260, 410), **KINDS[kind])
    small = jpeg.part(data, header_of(data), (0, 0, 260, 410), reduce=reduce)
    found = jpeg.part(data, header_of(data), (80, 128, 96, 160), reduce=reduce)
    assert small is not None
    assert found is not None
    assert small[0].shape[:2] == (-(-260 // reduce), -(-410 // reduce))
    top, left = (80 - found[1]) // reduce, (128 - found[2]) // reduce
    got = found[0][top : top + 96 // reduce, left : left + 160 // reduce]
    whole = small[0][80 // reduce : 176 // reduce, 128 // reduce : 288 // reduce]
    np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [
        ("plain", 96, 480),  # all rows from the first to those of the margin
        ("restarts in every row", 48, 480),
        ("restarts every three blocks", 48, 48),
        ("progressive", 320, 480),
    ],
)
def test_what_lies_outside_of_the_box_is_not_decoded(kind: str, rows: int, columns: int) -> None:
    """Every crop would cost as much as its whole photograph."""
    data = encode(texture(320, 480), subsampling="4:2:0", **KINDS[kind])
    found = jpeg.part(data, header_of(data), (56, 56, 30, 30))
    assert found is not None
    assert found[0].shape[:2] == (rows, columns)


def test_everything_that_is_not_plain_is_left_to_pillow() -> None:
    """Ink would be taken for light, or colours that were never YCbCr turned as if they were."""
    image = texture(20, 30)
    plain = encode(image)
    assert jpeg.read_header(plain) is not None
    twelve_bits = plain.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    arithmetic = plain.replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11")
    assert plain not in (twelve_bits, arithmetic)
    png = io.BytesIO()
    image.save(png, "PNG")
    for data in (
        *(b"", b"\xff\xd8", plain[:30], plain[1:], png.getvalue(), twelve_bits, arithmetic),
        *(encode(image.convert("CMYK")), encode(image, keep_rgb=True)),
    ):
        assert jpeg.read_header(data) is None


def test_without_its_library_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a wheel no JPEG could be read at all."""
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert jpeg.read_header(encode(texture(20, 30))) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_ends_early_is_found_out_whatever_the_box(kind: str) -> None:
    """A cut off photograph would be trained on wherever the crop lies above the cut, and skipped elsewhere."""
    data = encode(texture(97, 131), **KINDS[kind])
    for length in (len(data) - 2, len(data) * 2 // 3):
        assert jpeg.whole(data[:length]) is None
        assert jpeg.part(data[:length], header_of(data), (0, 0, 9, 9)) is None


def test_lost_restart_markers_are_never_guessed() -> None:
    """After one lost stretch every crop would be made of the wrong blocks."""
    data = bytearray(encode(texture(97, 131), **KINDS["restarts in every row"]))
    place = bytes(data).index(b"\xff\xd2")
    data[place + 1] = 0xD5
    expected = pillows(bytes(data))
    found = jpeg.part(bytes(data), header_of(bytes(data)), (60, 20, 30, 50))
    if found is not None:
        np.testing.assert_array_equal(found[0][60 - found[1] :][:30, 20 - found[2] :][:, :50], expected[60:90, 20:70])


def test_damage_is_an_answer_and_not_an_exception() -> None:
    """One bad sector among a million files would end a night of training."""
    random = np.random.default_rng(7)
    for kind in KINDS.values():
        whole = encode(texture(60, 90), **kind)
        for _ in range(40):
            data = bytearray(whole)
            for place in random.integers(2, len(data), 4):
                data[place] = random.integers(256)
            header = jpeg.read_header(bytes(data))
            if header is not None and header.height * header.width < 10**6:
                jpeg.whole(bytes(data))
                box = (header.height // 3, header.width // 3, -(-header.height // 3), -(-header.width // 3))
                jpeg.part(bytes(data), header, box)
