"""Few labels: a linear layer that sees the labels of a hundredth or a tenth of the train images.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, linear layer on 1 % and 10 % of the labels, top-1 and top-5;
class-balanced draws: Chen et al., SimCLR, ICML 2020, Sec. 6.
Protocol: as many labelled images of each class as the share of a mean class, at least one; softmax regression solved
to its optimum on rows standardised as the linear probe's. The mean and variance are those of all train rows, for only
labels are few. The weight decay is the one with the best accuracy in a stratified k-fold of the drawn images, the
strongest of equal ones; with one image a class there is nothing to hold out, and it is the middle one of the list. The
test split is asked once, by the layer fitted to all drawn images. Each draw chooses anew.
Scores are means over the draws; `_std` is the sample standard deviation over them.
Test images that are train images, too (same id, same row), are left out.
On request, for it fits (decays × folds + 1) × draws layers for each share. 50 000 train, 10 000 test rows of 512, 100
classes: 20 s for each draw of both shares on one busy Zen core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.draws import balanced_draw
from compress_ssl.evaluations import Embedded, labelled_rows, tensor, unknown_rows
from compress_ssl.metrics import top_k_accuracy
from compress_ssl.refusal import Refusal
from compress_ssl.softmax_regression import softmax_regression, standardiser

ON_REQUEST = True
TOP = 5  # and only where there are more classes than that


@dataclass(frozen=True, kw_only=True)
class Config:
    shares: tuple[float, ...] = (0.01, 0.1)  # of the labels; each gives its metrics
    repeats: int = 5  # draws
    folds: int = 3  # at most as many as labelled images of the largest class
    weight_decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # to choose from, as in the linear probe
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise Refusal(f"expected shares of the labels above 0, at most 1, got {self.shares}: 0.01 is 1 %.")
        if min(self.repeats, self.folds) < 2:
            raise Refusal(f"expected repeats and folds from 2 up, got {self.repeats} and {self.folds}: give more.")
        if not self.weight_decays or not min(self.weight_decays) > 0:
            raise Refusal(
                f"expected weight decays above 0, got {self.weight_decays}: without any, classes that can be "
                "separated have no optimum."
            )


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    if not embedded.labelled:
        return "needs labels"
    return None if len(unknown_rows(embedded).ids) else "needs test images that are not train images"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:
    """`few_labels_1` for 1 % of the labels, with more than five classes `few_labels_1_top_5`, too; each with `_std`."""
    train, test = labelled_rows(embedded.train), unknown_rows(embedded)
    rows = tensor(train.rows, device=embedded.device)
    mean, scale = standardiser(rows)
    queries = (tensor(test.rows, device=embedded.device) - mean).mul_(scale)
    classes, numbered = np.unique(train.labels, return_inverse=True)  # labels may have gaps
    tops = (1, TOP) if len(classes) > TOP else (1,)
    metrics: dict[str, float] = {}
    for share in config.shares:
        per_class = max(1, round(share * len(rows) / len(classes)))
        scores: dict[int, list[float]] = {top: [] for top in tops}
        for seed in range(config.seed, config.seed + config.repeats):
            drawn = balanced_draw(numbered, per_class=per_class, generator=np.random.default_rng(seed))
            weight, bias = _fit(rows, drawn, mean, scale, config)
            ranked = functional.linear(queries, weight, bias).topk(max(tops), dim=1).indices.cpu().numpy()
            for top in tops:
                scores[top].append(top_k_accuracy(classes[ranked[:, :top]], test.labels))
        for top in tops:
            name = f"few_labels_{100 * share:g}" + f"_top_{top}" * (top > 1)
            metrics |= {name: float(np.mean(scores[top])), f"{name}_std": float(np.std(scores[top], ddof=1))}
    return metrics


def _fit(rows: Tensor, drawn: np.ndarray, mean: Tensor, scale: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Weight and bias fitted to the drawn images alone, the weight decay chosen among them."""
    targets, order = np.nonzero(drawn >= 0)
    labelled = (rows[torch.from_numpy(drawn[targets, order]).to(rows.device)] - mean).mul_(scale)
    at = torch.from_numpy(targets).to(rows.device)
    decay = choose_weight_decay(labelled, at, folds=(targets + order) % min(config.folds, drawn.shape[1]),
                                classes=len(drawn), weight_decays=config.weight_decays)  # fmt: skip
    return softmax_regression(labelled, at, classes=len(drawn), weight_decay=decay)


def choose_weight_decay(
    rows: Tensor, targets: Tensor, *, folds: np.ndarray, classes: int, weight_decays: tuple[float, ...]
) -> float:
    """The weight decay whose layers classify most of the folds that they have not seen; the strongest of equal ones.

    Args:
        rows: (N, D) float32, standardised.
        targets: (N,) int64 in [0, classes).
        folds: (N,) number of each row's fold; a single fold cannot be held out, and the middle decay is returned.
    """
    decays = sorted(weight_decays)
    if len(np.unique(folds)) < 2:
        return decays[len(decays) // 2]
    right = dict.fromkeys(decays, 0)
    for fold in np.unique(folds):
        held = torch.from_numpy(folds == fold).to(rows.device)
        for decay in decays:
            weight, bias = softmax_regression(rows[~held], targets[~held], classes=classes, weight_decay=decay)
            predicted = functional.linear(rows[held], weight, bias).argmax(dim=1)
            right[decay] += int((predicted == targets[held]).sum())
    return max(decays, key=lambda decay: (right[decay], decay))
