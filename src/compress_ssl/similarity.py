"""The mathematics: how differently two models see the same anchors.

    p_j^t = exp(t·a_j^t / temperature) / Σ_k exp(t·a_k^t / temperature)           teacher
    p_j^s = exp(s·a_j^s / temperature) / Σ_k exp(s·a_k^s / temperature)           student
    KL(p^t || p^s) = Σ_j p_j^t (log p_j^t - log p_j^s)                            gradient to s only

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def anchor_kl(
    query: Tensor,
    query_anchors: Tensor,
    target: Tensor,
    target_anchors: Tensor,
    *,
    temperature: float,
    index: Tensor | None = None,
    anchor_index: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) between two similarity distributions over the same anchors.

    Args:
        query: (B, D_s) unit rows of the student; receives the gradient.
        query_anchors: (A, D_s); row j is the same image as row j of `target_anchors`. Constant.
        target: (B, D_t) unit rows of the teacher. Constant.
        target_anchors: (A, D_t). Constant.
        temperature: divides the similarities of both sides.
        index: (B,) int64 sample of each query, with `anchor_index`: an anchor of the query's own sample is left out.
        anchor_index: (A,) int64 sample of each anchor.
    Returns: scalar in nats, mean over B, in the query's dtype but at least float32. A query with no anchor left
        (none at all, or only its own image) contributes 0 and no gradient.
    Raises: ValueError if shapes do not fit together, one index is missing or the temperature is not positive.
    """
    _check(query, query_anchors, target, target_anchors, temperature)
    _check_samples(index, anchor_index, len(query), len(query_anchors))
    dtype = torch.promote_types(query.dtype, torch.float32)
    if len(query_anchors) == 0:
        return (query * 0).sum().to(dtype)
    with torch.autocast(query.device.type, enabled=False):
        own = None if index is None or anchor_index is None else index[:, None] == anchor_index[None, :]
        alone = None if own is None else own.all(dim=1, keepdim=True)
        # a query that has only its own anchors would be 0/0: it keeps them and is multiplied by 0 below
        left_out = None if own is None or alone is None else own & ~alone
        log_p = _log_shares(target.detach().to(dtype), target_anchors.detach().to(dtype), temperature, left_out)
        log_q = _log_shares(query.to(dtype), query_anchors.detach().to(dtype), temperature, left_out)
        difference = log_p - log_q
        if alone is None or left_out is None:
            return (log_p.exp() * difference).sum(dim=1).mean()
        difference = difference.masked_fill(left_out, 0)  # -inf - -inf; its weight is 0
        return (log_p.exp() * difference).sum(dim=1).mul(~alone.squeeze(1)).mean()


def _log_shares(rows: Tensor, anchors: Tensor, temperature: float, left_out: Tensor | None) -> Tensor:
    """(B, A) log of each anchor's share; a function of its own, so that the similarities are freed on return."""
    similarities = (rows @ anchors.T) / temperature
    if left_out is not None:
        similarities.masked_fill_(left_out, float("-inf"))
    return similarities.log_softmax(dim=1)


def _check(query: Tensor, query_anchors: Tensor, target: Tensor, target_anchors: Tensor, temperature: float) -> None:
    shapes = f"query {tuple(query.shape)}, query_anchors {tuple(query_anchors.shape)}, "
    shapes += f"target {tuple(target.shape)}, target_anchors {tuple(target_anchors.shape)}"
    if any(rows.ndim != 2 for rows in (query, query_anchors, target, target_anchors)):
        raise ValueError(f"expected four matrices of rows, got {shapes}: flatten or batch them")
    if query.shape[1] != query_anchors.shape[1] or target.shape[1] != target_anchors.shape[1]:
        raise ValueError(f"expected anchors as wide as their side's rows, got {shapes}: take each side's own bank")
    if len(query) != len(target):
        raise ValueError(f"expected one target per query, got {shapes}: pass rows of the same images")
    if len(query_anchors) != len(target_anchors):
        raise ValueError(f"expected as many query anchors as target anchors, got {shapes}: fill both banks together")
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}: the paper's is 0.04")


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
