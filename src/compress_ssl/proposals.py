"""Boxes that are given for every image, for a detector that is not to look for them itself: Fast R-CNN's proposals.

Two kinds of files, which may be mixed, such as one for trainval and one for test:
.jsonl, one image a line: {"id": "000005", "boxes": [[left, top, right, bottom], …]}, edges in pixels from the picture's
top left corner, as of `voc_layout.Object`.
.mat, as selective search was published for VOC with Fast R-CNN (Girshick, ICCV 2015; Uijlings et al., IJCV 2013): cells
`images` (ids) and `boxes` (P, 4), rows of top, left, bottom, right counted from 1, the last pixel included.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress_ssl.refusal import Refusal


def read_proposals(files: Sequence[Path], ids: Iterable[str]) -> dict[str, np.ndarray]:
    """id -> its boxes (P, 4) float32, edges as of `voc_layout.Object`; an image may have none.

    Args:
        files: those that hold the images, and perhaps others.
        ids: the images that are needed.
    Raises: Refusal if a file cannot be read, a box has no extent, or an image is in none of the files, or twice.
    """
    wanted, found = set(ids), dict[str, np.ndarray]()
    for file in files:
        for id, boxes in _read(file):
            if id not in wanted:
                continue
            if id in found:
                raise Refusal(f"--proposals expected every image once, got {id} twice, at last in {file}: remove one")
            found[id] = _checked(boxes, id, file)
    lacking = sorted(wanted - found.keys())
    if lacking:
        raise Refusal(f"--proposals expected boxes for every image of the splits, got none for {len(lacking)} of "
                      f"{len(wanted)} ({lacking[0]}, …): name the files that hold them, too")  # fmt: skip
    return found


def _read(file: Path) -> Iterator[tuple[str, Any]]:
    readers = {".jsonl": _read_lines, ".mat": _read_matlab}
    if file.suffix.lower() not in readers:
        raise Refusal(f"--proposals expected files that end in .jsonl or .mat, got {file}: convert it")
    if not file.is_file():
        raise Refusal(f"--proposals expected a file, got {file}, which is none: check the path")
    yield from readers[file.suffix.lower()](file)


def _read_lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                told = json.loads(line.decode("utf-8"))
                yield str(told["id"]), told["boxes"]
            except (ValueError, KeyError, TypeError) as error:
                raise Refusal(f'--proposals expected {{"id": …, "boxes": …}} in line {number} of {file}, got '
                              f"{line.strip()[:40].decode(errors='replace')!r}: mend the line") from error  # fmt: skip


def _read_matlab(file: Path) -> Iterator[tuple[str, Any]]:
    import zlib

    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        cells = loadmat(file, variable_names=("images", "boxes"))
        ids, boxes = cells["images"].ravel(), cells["boxes"].ravel()
        named = [str(np.asarray(id).item()) for id in ids]
        edges = [_by_fours(one, np.float64) for one in boxes]
    except (MatReadError, zlib.error, ValueError, KeyError, TypeError, OSError, NotImplementedError) as error:
        told = f"{type(error).__name__} ({' '.join(str(error).split())[:80]})"
        raise Refusal(f"--proposals expected the cells images and boxes in {file}, got {told}: save it by MATLAB's "
                      "-v7, or as .jsonl") from error  # fmt: skip
    if len(named) != len(edges):
        raise Refusal(f"--proposals expected boxes of each of {len(named)} images in {file}, got {len(edges)}: mend it")
    for id, one in zip(named, edges, strict=True):
        yield id, np.stack([one[:, 1] - 1, one[:, 0] - 1, one[:, 3], one[:, 2]], axis=1)


def _by_fours(boxes: Any, dtype: type) -> np.ndarray:
    """(P, 4) of whatever holds P rows of four numbers, P = 0 in any shape.

    Raises: ValueError if it holds something else.
    """
    found: np.ndarray = np.asarray(boxes, dtype=dtype)
    if not found.size:
        return np.zeros((0, 4), dtype)
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"expected rows of four numbers, got the shape {found.shape}")
    return found


def _checked(boxes: Any, id: str, file: Path) -> np.ndarray:
    try:
        found = _by_fours(boxes, np.float32)
    except (ValueError, TypeError) as error:
        raise Refusal(
            f"--proposals expected boxes of four numbers for {id} in {file}, got others: mend them"
        ) from error
    if not (np.isfinite(found).all() and (found[:, 2:] > found[:, :2]).all()):
        raise Refusal(f"--proposals expected left < right and top < bottom for {id} in {file}, got a box without "
                      "extent: remove it")  # fmt: skip
    return found
