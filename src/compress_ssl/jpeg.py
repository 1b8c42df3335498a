"""A JPEG's header, and as few of its pixels as are asked for, by libjpeg-turbo (simplejpeg).

Entropy decoding is most of the work and runs from the first byte on, so a JPEG is made smaller before it is decoded:
rows below the wanted box are cut off by writing a smaller height into the header, and where the file has restart
markers (`compress-ssl shrink` writes some in every row of blocks, many cameras one a row) the stretches of data
between them that lie outside of the box are left out altogether. What is decoded is what a whole decoding has there,
bit by bit: a margin keeps the box out of reach of the interpolation of colours at the new edges.
For photographs of many megapixels the inverse transform can make every 2nd, 4th or 8th pixel only.

Only what every decoder agrees on comes this way: baseline and progressive files of 8 bits, grey or YCbCr. The rest
(`read_header` says None) is Pillow's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: Pillow decodes everything
    simplejpeg = None

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SEQUENTIAL, _FRAMES = (0xC0, 0xC1), (0xC0, 0xC1, 0xC2)  # kinds of frame headers; C2 is progressive
_DHT, _SOS, _DQT, _DRI, _JFIF, _EXIF, _ADOBE, _COM = 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE, 0xFE
_SKIPPED = frozenset((*range(0xE0, 0xF0), _COM, _DHT, _DQT))
_RESTART = 0xD0  # eight numbers in turn, D0 to D7
_MARGIN = 4  # pixels: the interpolation of halved colours reaches 2 beyond the box, whole ones none


class Header(NamedTuple):
    """What the bytes before the pixels say."""

    height: int  # as stored, before EXIF orientation
    width: int
    block: tuple[int, int]  # height and width in pixels of what is coded together
    restart: int  # blocks between two restart markers, 0 without any
    one_scan: bool  # sequential and all components together: blocks lie in reading order
    has_exif: bool
    size_at: int  # where height and width stand in the file
    scan_at: int  # where the coded pixels begin


def read_header(data: bytes) -> Header | None:
    """The header of a plain JPEG, None for anything else; 5 us, no pixel is decoded."""
    if simplejpeg is None or data[:2] != _START:
        return None
    frame: tuple[int, bytes, int] | None = None
    restart, has_exif, has_jfif, transform, place = 0, False, False, None, 2
    while True:
        start = data[place : place + 4]
        body = place + 4
        if len(start) < 4 or start[0] != 0xFF:
            return None
        marker, length = start[1], start[2] * 256 + start[3]
        place += 2 + length
        if marker in _SKIPPED:
            if marker == _JFIF:
                has_jfif |= data[body : body + 5] == b"JFIF\0"
            elif marker == _EXIF:
                has_exif |= data[body : body + 6] == b"Exif\0\0"
            elif marker == _ADOBE and data[body : body + 5] == b"Adobe":
                transform = data[body + 11] if body + 12 <= min(place, len(data)) else -1
        elif marker in _FRAMES and frame is None:
            frame = marker, data[body:place], body + 1
        elif marker == _DRI:
            restart = int.from_bytes(data[body : body + 2], "big")
        elif marker == _SOS:
            break
        else:
            return None
        if length < 2:
            return None
    if frame is None:
        return None
    marker, description, size_at = frame
    if len(description) < 6 or description[0] != 8 or len(description) != 6 + 3 * description[5]:
        return None
    height, width = int.from_bytes(description[1:3], "big"), int.from_bytes(description[3:5], "big")
    numbers, samplings = description[6::3], description[7::3]
    plain_colours = transform == 1 or (transform is None and (has_jfif or numbers == b"\1\2\3"))
    if not (height and width and (len(numbers) == 1 or (len(numbers) == 3 and plain_colours))):
        return None
    block = (8, 8)
    if len(numbers) == 3:
        block = 8 * max(sampling & 15 for sampling in samplings), 8 * max(sampling >> 4 for sampling in samplings)
    one_scan = marker in _SEQUENTIAL and data[body : body + 1] == bytes([len(numbers)])
    return Header(height, width, block, restart, one_scan, has_exif, size_at, place)


def whole(data: bytes) -> np.ndarray | None:
    """All pixels (H, W, 3) uint8 as stored, or None where the decoder had any doubt."""
    return _decoded(data, 1, strict=True)


def part(
    data: bytes, header: Header, box: tuple[int, int, int, int], *, reduce: int = 1
) -> tuple[np.ndarray, int, int] | None:
    """Pixels around a box.

    Args:
        header: of this very file.
        box: top, left, height, width in pixels as stored.
        reduce: 1, 2, 4 or 8: this many pixels of the file for one of the result, either way.
    Returns: (h, w, 3) uint8 that holds at least the box; the row and column of the file, both multiples of `reduce`,
        at which it begins. None where the decoder had any doubt: Pillow shall say what it is.
    """
    margin = _MARGIN * reduce if header.block != (8, 8) else 0
    smaller, top, left, ends_well = _smaller(data, header, box, margin)
    pixels = _decoded(smaller, reduce, strict=ends_well)
    return None if pixels is None else (pixels, top, left)


def _decoded(data: bytes | bytearray, reduce: int, *, strict: bool) -> np.ndarray | None:
    least = (0, 0)
    try:
        if reduce > 1:
            height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
            least = -(-height // reduce), -(-width // reduce)
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1], strict=strict)
    except ValueError:
        return None
    return pixels if reduce == 1 or pixels.shape[:2] == least else None


def _smaller(
    data: bytes, header: Header, box: tuple[int, int, int, int], margin: int
) -> tuple[bytes | bytearray, int, int, bool]:
    """A JPEG of fewer blocks that holds the box and its margin.

    Returns: the file; row and column of the whole at which it begins; whether its data end where its header says.
    """
    everything = (0, 0, header.height, header.width)
    if box == everything or not header.one_scan or data[-2:] != _END:
        return data, 0, 0, True  # the latter because a file that is cut off must be decoded whole to be found out
    top, left, height, width = box
    block_height, block_width = header.block
    columns = -(-header.width // block_width)
    across = 1  # stretches between restart markers in a row of blocks
    down = 1  # rows of blocks in one stretch
    stretches = None
    if header.restart and (columns % header.restart == 0 or header.restart % columns == 0):
        across, down = max(1, columns // header.restart), max(1, header.restart // columns)
        stretches = _stretches(data, header, -(-header.height // (block_height * down)), across)
    if stretches is None:
        bottom = _up(top + height + margin, block_height)
        if bottom >= header.height:
            return data, 0, 0, True
        shorter = bytearray(data)
        shorter[header.size_at : header.size_at + 2] = bottom.to_bytes(2, "big")
        return shorter, 0, 0, False
    tall, wide = block_height * down, -(-columns // across) * block_width  # pixels of one stretch
    rows = slice(max(0, top - margin) // tall, -(-min(header.height, top + height + margin) // tall))
    some = slice(max(0, left - margin) // wide, -(-min(header.width, left + width + margin) // wide))
    starts, ends = stretches[0][rows, some], stretches[1][rows, some]
    first, last = starts[:, 0].tolist(), (ends[:, -1] + 2).tolist()  # each row takes the marker behind it along
    smaller = bytearray(data[: header.scan_at])
    offsets = []
    for start, end in zip(first, last, strict=True):
        offsets.append(len(smaller) - start)
        smaller += data[start:end]
    markers = np.frombuffer(smaller, np.uint8)
    places = ends + np.array(offsets)[:, None] + 1
    markers[places.ravel()] = _RESTART + np.arange(places.size) % 8
    markers[places[-1, -1]] = _END[1]
    new = min(header.height, rows.stop * tall) - rows.start * tall, min(header.width, some.stop * wide)
    new = new[0], new[1] - some.start * wide
    markers[header.size_at : header.size_at + 4] = np.frombuffer(
        new[0].to_bytes(2, "big") + new[1].to_bytes(2, "big"), np.uint8
    )
    return smaller, rows.start * tall, some.start * wide, True


def _stretches(data: bytes, header: Header, rows: int, across: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Starts and ends (rows, across) of the data between restart markers, None if these are not all there in turn."""
    scan = np.frombuffer(data, np.uint8)[header.scan_at :]
    found = np.flatnonzero(scan[:-1] == 0xFF)
    kinds = scan[found + 1]
    ends = found[kinds != 0]  # FF 00 is data, everything else a marker
    kinds = kinds[kinds != 0]
    expected = _RESTART + np.arange(rows * across) % 8
    expected[-1] = _END[1]
    if not np.array_equal(kinds, expected):
        return None
    ends = (ends + header.scan_at).reshape(rows, across)
    starts = np.concatenate([[header.scan_at], ends.ravel()[:-1] + 2]).reshape(rows, across)
    return starts, ends


def _up(pixels: int, block: int) -> int:
    return -(-pixels // block) * block
