"""One picture: encoded bytes -> (H, W, 3) uint8 RGB, or a named trouble; never a guess and never a silent black image.

Grey and RGB pass. Everything else is told apart from its header, before a pixel is decoded:

| kind | what it is | under "skip" | under "convert" |
|---|---|---|---|
| empty | no bytes at all | raises | raises |
| broken | not a picture, damaged, or samples without an agreed scale (32-bit integers, floats) | raises | raises |
| truncated | the end of the file is missing | raises | raises |
| huge | more than `max_pixels` | raises | raises |
| animated | several frames or pages | raises | first frame |
| cmyk | ink, not light | raises | Pillow's arithmetic, no colour profile |
| 16-bit | more than 8 bits a sample | raises | the high 8 bits (value >> 8) |
| palette | indexed colours, so most GIF files | raises | the colours looked up |
| transparent | an alpha channel or a transparent colour, even where all of it is opaque | raises | over white |

A picture with several of the last five is named after the first of them in this order.
EXIF orientation is applied, so a telephone's portrait is upright for the encoder as it is for the reader. The
second picture that many cameras append to a JPEG (MPO: preview, depth) does not make it animated.
A 16-bit picture too dark to survive `>> 8` raises "16-bit" even under "convert": it would come out black.

Plain JPEG files are decoded by libjpeg-turbo itself (`compress_ssl.jpeg`), whole or only around the crop that is
wanted; Pillow has every other file, and the last word on every JPEG that the quick way doubts. Pixels are the same.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from compress_ssl import jpeg

KINDS = ("empty", "broken", "truncated", "huge", "animated", "cmyk", "16-bit", "palette", "transparent")
MAX_PIXELS = 178_956_970  # where Pillow itself speaks of a decompression bomb: 0.5 GB as RGB

# File names that promise a picture. HEIC, which cannot be read, is among them: better listed as broken than left out.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".heic", ".heif"),
)

# Raster formats only: among the others Pillow would run a PostScript interpreter (EPS) on a stranger's file.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB")
_SEVERAL_FRAMES = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pixels that a JPEG's own reduction leaves for one of the view. Views of 200 photographs stay at 51 to 53 dB (median;
# one in twenty below 45 to 49) of those from all pixels; with 2 it is 46 to 49, with 1 only 37 to 39.
_ROOM = 3


class UnusableImage(Exception):
    """An image that cannot be used as it is: `kind` is one of KINDS, `detail` says what was found."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)  # both in args: the exception survives the way out of a worker process
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def decode(data: bytes, *, unusual: Literal["skip", "convert"] = "skip", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one encoded image.

    Args:
        data: the whole file.
        unusual: "skip" raises for every kind in KINDS; "convert" only where there is nothing sensible to convert to.
        max_pixels: more than this (width times height) is "huge"; looked up before pixels are decoded.
    Returns: (H, W, 3) uint8 RGB, C-contiguous, writable; grey repeated over the channels.
    Raises: UnusableImage with one of KINDS.
    """
    picture = open_picture(data, unusual=unusual, max_pixels=max_pixels)
    return picture.whole() if isinstance(picture, Picture) else picture


def open_picture(
    data: bytes, *, unusual: Literal["skip", "convert"] = "skip", max_pixels: int = MAX_PIXELS
) -> Picture | np.ndarray:
    """Like `decode`, but a plain JPEG is decoded later, and only as far as it is asked for.

    Raises: UnusableImage with one of KINDS; of a `Picture`, what its header does not tell comes when it is decoded.
    """
    header = jpeg.read_header(data)
    if header is None:
        return _by_pillow(data, unusual, max_pixels)
    if header.height * header.width > max_pixels:
        raise UnusableImage("huge", f"{header.width} x {header.height} pixels, more than {max_pixels}")
    return Picture(data, header, unusual, max_pixels)


class Box(NamedTuple):
    """Part of a picture, in its pixels and fractions of them."""

    top: float
    left: float
    height: float
    width: float


class Picture:
    """A JPEG whose size is known and whose pixels are not decoded yet; `np.asarray` gives them all.

    shape: (H, W, 3), upright.
    """

    def __init__(self, data: bytes, header: jpeg.Header, unusual: Literal["skip", "convert"], max_pixels: int) -> None:
        self._data, self._header, self._unusual, self._max_pixels = data, header, unusual, max_pixels
        self._turn = _orientation_of_jpeg(data) if header.has_exif else 1
        height, width = header.height, header.width
        self.shape = (height, width, 3) if self._turn < 5 else (width, height, 3)
        self._several = False
        self._kept: np.ndarray | None = None

    @property
    def encoded(self) -> bytes:
        """The whole file."""
        return self._data

    def keep(self) -> None:
        """Several views will be made: once any of them needs all pixels around it, decode the whole and keep it."""
        self._several = True

    def whole(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, C-contiguous, writable; raises UnusableImage."""
        pixels = jpeg.whole(self._data)
        if pixels is None or pixels.shape[:2] != (self._header.height, self._header.width):
            return _by_pillow(self._data, self._unusual, self._max_pixels)
        return _upright(pixels, self._turn)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self.whole().astype(dtype or np.uint8, copy=False)

    def part(self, box: Box, *, enough: int) -> tuple[np.ndarray, Box]:
        """As few pixels as serve a view of a box.

        Args:
            box: whole numbers.
            enough: pixels of the view's shorter side. A box of many times as many, either way, comes reduced to a
                half, a quarter or an eighth, but not below three times as many.
        Returns: (h, w, 3) uint8, and the box in these pixels: all of them, bit by bit as in `whole`, if not reduced.
        Raises: UnusableImage.
        """
        room = min(box.height, box.width) / (_ROOM * enough)
        reduce = next((times for times in (8, 4, 2) if room >= times), 1)
        if self._several and reduce == 1:
            if self._kept is None:
                self._kept = self.whole()
            top, left, height, width = map(int, box)
            return self._kept[top : top + height, left : left + width], Box(0, 0, height, width)
        stored = _turned(box, self._turn, self.shape[0], self.shape[1])
        top, left, height, width = map(int, stored)
        found = jpeg.part(self._data, self._header, (top, left, height, width), reduce=reduce)
        if found is None and reduce > 1:
            reduce, found = 1, jpeg.part(self._data, self._header, (top, left, height, width))
        if found is None:
            top, left, height, width = map(int, box)
            pixels = _by_pillow(self._data, self._unusual, self._max_pixels)
            return pixels[top : top + height, left : left + width], Box(0, 0, height, width)
        pixels, first_row, first_column = found
        if reduce == 1:
            top, left = top - first_row, left - first_column
            pixels = pixels[top : top + height, left : left + width]
            return _upright(pixels, self._turn), Box(0, 0, box.height, box.width)
        inside = Box((top - first_row) / reduce, (left - first_column) / reduce, height / reduce, width / reduce)
        back = {6: 8, 8: 6}.get(self._turn, self._turn)
        return _upright(pixels, self._turn), _turned(inside, back, *pixels.shape[:2])


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Stored pixels -> as they are to be seen, by EXIF orientation; the same array where nothing is to be done."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels if turn == 1 else np.ascontiguousarray(pixels)


def _turned(box: Box, turn: int, height: int, width: int) -> Box:
    """A box of an upright picture of this height and width -> the same box in the stored one."""
    top, left, tall, wide = box
    if turn in (3, 4, 7, 8):
        top = height - top - tall
    if turn in (2, 3, 6, 7):
        left = width - left - wide
    return Box(left, top, wide, tall) if turn in (5, 6, 7, 8) else Box(top, left, tall, wide)


def _orientation_of_jpeg(data: bytes) -> int:
    _pillow.enter(MAX_PIXELS)
    try:
        orientation = _orientation(Image.open(io.BytesIO(data), formats=("JPEG",)))
        return orientation if orientation in _UPRIGHT else 1
    except Exception:  # whatever Pillow has against this file, it says when it is asked for the pixels
        return 1
    finally:
        _pillow.leave()


def _by_pillow(data: bytes, unusual: Literal["skip", "convert"], max_pixels: int) -> np.ndarray:
    if not data:
        raise UnusableImage("empty", "the file holds no bytes")
    _pillow.enter(max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise UnusableImage("huge", f"{width} x {height} pixels, more than {max_pixels}")
        if _has_no_scale(image):
            raise UnusableImage(
                "broken", "signed, 32-bit or float samples have no agreed scale: save it with 8 or 16 bits"
            )
        trouble = _unusual(image, data)
        if trouble is not None and unusual == "skip":
            raise trouble
        deep = _is_deep(image, data)  # asked before load(), which forgets part of the header
        image.load()
        return _to_rgb(image, deep=deep)
    except (UnusableImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnusableImage("huge", f"more than {max_pixels} pixels") from error
    except Exception as error:
        # A stranger's bytes reach ten parsers here, which are known to leave by OSError, SyntaxError, struct.error,
        # KeyError, OverflowError, zlib.error and more. All of them mean the same: no picture.
        raise _unreadable(data, error) from error
    finally:
        _pillow.leave()


def _unusual(image: ImageFile.ImageFile, data: bytes) -> UnusableImage | None:
    """What sets this picture apart from plain grey or RGB, from its header alone."""
    if image.format in _SEVERAL_FRAMES and getattr(image, "is_animated", False):
        return UnusableImage("animated", f"{image.format} with more than one frame")
    if image.mode == "CMYK":
        return UnusableImage("cmyk", f"{image.format} in CMYK inks")
    if _is_deep(image, data):
        return UnusableImage("16-bit", f"{image.format} with more than 8 bits a sample")
    if image.mode in ("P", "PA"):
        return UnusableImage("palette", f"{image.format} with indexed colours")
    if image.mode in ("LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        return UnusableImage("transparent", f"{image.format} with an alpha channel or a transparent colour")
    return None


def _is_deep(image: ImageFile.ImageFile, data: bytes) -> bool:
    """More than 8 bits a sample in the file; the mode alone does not tell, Pillow reads 16-bit RGB as 8-bit RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return True
    if image.format == "PNG":
        return data[:8] == _PNG_SIGNATURE and data[24] == 16
    if image.format == "TIFF":
        return max(_tiff_tag(image, _BITS_PER_SAMPLE, (8,))) > 8
    if image.format == "PPM" and image.tile:
        arguments = image.tile[0].args
        return isinstance(arguments, tuple) and isinstance(arguments[-1], int) and arguments[-1] > 255
    return False


def _has_no_scale(image: ImageFile.ImageFile) -> bool:
    """Samples of which nobody says how bright 1 is: floats, and integers with a sign or of more than 16 bits."""
    if image.mode == "I" and image.format == "TIFF":
        return max(_tiff_tag(image, _BITS_PER_SAMPLE, (1,))) > 16 or _tiff_tag(image, _SAMPLE_FORMAT, (1,))[0] != 1
    return image.mode == "F"


def _tiff_tag(image: Image.Image, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, default)  # type: ignore[attr-defined]
    return value if isinstance(value, tuple) else (value,)


def _to_rgb(image: Image.Image, *, deep: bool) -> np.ndarray:
    """A loaded image of any mode as (H, W, 3) uint8; `deep` images come from more than 8 bits a sample."""
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif deep:
        key = image.info.get("transparency")
        if isinstance(key, tuple):  # Pillow compares this 16-bit colour with pixels that have lost their low bits
            image.info["transparency"] = tuple(value >> 8 for value in key)
        if image.mode != "CMYK" and not any(
            image.getchannel(band).getextrema()[1] for band in image.getbands() if band not in "Aa"
        ):
            raise UnusableImage("16-bit", "no sample reaches 256 of 65535: black in 8 bits")
    if "transparency" in image.info or image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        image = _over_white(image)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return np.array(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey -> 8-bit grey by value >> 8, 12-bit by >> 4."""
    values = np.asarray(image)
    bits, white_is_zero = 16, False
    if image.format == "TIFF":
        bits = _tiff_tag(image, _BITS_PER_SAMPLE, (16,))[0]
        white_is_zero = _tiff_tag(image, _PHOTOMETRIC, (1,)) == (0,)
    transparent = image.info.get("transparency")
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8) if isinstance(transparent, int) else None
    top = 2**bits - 1
    if white_is_zero:
        values = top - values
    grey = (values >> (bits - 8)).astype(np.uint8)
    if values.any() and not grey.any():
        raise UnusableImage("16-bit", f"its brightest sample is {values.max()} of {top}: black in 8 bits")
    eight = Image.fromarray(grey)
    if alpha is not None:
        eight.putalpha(Image.fromarray(alpha))
    return eight


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if there is none. TIFF is left out: Pillow turns it upright itself."""
    if image.format == "TIFF" or not ("exif" in image.info or "Raw profile type exif" in image.info):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return 1  # damaged metadata beside an intact picture: as if there were none


def _unreadable(data: bytes, error: Exception) -> UnusableImage:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        text = "not a picture in a known format"
        if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
            text = "HEIC cannot be read here: save it as JPEG"
    riff_size = int.from_bytes(data[4:8], "little") + 8
    cut_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < riff_size
    if cut_webp or isinstance(error, EOFError) or "truncated" in text.lower():
        return UnusableImage("truncated", text)
    return UnusableImage("broken", text)


class _StrictAndQuietPillow:
    """Pillow without warnings, without LOAD_TRUNCATED_IMAGES, and with its own size limit no lower than ours.

    All three are globals, of Pillow or of `warnings`, that other code in the process may have set otherwise. The first
    thread in sets them, the last one out restores what was there, and nobody waits for anybody's decoding.
    Costs 6 to 10 us a picture, of 130 to 180 us for a JPEG of 32 x 32.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def enter(self, max_pixels: int) -> None:
        with self._lock:
            if self._inside == 0:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
                self._truncated, self._limit = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1
            if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
                Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow raises above twice this

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._truncated, self._limit
                self._warnings.__exit__(None, None, None)


_pillow = _StrictAndQuietPillow()
