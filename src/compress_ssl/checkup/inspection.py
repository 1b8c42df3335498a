"""A data set as it is: what can be used, what is there twice, how large the images are, what their labels say."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from rich.console import Console

from compress_ssl.checkup import duplicates
from compress_ssl.checkup.look import Looks, contents, glimpses, look, some
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.picture import SUFFIXES

NAMED = 3  # examples told of everything that was found
QUANTILES = {"smallest": 0.0, "percent_5": 0.05, "median": 0.5, "percent_95": 0.95, "largest": 1.0}


def inspect(
    splits: Splits, *, count: int, seed: int, workers: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """What is found, as `compress_ssl.doctor` documents it under "data".

    Args:
        count: images to be opened at most, drawn from both splits alike by a hash of their ids; 0: all.
    """
    sets = {"train": splits.train} | ({} if splits.test is None else {"test": splits.test})
    whole = sum(len(images) for images in sets.values())
    looks: dict[str, Looks] = {}
    for name, images in sets.items():
        wanted = len(images) if count == 0 else max(1, round(len(images) * min(1.0, count / whole)))
        told = f"looking at {name} images"
        looks[name] = look(images, some(images.ids, wanted, seed=seed), workers=workers, console=console, told=told)
    looked = sum(len(seen.positions) for seen in looks.values())
    return {
        "images": whole,
        "looked_at": looked,
        "splits": {
            name: {
                "images": len(images),
                "looked_at": len(looks[name].positions),
                "usable": int(looks[name].usable.sum()),
                "labelled": int((images.labels >= 0).sum()),
            }
            for name, images in sets.items()
        },
        "unusable": _unusable(looks, sets),
        "exact_duplicates": _exact(sets, looks, workers, console),
        "near_duplicates": _near(sets, looks),
        **_sizes(looks),
        "formats": _formats(sets, looks),
        "labels": _labels(splits.train),
    }


def share_below(data: dict[str, Any], size: int) -> float:
    """Share of the images looked at whose short side has fewer pixels than an encoder's input."""
    sides = data["short_sides"]
    return sum(count for side, count in sides.items() if side < size) / max(1, sum(sides.values()))


def _unusable(looks: dict[str, Looks], sets: dict[str, ImageSet]) -> list[dict[str, Any]]:
    """By kind, the most frequent first."""
    found: dict[str, dict[str, Any]] = {}
    for name, seen in looks.items():
        for skip in seen.unusable:
            kind = found.setdefault(skip.kind, {"kind": skip.kind, "count": 0, "expected": 0.0, "first": []})
            kind["count"] += 1
            kind["expected"] += len(sets[name]) / len(seen.positions)
            if len(kind["first"]) < NAMED:
                kind["first"].append(skip.id)
    for kind in found.values():
        kind["expected"] = round(kind["expected"])
    return sorted(found.values(), key=lambda kind: (-kind["count"], kind["kind"]))


def _exact(
    sets: dict[str, ImageSet], looks: dict[str, Looks], workers: int | None, console: Console | None
) -> dict[str, Any]:
    """Among all images: contents are read where the evidence of two agrees, and a few bytes of their files do, and they
    have not been looked at."""
    evidence = np.concatenate([images.evidence for images in sets.values()])
    ids = [id for images in sets.values() for id in images.ids]
    labels = np.concatenate([images.labels for images in sets.values()])
    is_test = np.concatenate([np.full(len(images), name == "test") for name, images in sets.items()])
    digests = np.zeros(len(evidence), np.uint64)
    starts = np.cumsum([0, *map(len, sets.values())]).tolist()
    wanted = np.zeros(len(evidence), bool)
    wanted[duplicates.same_evidence(evidence)] = True
    parts = [start + np.flatnonzero(wanted[start:stop]) for start, stop in itertools.pairwise(starts)]
    seen = [
        glimpses(
            images, places - start, workers=workers, console=console, told=f"glancing at {len(places)} {name} files"
        )
        for (name, images), places, start in zip(sets.items(), parts, starts[:-1], strict=True)
    ]
    if all(part is not None for part in seen):
        places = np.concatenate(parts)
        keys = np.stack([evidence[places], np.concatenate(seen).view(np.int64)], axis=1)  # type: ignore[arg-type]
        both = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        wanted[:] = False
        wanted[places[duplicates.same_evidence(both)]] = True
    for (name, images), (start, stop) in zip(sets.items(), itertools.pairwise(starts), strict=True):
        digests[start + looks[name].positions] = looks[name].contents
        wanted[start + looks[name].positions] = False
        missing = np.flatnonzero(wanted[start:stop])
        told = f"comparing {len(missing)} {name} files"
        digests[start + missing] = contents(images, missing, workers=workers, console=console, told=told)
    groups = duplicates.exact_groups(evidence, digests)
    several = duplicates.repeated(groups)
    return {
        "copies": duplicates.copies(groups),
        "groups": len(several),
        "leaks": len(duplicates.leaks(groups, is_test)),
        "other_label": sum(len(set(labels[part][labels[part] >= 0].tolist())) > 1 for part in several),
        "first": [[ids[place] for place in part[:2]] for part in several[:NAMED]],
    }


def _near(sets: dict[str, ImageSet], looks: dict[str, Looks]) -> dict[str, Any]:
    """Among those looked at, large enough; beyond those that are the same byte for byte."""
    usable = {name: np.flatnonzero(seen.sizes.min(axis=1) >= duplicates.SMALLEST) for name, seen in looks.items()}
    thumbnails = np.concatenate([looks[name].thumbnails[rows] for name, rows in usable.items()])
    digests = np.concatenate([looks[name].contents[rows] for name, rows in usable.items()])
    is_test = np.concatenate([np.full(len(rows), name == "test") for name, rows in usable.items()])
    ids = [sets[name].ids[int(looks[name].positions[row])] for name, rows in usable.items() for row in rows]
    exact = np.unique(digests, return_inverse=True)[1].reshape(-1)
    upright = duplicates.near_groups(thumbnails, mirrored=False)
    either = duplicates.near_groups(thumbnails, mirrored=True)
    leaking = np.setdiff1d(duplicates.leaks(either, is_test), duplicates.leaks(exact, is_test))
    several = [part for part in duplicates.repeated(either) if len(np.unique(exact[part])) > 1]
    copies, mirrored = duplicates.copies(upright), duplicates.copies(either)
    beyond = max(0, mirrored - duplicates.copies(exact))
    looked, whole = sum(len(seen.positions) for seen in looks.values()), sum(map(len, sets.values()))
    share = looked / whole  # of the images; of the pairs its square
    return {
        "compared": len(ids),
        "too_small": int(sum(seen.usable.sum() for seen in looks.values())) - len(ids),
        "copies": beyond,
        "mirrored": mirrored - copies,
        "groups": len(several),
        "leaks": len(leaking),
        "expected_copies": round(beyond / share**2),
        "expected_leaks": round(len(leaking) / share**2),
        "first": [[ids[place] for place in _two(part, exact)] for part in several[:NAMED]],
    }


def _two(part: np.ndarray, exact: np.ndarray) -> tuple[int, int]:
    """Two of a group that are not the same byte for byte."""
    return int(part[0]), int(part[np.flatnonzero(exact[part] != exact[part[0]])[0]])


def _sizes(looks: dict[str, Looks]) -> dict[str, Any]:
    sizes = np.concatenate([seen.sizes[seen.usable] for seen in looks.values()])
    if not len(sizes):
        return {"short_side": None, "megapixels": None, "short_sides": {}}
    short = sizes.min(axis=1)
    pixels = sizes.astype(np.float64).prod(axis=1) / 1e6
    counted = np.unique(short, return_counts=True)
    return {
        "short_side": {name: int(np.quantile(short, at, method="lower")) for name, at in QUANTILES.items()},
        "megapixels": {name: round(float(np.quantile(pixels, at)), 4) for name, at in QUANTILES.items()},
        "short_sides": {int(side): int(count) for side, count in zip(*counted, strict=True)},
    }


def _formats(sets: dict[str, ImageSet], looks: dict[str, Looks]) -> dict[str, int]:
    """Of usable images: plain JPEG by content, the rest by the end of the name, where it has one."""
    found: Counter[str] = Counter()
    for name, seen in looks.items():
        found["jpeg"] += int(seen.jpeg.sum())
        for row in np.flatnonzero(seen.usable & ~seen.jpeg):
            suffix = PurePosixPath(sets[name].ids[int(seen.positions[row])]).suffix.lower()
            found[suffix.removeprefix(".") if suffix in SUFFIXES else "other"] += 1
    return {kind: count for kind, count in found.most_common() if count}


def _labels(images: ImageSet) -> dict[str, Any]:
    """Of the training split, all of it."""
    known = images.labels[images.labels >= 0]
    if not len(known):
        return {"labelled": 0, "classes": 0, "smallest": None, "largest": None}
    counts = np.bincount(known, minlength=len(images.classes))
    ends = {"smallest": int(counts.argmin()), "largest": int(counts.argmax())}
    return {
        "labelled": len(known),
        "classes": len(counts),
        **{end: {"name": images.classes[place], "images": int(counts[place])} for end, place in ends.items()},
    }
