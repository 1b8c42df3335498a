"""The mathematics: how differently two models see the same anchors.

    p_j^t = exp(t·a_j^t / τ_t) / Σ_k exp(t·a_k^t / τ_t)           teacher
    p_j^s = exp(s·a_j^s / τ_s) / Σ_k exp(s·a_k^s / τ_s)           student
    KL(p^t || p^s) = Σ_j p_j^t (log p_j^t - log p_j^s)            gradient to s only

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3.
Three ways to the same values: `naive` (the judge), `streamed` (one pass, any device), `fused` (Triton kernels).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup, all_gather, get_rank, get_world_size

from compress_ssl.calibration import Temperature
from compress_ssl.quantised import Anchors, Int8Rows, values
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import fused, naive, streamed
from compress_ssl.similarity.divergence import Divergence

Path = Literal["auto", "naive", "streamed", "fused"]


def anchor_kl(
    query: Tensor,
    query_anchors: Anchors,
    target: Tensor,
    target_anchors: Anchors,
    *,
    temperature: float,
    target_temperature: float | None = None,
    index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    own: tuple[Tensor, Tensor] | None = None,
    group: ProcessGroup | None = None,
    path: Path = "auto",
) -> Tensor:
    """KL(teacher || student) between two similarity distributions over the same anchors.

    Args:
        query: (B, D_s) unit rows of the student; receives the gradient.
        query_anchors: (A, D_s) float32, bfloat16, float16 or Int8Rows, which `compress_ssl.quantised.quantise` makes;
            row j is the same image as row j of `target_anchors`. Constant. Sums are kept in float32 at least.
        target: (B, D_t) unit rows of the teacher. Constant.
        target_anchors: (A, D_t), likewise. Constant. The same object as `query_anchors` saves time.
        temperature: divides the similarities of the student, and of the teacher unless it has its own.
        target_temperature: divides those of the teacher.
        index: (B,) int64 sample of each query, with `anchor_index`: an anchor of the query's own sample is left out.
        anchor_index: (A,) int64 sample of each anchor.
        own: (B, D_s) and (B, D_t) one more anchor for each query, seen by no other and never left out (SEED's slot).
            Constant.
        group: the anchors, and `anchor_index`, are this process's share of a bank that is spread over the group: its
            queries are compared with the anchors of all processes. Each process brings queries of its own, all of them
            equally many, and gets the value and gradient of those. Rows that the processes exchange: the queries and
            2B sums over anchors, never anchors.
        path: auto takes the streamed one; the naive one keeps A x B similarities; the fused one is for CUDA.
    Returns: scalar in nats, mean over B, in the query's dtype but at least float32. A query with no anchor left
        (none at all, or only its own image) contributes 0 and no gradient. Except on the naive path the gradient is
        computed together with the value: it may be propagated once, and the anchors may be overwritten before.
    Raises: ValueError if shapes do not fit together, one index is missing, a temperature is not positive, or the path
        cannot take these tensors.
    """
    found = _divergence(query, query_anchors, target, target_anchors, temperature, target_temperature, index,
                        anchor_index, own, group, path)  # fmt: skip
    return _mean(query, found.kl, found.gradient)


def anchor_cross_entropy(
    query: Tensor,
    query_anchors: Anchors,
    target: Tensor,
    target_anchors: Anchors,
    *,
    temperature: float,
    target_temperature: float | None = None,
    index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    own: tuple[Tensor, Tensor] | None = None,
    group: ProcessGroup | None = None,
    path: Path = "auto",
) -> Tensor:
    """-Σ p^t log p^s, mean over B: `anchor_kl` plus the teacher's entropy, so with the same gradient."""
    found = _divergence(query, query_anchors, target, target_anchors, temperature, target_temperature, index,
                        anchor_index, own, group, path)  # fmt: skip
    return _mean(query, found.cross_entropy, found.gradient)


def refuse_path(path: Path, device: torch.device | str, temperature: Temperature) -> None:
    """Refuse, before a run starts, a path that the device or the temperature cannot take."""
    reason = fused.machine_refused(torch.device(device)) if path == "fused" else None
    if reason is not None:
        raise Refusal(f"--objective.path fused expected a CUDA device and Triton, but {reason}: leave it out")
    if path == "fused" and temperature != "auto" and temperature < fused.LOWEST_TEMPERATURE:
        raise Refusal(f"--objective.path fused expected a temperature of at least {fused.LOWEST_TEMPERATURE}, got "
                      f"{temperature}: leave it out")  # fmt: skip


def _divergence(
    query: Tensor,
    query_anchors: Anchors,
    target: Tensor,
    target_anchors: Anchors,
    temperature: float,
    target_temperature: float | None,
    index: Tensor | None,
    anchor_index: Tensor | None,
    own: tuple[Tensor, Tensor] | None,
    group: ProcessGroup | None,
    path: Path,
) -> Divergence:
    target_temperature = temperature if target_temperature is None else target_temperature
    _check(query, query_anchors, target, target_anchors, temperature, target_temperature)
    _check_samples(index, anchor_index, len(query), len(values(query_anchors)))
    _check_own(own, query, target)
    banks: tuple[Any, ...] = (query, query_anchors, target, target_anchors)
    shared: dict[str, Any] = {"temperature": temperature, "target_temperature": target_temperature}
    options: dict[str, Any] = shared | {"index": index, "anchor_index": anchor_index, "own": own}
    if path == "naive":
        if group is not None:
            raise ValueError("expected the streamed or the fused path for a bank that is spread over processes, got "
                             "the naive one: leave out path")  # fmt: skip
        return naive.divergence(*banks, **options)
    if path not in ("auto", "streamed", "fused"):
        raise ValueError(f"expected path auto, naive, streamed or fused, got {path!r}: choose one of them")
    wanted = query.requires_grad and torch.is_grad_enabled()
    place = slice(None)
    if group is not None:
        place = slice(get_rank(group) * len(query), (get_rank(group) + 1) * len(query))
        banks = (_together(query, group), query_anchors, _together(target, group), target_anchors)
        if index is not None:
            options["index"] = _together(index, group)
        if own is not None:
            options["own"] = tuple(_together(rows, group) for rows in own)
    if path == "fused":
        reason = fused.refused(*banks, **shared)
        if reason is not None:
            raise Refusal(f"path fused expected tensors that its kernels can take, but {reason}: leave it out")
        found = fused.divergence(*banks, **options, group=group, gradient=wanted)
    else:
        found = streamed.divergence(*banks, **options, group=group, gradient=wanted)
    gradient = None if found.gradient is None else found.gradient[place]
    return Divergence(found.kl[place], found.entropy[place], gradient)


def _together(rows: Tensor, group: ProcessGroup) -> Tensor:
    """(B, …) of every process, equally many -> (B · processes, …) without gradient."""
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(get_world_size(group))]
    all_gather(parts, rows, group=group)
    return torch.cat(parts)


def _mean(query: Tensor, values: Tensor, gradient: Tensor | None) -> Tensor:
    """(B,) values -> their mean, whose derivative by `query` is the mean of `gradient` if there is one."""
    if gradient is None:
        return values.mean()
    return _GradientReady.apply(query, values.mean(), gradient)


class _GradientReady(torch.autograd.Function):
    """A scalar with a gradient that is known already: nothing but the gradient is kept for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = query.dtype
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * (upstream / len(gradient))).to(ctx.dtype), None, None


def _check(
    query: Tensor,
    query_anchors: Anchors,
    target: Tensor,
    target_anchors: Anchors,
    temperature: float,
    target_temperature: float,
) -> None:
    q, qa, t, ta = (tuple(values(rows).shape) for rows in (query, query_anchors, target, target_anchors))
    shapes = f"query {q}, query_anchors {qa}, target {t}, target_anchors {ta}"
    banks = query_anchors, target_anchors
    if not all(isinstance(rows, Int8Rows) or rows.is_floating_point() for rows in banks):
        dtypes = " and ".join(str(values(rows).dtype) for rows in banks)
        raise ValueError(f"expected anchors of floats or Int8Rows, got {dtypes}: make rows of eight bits with "
                         "compress_ssl.quantised.quantise")  # fmt: skip
    if any(len(shape) != 2 for shape in (q, qa, t, ta)):
        raise ValueError(f"expected four matrices of rows, got {shapes}: flatten or batch them")
    if q[1] != qa[1] or t[1] != ta[1]:
        raise ValueError(f"expected anchors as wide as their side's rows, got {shapes}: take each side's own bank")
    if q[0] != t[0]:
        raise ValueError(f"expected one target per query, got {shapes}: pass rows of the same images")
    if qa[0] != ta[0]:
        raise ValueError(f"expected as many query anchors as target anchors, got {shapes}: fill both banks together")
    for given in (temperature, target_temperature):
        if not given > 0:
            raise ValueError(f"expected a temperature above 0, got {given}: the paper's is 0.04")


def _check_samples(index: Tensor | None, anchor_index: Tensor | None, queries: int, anchors: int) -> None:
    if index is None and anchor_index is None:
        return
    if index is None or anchor_index is None:
        missing = "index" if index is None else "anchor_index"
        raise ValueError(f"expected both index and anchor_index or neither, got no {missing}: pass it too")
    if index.shape != (queries,) or anchor_index.shape != (anchors,):
        raise ValueError(
            f"expected one sample per query ({queries},) and per anchor ({anchors},), got index {tuple(index.shape)}, "
            f"anchor_index {tuple(anchor_index.shape)}: take them with their rows"
        )


def _check_own(own: tuple[Tensor, Tensor] | None, query: Tensor, target: Tensor) -> None:
    if own is not None and (own[0].shape != query.shape or own[1].shape != target.shape):
        raise ValueError(
            f"expected one own anchor per query, {tuple(query.shape)} and {tuple(target.shape)}, got "
            f"{tuple(own[0].shape)} and {tuple(own[1].shape)}: pass the student's and the teacher's"
        )
