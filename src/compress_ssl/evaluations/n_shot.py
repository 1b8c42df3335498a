"""n-shot: test images are classified from n labelled train images a class, over repeated draws.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, one labelled image a class; nearest class mean: Snell et
al., Prototypical Networks, NeurIPS 2017, Eq. 1–2, the linear classifier that needs no regularisation.
Protocol: neither classifier has anything to choose, so no split is looked at but the drawn images. For one shot both
are the same. A draw for n shots is the beginning of that for more; a class with fewer than n images gives all it has.
Each score is the mean over the draws; its `_interval` is half the width of the 95 % confidence interval of that mean
by Student's t over the draws, with the test images as given: it tells what another draw would change, not what other
test images would.
Test images that are train images, too (same id, same row), are left out.
50 000 train, 10 000 test rows of 512, 100 classes, 20 draws: 7 s of one busy Zen core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress_ssl.draws import balanced_draw
from compress_ssl.evaluations import Embedded, labelled_rows, tensor, unknown_rows
from compress_ssl.metrics import accuracy
from compress_ssl.refusal import Refusal

AT_ONCE = 2**24  # similarities held at once
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Config:
    shots: tuple[int, ...] = (1, 2, 4, 8)  # labelled images a class; each gives its metrics
    draws: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1:
            raise Refusal(f"expected numbers of labelled images from 1 up, got {self.shots}: give for example 1 2.")
        if self.draws < 2:
            raise Refusal(f"expected at least 2 draws, for one has no interval, got {self.draws}: give more.")


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    if not embedded.labelled:
        return "needs labels"
    return None if len(unknown_rows(embedded).ids) else "needs test images that are not train images"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:
    """Accuracy for N labelled images a class: `n_shot_class_mean_N`, `n_shot_nearest_neighbour_N`; each `_interval`."""
    train, test = labelled_rows(embedded.train), unknown_rows(embedded)
    classes, numbered = np.unique(train.labels, return_inverse=True)  # labels may have gaps
    gallery, queries = (tensor(split.rows, device=embedded.device) for split in (train, test))
    generator = np.random.default_rng(config.seed)
    found: dict[str, list[float]] = {}
    for _ in range(config.draws):
        drawn = balanced_draw(numbered, per_class=max(config.shots), generator=generator)
        for name, predicted in _predictions(queries, gallery, drawn, config.shots).items():
            found.setdefault(name, []).append(accuracy(classes[predicted], test.labels))
    metrics: dict[str, float] = {}
    for kind in ("class_mean", "nearest_neighbour"):
        for shots in config.shots:
            mean, half = mean_interval(found[f"{kind}_{shots}"])
            metrics |= {f"n_shot_{kind}_{shots}": mean, f"n_shot_{kind}_{shots}_interval": half}
    return metrics


def mean_interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its confidence interval by Student's t."""
    from scipy.stats import t

    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * spread)


def _predictions(queries: Tensor, gallery: Tensor, drawn: np.ndarray, shots: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Classes (Q,) as positions in `drawn` by both classifiers for every number of shots, from one product."""
    places = torch.from_numpy(drawn).to(queries.device)
    there = places >= 0
    rows = gallery[places.clamp(min=0)] * there[..., None]  # (C, S, D)
    sums, counts = rows.cumsum(dim=1), there.cumsum(dim=1)  # (C, S, D), (C, S)
    squares = (sums / counts[..., None]).square().sum(dim=2)
    found: dict[str, list[Tensor]] = {}
    for part in queries.split(max(1, AT_ONCE // places.numel())):
        similarities = torch.einsum("qd,csd->qcs", part, rows)
        for count in shots:
            means = similarities[..., :count].sum(dim=2) / counts[:, count - 1]  # of the products: product of the mean
            nearness = means - squares[:, count - 1] / 2  # |q - m|² = 1 - 2 (q·m - |m|² / 2)
            found.setdefault(f"class_mean_{count}", []).append(nearness.argmax(dim=1))
            nearest = similarities[..., :count].masked_fill(~there[:, :count], -torch.inf).amax(dim=2)
            found.setdefault(f"nearest_neighbour_{count}", []).append(nearest.argmax(dim=1))
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}
