"""Linear probe: a softmax regression on the frozen embeddings.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, "Linear": unit rows, standardised by the train split's
per-dimension mean and variance, one linear layer, SGD on random views.
Two protocols. "paper" is that one: it embeds the train images anew for every epoch, and needs `Embedded.augmented`.
"stored" fits the same loss to the stored rows of the evaluation view and solves it to its optimum by L-BFGS, so there
is no learning rate, order or number of epochs to it, and two machines agree. Where rows × dimensions × classes exceed
`to_the_end` it stops some thousandths of a nat above the optimum (`softmax_regression` says what that costs). Without
random views it sees less data: compare models under one protocol.
Differs from the paper: both standardise with the statistics of the evaluation view, so that train and test rows go
through one map; the layer starts at zero, the loss being convex.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, labelled_rows, require_same_images, tensor
from compress_ssl.metrics import accuracy, top_k_accuracy
from compress_ssl.refusal import Refusal

TOP = 5  # classes that may hold the right one; and only where there are more classes than that
CHUNK = 4096  # images whose logits are held at once
TO_THE_END = 2**33  # images × dimensions × classes up to which the regression is solved to the last digit
SETTLED = 1e-3  # above, it ends when five steps together lower the loss by less than this share of it
CONSTANT = 1e-6  # standard deviation below which a dimension of unit rows is rounding noise and stays unscaled


@dataclass(frozen=True, kw_only=True)
class Config:
    protocol: Literal["stored", "paper"] = "stored"
    weight_decay: float = 1e-4  # times half the squared weights; "paper" also decays the bias, as plain SGD does
    to_the_end: int = (
        TO_THE_END  # rows × dimensions × classes up to which "stored" reaches the optimum to the last digit
    )
    # what follows concerns "paper" only
    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 0.01
    sgd_momentum: float = 0.9
    milestones: tuple[int, ...] = (15, 30)  # epochs after which the learning rate is multiplied by `factor`
    factor: float = 0.1
    seed: int = 0  # of the order of the images

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise Refusal(
                f"expected epochs and batch_size from 1 up, got {self.epochs} and {self.batch_size}: "
                "give positive numbers."
            )
        if self.protocol == "stored" and not self.weight_decay > 0:
            raise Refusal(
                f"expected a weight_decay above 0, got {self.weight_decay}: without it classes that can be "
                "separated have no optimum."
            )


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    return None if embedded.labelled else "needs labels"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:
    """`linear_probe`: accuracy on the test split; with more than five classes to choose from also `linear_probe_5`, the
    share of images whose class is among the five likeliest. A class that training has not seen counts as wrong."""
    train, test = labelled_rows(embedded.train), labelled_rows(embedded.test)
    device = embedded.device
    rows = tensor(train.rows, device=device)
    mean, scale = standardiser(rows)
    classes, numbered = np.unique(train.labels, return_inverse=True)  # labels may have gaps
    targets = tensor(numbered, device=device)
    if config.protocol == "paper":
        views = _views(embedded, train, mean, scale)
        weight, bias = sgd_regression(views, targets, classes=len(classes), config=config)
    else:
        standardised = (rows - mean).mul_(scale)
        weight, bias = softmax_regression(
            standardised,
            targets,
            classes=len(classes),
            weight_decay=config.weight_decay,
            to_the_end=config.to_the_end,
        )
    logits = functional.linear((tensor(test.rows, device=device) - mean).mul_(scale), weight, bias)
    metrics = {"linear_probe": accuracy(classes[logits.argmax(dim=1).cpu().numpy()], test.labels)}
    if len(classes) > TOP:
        likeliest = logits.topk(TOP, dim=1).indices.cpu().numpy()
        metrics[f"linear_probe_{TOP}"] = top_k_accuracy(classes[likeliest], test.labels)
    return metrics


def standardiser(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and one over the standard deviation (biased, as batch norm's) of each dimension.

    Args:
        rows: (N, D) float32.
    Returns: (D,) and (D,) float32, from sums in float64; a constant dimension has scale 1, so it becomes 0.
    """
    mean = sum(part.sum(dim=0, dtype=torch.float64) for part in rows.split(CHUNK)) / len(rows)
    variance = sum((part - mean).square().sum(dim=0) for part in rows.split(CHUNK)) / len(rows)
    deviation = torch.as_tensor(variance).sqrt()
    scale = torch.where(deviation > CONSTANT, 1 / deviation, 1.0)
    return torch.as_tensor(mean).float(), scale.float()


def softmax_regression(
    rows: Tensor,
    targets: Tensor,
    *,
    classes: int,
    weight_decay: float,
    iterations: int = 1000,
    to_the_end: int = TO_THE_END,
) -> tuple[Tensor, Tensor]:
    """The minimum of mean cross-entropy + weight_decay / 2 · ‖weight‖², the bias being free.

    L-BFGS (scipy) in the coordinates V of weight = V L⁻¹, where L Lᵀ = XᵀX / 4N + weight_decay: the curvature of the
    cross-entropy is p (1 − p) ≤ 1/4 times XᵀX / N, so in V it is nearly the same in every direction. On 50 000 random
    features (D = 512) of real images that takes 56 passes over the rows instead of 270. Products are in float32, sums
    in float64; the loss ends within 2e-8 of a float64 solution and one of 10 000 predictions differs from it.

    A pass takes 4 N D C operations: 2.6e12 for ImageNet. Where N · D · C exceeds `to_the_end` (50 000 images, D = 512,
    335 classes), the descent stops when five steps together lower the loss by less than a thousandth, which leaves it
    some thousandths of a nat above its minimum and spares more than half of the passes. Measured on 16 000 synthetic
    rows of 40 classes that overlap (D = 48): 31 passes instead of 190, loss 0.8258 instead of 0.8242, accuracy on 4000
    others 0.7865 instead of 0.7860, which it also was, within 0.001, after every 5th pass from the 15th on. Starting
    from a solution on a part of the rows spares nothing: a quarter's lies further off (0.24 nats) than ten passes do.

    Args:
        rows: (N, D) float32, standardised; not changed.
        targets: (N,) int64 in [0, classes).
        weight_decay: above 0.
        iterations: at most so many; a warning tells when they do not suffice.
        to_the_end: N · D · C up to which the optimum is reached to the last digit.
    Returns: weight (classes, D) and bias (classes,), float32.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import OptimizeResult, minimize

    count, width = rows.shape
    moments = sum((part.T @ part).double() for part in rows.split(CHUNK)) / count
    curvature = torch.as_tensor(moments).cpu().numpy() / 4
    # the floor keeps float32 noise in the moments from making the matrix indefinite; it moves no optimum
    factor = cholesky(curvature + max(weight_decay, 1e-4) * np.eye(width), lower=True)
    large = count * width * classes > to_the_end
    losses: list[float] = []

    def unfold(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        free = point.reshape(classes, width + 1)
        return solve_triangular(factor, free[:, :width].T, lower=True, trans="T").T, free[:, width]

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = unfold(point)
        entropy, slope, bias_slope = _cross_entropy(rows, targets, _like(weight, rows), _like(bias, rows))
        slope = solve_triangular(factor, (slope + weight_decay * weight).T, lower=True).T
        value = entropy + weight_decay / 2 * float(np.square(weight).sum())
        return value, np.concatenate([slope, bias_slope[:, None]], axis=1).ravel()

    def settled() -> bool:
        return large and len(losses) > 5 and losses[-6] - losses[-1] < SETTLED * losses[-1]

    def after_a_step(intermediate_result: OptimizeResult) -> None:
        losses.append(intermediate_result.fun)
        if settled():
            raise StopIteration

    solution = minimize(
        loss,
        np.zeros(classes * (width + 1)),
        jac=True,
        method="L-BFGS-B",
        callback=after_a_step,
        options={"maxiter": iterations, "maxfun": 4 * iterations, "ftol": 1e-9, "gtol": 1e-7},
    )
    if np.linalg.norm(solution.jac) > 1e-2 and not settled():  # usually 1e-5 … 1e-4
        warnings.warn(
            f"linear probe: the regression stopped short of its optimum after {solution.nit} iterations "
            f"(gradient {np.linalg.norm(solution.jac):.1e}): {solution.message}",
            RuntimeWarning,
            stacklevel=2,
        )
    weight, bias = unfold(solution.x)
    return _like(weight, rows), _like(bias, rows)


def sgd_regression(
    views: Callable[[int], Tensor], targets: Tensor, *, classes: int, config: Config
) -> tuple[Tensor, Tensor]:
    """The paper's linear layer: SGD over `config.epochs` epochs, each over its own views in a new order.

    Args:
        views: epoch -> rows (N, D) float32, standardised.
        targets: (N,) int64 in [0, classes).
    Returns: weight (classes, D) and bias (classes,), float32.
    """
    order = torch.Generator().manual_seed(config.seed)
    weight = bias = torch.empty(0)
    for epoch in range(config.epochs):
        rows = views(epoch)
        if epoch == 0:
            weight = torch.zeros(classes, rows.shape[1], device=rows.device, requires_grad=True)
            bias = torch.zeros(classes, device=rows.device, requires_grad=True)
            optimizer = torch.optim.SGD(
                [weight, bias], lr=config.learning_rate, momentum=config.sgd_momentum, weight_decay=config.weight_decay
            )
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(config.milestones), config.factor)
        for index in torch.randperm(len(rows), generator=order).to(rows.device).split(config.batch_size):
            with torch.enable_grad():
                loss = functional.cross_entropy(functional.linear(rows[index], weight, bias), targets[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()


def _cross_entropy(rows: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean cross-entropy with its gradients (C, D) and (C,) in float64, a chunk of images at a time.

    Logits lie as (C, n): their gradient (C, n) @ (n, D) is eight times faster than (D, n) @ (n, C) for C = 10.
    """
    entropy = torch.zeros((), dtype=torch.float64, device=rows.device)
    slope = torch.zeros(weight.shape, dtype=torch.float64, device=rows.device)
    bias_slope = torch.zeros(bias.shape, dtype=torch.float64, device=rows.device)
    for part, target in zip(rows.split(CHUNK), targets.split(CHUNK), strict=True):
        logs = torch.addmm(bias[:, None], weight, part.T).log_softmax(dim=0)
        entropy -= logs.gather(0, target[None]).sum(dtype=torch.float64)
        wrong = logs.exp_()
        wrong.scatter_add_(0, target[None], torch.full_like(target[None], -1.0, dtype=wrong.dtype))
        slope += wrong @ part
        bias_slope += wrong.sum(dim=1)
    count = len(rows)
    return float(entropy) / count, slope.cpu().numpy() / count, bias_slope.cpu().numpy() / count


def _views(embedded: Embedded, train: Embeddings, mean: Tensor, scale: Tensor) -> Callable[[int], Tensor]:
    """epoch -> standardised rows of the labelled train images under that epoch's random views."""
    augmented = embedded.augmented
    if augmented is None:
        raise Refusal(
            "expected train rows under random views for the protocol 'paper', got stored rows only: "
            "evaluate a model that can embed images, or choose the protocol 'stored'."
        )

    def views(epoch: int) -> Tensor:
        fresh = labelled_rows(augmented(epoch))
        require_same_images(f"the random views of epoch {epoch}", fresh, train)
        return (tensor(fresh.rows, device=embedded.device) - mean).mul_(scale)

    return views


def _like(values: np.ndarray, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(rows.device, rows.dtype)
