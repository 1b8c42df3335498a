"""Duplicates: files that are the same byte for byte, and pictures that are the same to the eye.

Exact ones are looked for among all images: only where the cheap evidence of two images agrees (the sizes of their
files, say) are their contents compared.

Near ones are looked for among thumbnails of 16 x 16 greys. Two steps: a difference hash of 64 bits (is a place brighter
than its left neighbour?) proposes pairs that differ in at most 8 bits; then the mean difference of the greys must be
below a fifth of their spread. The same once more against the mirror image, for a training mirrors half of its images.
Measured on 150 images each, of 100 found when saved again / mirrored / half the size / 3/4 / 2 % cut off each side:
    photographs of ImageNet     100 / 100 / 100 / 100 / 95
    Tiny-ImageNet (64 x 64)     100 / 100 / 100 / 100 / 100
    CIFAR-10 (32 x 32)          100 / 100 /  94 / 100 / 66
With 5 % cut off it is 3 to 15: another crop is another picture here. Among 20 000 images of Tiny-ImageNet (200 million
pairs) it found one pair, among 20 000 of CIFAR-10 39 groups; by eye all but two of these 40 are one picture twice, or
one object before one ground.
With fewer than 32 pixels different pictures come out alike (2000 pairs of 1437 digits of 8 x 8), and none is compared.
Source of the hash: "dHash", N. Krawetz, Kind of Like That, hackerfactor.com 2013.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

BITS = 8  # of 64 in which the hashes of near duplicates may differ
SPREAD = 0.2  # share of their greys' standard deviation by which near duplicates may differ on average
SMALLEST = 32  # pixels of the short side; images of fewer are not compared
AT_ONCE = 2**20  # pairs compared at a time


def same_evidence(evidence: np.ndarray) -> np.ndarray:
    """Positions whose evidence some other one shares too, the only ones that can be exact duplicates: (M,) int64.

    Args:
        evidence: (N,) int64, -1 where there is nothing to read.
    """
    _, inverse, counts = np.unique(evidence, return_inverse=True, return_counts=True)
    return np.flatnonzero((counts[inverse] > 1) & (evidence >= 0))


def exact_groups(evidence: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Group of each image: (N,) int64, equal numbers for equal contents.

    Args:
        evidence: (N,) int64.
        contents: (N,) uint64 digests; 0 where they were not needed or cannot be had: such an image is like no other.
    """
    alone = contents == 0
    keys = np.stack([evidence.astype(np.int64), contents.view(np.int64)], axis=1)
    keys[alone] = np.stack([np.flatnonzero(alone), np.zeros(alone.sum(), np.int64)], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def near_groups(thumbnails: np.ndarray, *, mirrored: bool) -> np.ndarray:
    """Group of each image: (N,) int64, equal numbers for near duplicates, and for what these connect.

    Memory is linear in N whatever the pairs; time is not: 20 000 images take 1 s, 200 000 half a minute, a million a
    quarter of an hour (one Zen 3 core).

    Args:
        thumbnails: (N, 16, 16) uint8.
        mirrored: a picture and its mirror image belong together too.
    """
    # many blank pages would be many pairs: of equal thumbnails one stands for all
    if len(thumbnails) < 2:
        return np.arange(len(thumbnails))
    flat = np.ascontiguousarray(thumbnails).reshape(len(thumbnails), -1)
    rows, inverse = np.unique(flat.view(np.dtype((np.void, flat.shape[1]))).reshape(-1), return_inverse=True)
    if len(rows) < 2:
        return inverse.reshape(-1)
    greys = rows.view(np.uint8).reshape(len(rows), *thumbnails.shape[1:])
    groups = np.arange(len(rows))
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for pairs in _near_pairs(greys, mirrored=mirrored):
        waiting.append(pairs)
        if sum(len(one) for one, _ in waiting) > AT_ONCE:
            groups, waiting = _joined(groups, waiting), []
    return _joined(groups, waiting)[inverse.reshape(-1)]


def copies(groups: np.ndarray) -> int:
    """Images that are one too many: if of every group one were kept."""
    return len(groups) - len(np.unique(groups))


def repeated(groups: np.ndarray) -> list[np.ndarray]:
    """Positions of each group of several, largest group first, then in order."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    found = [part for part in np.split(order, starts[1:]) if len(part) > 1]
    return sorted(found, key=lambda part: (-len(part), part[0]))


def leaks(groups: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Positions of test images that have a copy among the training images: (L,) int64."""
    return np.flatnonzero(is_test & np.isin(groups, groups[~is_test]))


def hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Difference hashes: (N, 16, 16) uint8 -> (N,) uint64."""
    side = thumbnails.shape[1]
    small = _resizing(side, 8) @ thumbnails.astype(np.float32) @ _resizing(side, 9).T
    brighter = np.diff(small, axis=2) > 0.5  # of 255: even ground says no, noise or not
    return np.packbits(brighter.reshape(len(thumbnails), 64), axis=1).view("<u8").ravel()


def _near_pairs(greys: np.ndarray, *, mirrored: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of near duplicates, in two arrays at a time; a pair may come several times."""
    count = len(greys)
    flat = greys.reshape(count, -1)
    spread = np.maximum(1, greys.reshape(count, -1).std(axis=1, dtype=np.float32))
    codes = hashes(greys)
    if mirrored:
        codes = np.concatenate([codes, hashes(greys[:, :, ::-1])])
    for one, other in _close(codes, first=count):
        turned = other >= count
        kept = one < other % count
        one, other, turned = one[kept], other[kept] % count, turned[kept]
        for start in range(0, len(one), 2**14):
            part = slice(start, start + 2**14)
            left, right = flat[one[part]].astype(np.int16), greys[other[part]]
            right = np.where(turned[part][:, None, None], right[:, :, ::-1], right).reshape(len(left), -1)
            apart = np.abs(left - right).mean(axis=1)
            near = apart < SPREAD * np.minimum(spread[one[part]], spread[other[part]])
            if near.any():
                yield one[part][near], other[part][near]


def _close(codes: np.ndarray, *, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of one of the `first` codes and a later one that differ in at most BITS bits.

    Of 9 bands such codes share at least one whole: only codes within one bucket of a band are compared.
    """
    edges = np.linspace(0, 64, BITS + 2).astype(int)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        band = (codes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            chunk = max(1, AT_ONCE // len(bucket))
            for start in range(0, int((bucket < first).sum()), chunk):  # in a bucket positions ascend
                left, right = bucket[start : start + chunk], bucket[start:]
                left = left[left < first]
                differing = _ones(codes[left][:, None] ^ codes[right][None, :])
                one, other = np.nonzero((differing <= BITS) & (left[:, None] < right[None, :]))
                if len(one):
                    yield left[one], right[other]


def _ones(words: np.ndarray) -> np.ndarray:
    """Bits that are set in each uint64."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words)
    return _BITS_OF_BYTE[words.view(np.uint8)].reshape(*words.shape, 8).sum(axis=-1)


_BITS_OF_BYTE = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def _joined(groups: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The groups after these pairs have joined theirs."""
    if not pairs:
        return groups
    one, other = (groups[np.concatenate(side)] for side in zip(*pairs, strict=True))
    edges = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(len(groups), len(groups)))
    return connected_components(edges, directed=False)[1].astype(np.int64)[groups]


def _resizing(source: int, size: int) -> np.ndarray:
    """(size, source) float32 weights of a bilinear interpolation with antialiasing; the same from either end."""
    scale = source / size
    centres = (np.arange(size) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(source) + 0.5 - centres[:, None]) / scale)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
