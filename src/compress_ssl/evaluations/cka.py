"""CKA: how alike the student's and the teacher's spaces are, up to rotation and scale. Needs no labels.

Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, linear CKA (Sec. 3, with
HSIC of Eq. 3): ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms of the columns centred over the test images.
`cka_unbiased` takes the unbiased HSIC of Song et al., JMLR 2012, Eq. 5, as Nguyen et al., ICLR 2021, Sec. 3, do: with
fewer images than dimensions the plain one is near 1 whatever the models; the unbiased one is near 0 for unrelated ones.
Both come from (D, D) sums over the images in float64; no matrix of images × images is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_ssl.evaluations import Embedded, tensor

CHUNK = 4096  # images whose rows are in float64 at once
COLLAPSED = 1e-12  # variance of unit rows below which they are one point and rounding noise
UNBIASED = 4  # images that the unbiased estimate needs


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose: all test images."""


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    return None if embedded.teacher is not None else "needs the teacher's embeddings"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:  # noqa: ARG001
    """`cka`, 1 for a rotated and scaled copy of the teacher and 0 for a collapsed model; with four test images or more
    `cka_unbiased`, too, as 0 where it comes out below."""
    assert embedded.teacher is not None, "asked although unfit"
    ours, theirs = (tensor(one.test.rows, device=embedded.device) for one in (embedded, embedded.teacher))
    metrics = {"cka": linear_cka(ours, theirs)}
    if len(ours) >= UNBIASED:
        metrics["cka_unbiased"] = max(0.0, linear_cka(ours, theirs, unbiased=True))
    return metrics


def linear_cka(first: Tensor, second: Tensor, *, unbiased: bool = False) -> float:
    """Linear CKA of two models' rows of the same images, at most 1.

    Args:
        first: (N, D_1) unit rows, any floating type.
        second: (N, D_2) unit rows of the same images.
        unbiased: with the unbiased HSIC, which needs N > 3 and may be below 0.
    Returns: 0 where one of them is a single point.
    Raises: ValueError unless both hold as many rows, enough of them.
    """
    least = UNBIASED if unbiased else 1
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second) or len(first) < least:
        raise ValueError(
            f"expected two sets of at least {least} rows of the same images, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}: embed the same images with both."
        )
    centres = [rows.mean(dim=0, dtype=torch.float64) for rows in (first, second)]
    variances = [float(_squares(rows, centre).mean()) for rows, centre in zip((first, second), centres, strict=True)]
    if min(variances) < COLLAPSED:
        return 0.0
    cross, one, other = (
        _dependence(*pair, unbiased=unbiased)
        for pair in (
            (first, centres[0], second, centres[1]),
            (first, centres[0], first, centres[0]),
            (second, centres[1], second, centres[1]),
        )
    )
    return min(1.0, cross / math.sqrt(one * other)) if min(one, other) > 0 else 0.0


def _dependence(first: Tensor, centre: Tensor, second: Tensor, other: Tensor, *, unbiased: bool) -> float:
    """HSIC of two linear kernels, up to a factor that depends on N alone.

    With K = XXᵀ of centred rows its rows sum to 0. Without diagonals, K̃1 = -k for k the squared lengths, so the terms
    of Song et al., Eq. 5, are tr K̃L̃ = ‖XᵀY‖² - Σ k l, 1ᵀK̃1 = -Σ k and 1ᵀK̃L̃1 = Σ k l. The estimate is the same for
    rows that are not centred: it compares distances only.
    """
    covariance = sum(
        (part.double() - centre).T @ (match.double() - other)
        for part, match in zip(first.split(CHUNK), second.split(CHUNK), strict=True)
    )
    trace = float(torch.as_tensor(covariance).square().sum())
    if not unbiased:
        return trace
    count, k, l = len(first), _squares(first, centre), _squares(second, other)  # noqa: E741
    both = float(k @ l)
    return trace - both + float(k.sum() * l.sum()) / ((count - 1) * (count - 2)) - 2 / (count - 2) * both


def _squares(rows: Tensor, centre: Tensor) -> Tensor:
    """(N,) float64 squared lengths of centred rows."""
    return torch.cat([(part.double() - centre).square().sum(dim=1) for part in rows.split(CHUNK)])
