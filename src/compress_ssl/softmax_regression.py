"""The linear layer of frozen rows: a softmax regression on standardised rows, solved to its optimum.

What linear probe, few labels, linear transfer and the probes by layer fit; they differ in which rows it sees and in how
the weight decay is chosen.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

CHUNK = 4096  # images whose logits are held at once
TO_THE_END = 2**33  # images × dimensions × classes up to which the regression is solved to the last digit
BATCH = 4  # images for each dimension that a step of descent sees
STEPS = (1000, 5)  # that descent makes at least: so many, and so many for each class
PASSES = range(8, 41)  # over the images that this may take, with enough of them; L-BFGS takes some 50
SETTLED = 1e-3  # with fewer images it ends when five steps together lower the loss by less than this share
CONSTANT = 1e-6  # standard deviation below which a dimension of unit rows is rounding noise and stays unscaled


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
    335 classes), the result lies some thousandths of a nat above the minimum, for fewer passes:

    - with N ≥ C D / 2 and N ≥ 100 D, by descent in batches over 20 C D images, hence 20 C D / N passes, or at least 8
      (for ImageNet with D = 512, too); see `_descend`.
    - with fewer, L-BFGS stops when five steps together lower the loss by less than a thousandth.

    What both cost and miss is in docs/results/evaluation.md. Starting L-BFGS from a solution on a part of the rows, or
    from where descent ends, spares hardly any pass.

    With fewer rows than dimensions the optimum lies in the span of the rows, and lengths do not depend on the axes: it
    is looked for along N axes of that span, for 47 images of 9216 dimensions with a matrix of 47 × 47. That is small
    enough for float64, whose line searches need a third of the passes that float32's do.

    Args:
        rows: (N, D) float32, standardised; not changed.
        targets: (N,) int64 in [0, classes).
        weight_decay: above 0.
        iterations: of L-BFGS, at most so many; a warning tells when they do not suffice.
        to_the_end: N · D · C up to which the optimum is reached to the last digit; with N < D, N · N · C.
    Returns: weight (classes, D) and bias (classes,), float32.
    """
    count, width = rows.shape
    if count >= width:
        steps = max(STEPS[0], STEPS[1] * classes)
        passes = max(PASSES[0], math.ceil(steps * BATCH * width / count))
        if count * width * classes > to_the_end and passes in PASSES:
            return _descend(rows, targets, classes, weight_decay, passes)
        return _solve(rows, targets, classes, weight_decay, iterations, to_the_end)
    axes, corner = torch.linalg.qr(rows.double().T)  # (D, N) and (N, N)
    weight, bias = _solve(corner.T.contiguous(), targets, classes, weight_decay, iterations, to_the_end)
    return (weight @ axes.T).to(rows.dtype), bias.to(rows.dtype)


def _solve(
    rows: Tensor, targets: Tensor, classes: int, weight_decay: float, iterations: int, to_the_end: int
) -> tuple[Tensor, Tensor]:
    """The minimum in the dimensions given, as `softmax_regression` says, of the type of the rows."""
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import OptimizeResult, minimize

    count, width = rows.shape
    factor = cholesky(_curvature(rows, weight_decay), lower=True)
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
            f"the regression stopped short of its optimum after {solution.nit} iterations "
            f"(gradient {np.linalg.norm(solution.jac):.1e}): {solution.message}",
            RuntimeWarning,
            stacklevel=3,
        )
    weight, bias = unfold(solution.x)
    return _like(weight, rows), _like(bias, rows)


def _descend(rows: Tensor, targets: Tensor, classes: int, weight_decay: float, passes: int) -> tuple[Tensor, Tensor]:
    """Near the minimum, by stochastic gradient steps divided by the curvature L Lᵀ, with momentum (Nesterov's).

    A step is 0.4 at first and falls to 0 with the square of what is left. The noise of a step grows with D over the
    batch, hence batches of 4 D images; their order is drawn with a seed that does not change.
    """
    count, width = rows.shape
    inverse = torch.as_tensor(np.linalg.inv(_curvature(rows, weight_decay))).to(rows)
    batch = BATCH * width
    steps = passes * (count // batch)
    order = torch.Generator().manual_seed(0)
    weight, bias = rows.new_zeros(classes, width), rows.new_zeros(classes)
    speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    for step in range(steps):
        if step % (count // batch) == 0:
            batches = torch.randperm(count, generator=order).to(rows.device).split(batch)
        index = batches[step % (count // batch)]
        part, target = rows[index], targets[index]
        wrong = torch.addmm(bias[:, None], weight, part.T).softmax(dim=0)
        wrong.scatter_add_(0, target[None], wrong.new_full((1, batch), -1.0))
        slope = (wrong @ part).div_(batch).add_(weight, alpha=weight_decay) @ inverse
        bias_slope = wrong.sum(dim=1) * (4 / batch)
        length = 0.4 * (1 - step / steps) ** 2
        for place, moved, change in ((weight, speed, slope), (bias, bias_speed, bias_slope)):
            moved.mul_(0.9).add_(change)
            place.sub_(change.add_(moved, alpha=0.9), alpha=length)
    return weight, bias


def _curvature(rows: Tensor, weight_decay: float) -> np.ndarray:
    """(D, D) float64: XᵀX / 4N, an upper bound of each class's curvature, and what the weight decay adds to it."""
    moments = sum((part.T @ part).double() for part in rows.split(CHUNK)) / len(rows)
    # the floor keeps float32 noise in the moments from making the matrix indefinite; it moves no optimum
    return torch.as_tensor(moments).cpu().numpy() / 4 + max(weight_decay, 1e-4) * np.eye(rows.shape[1])


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


def _like(values: np.ndarray, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(rows.device, rows.dtype)
