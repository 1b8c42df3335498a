"""The judge: the divergence written out with every similarity in memory, differentiated by autograd.

    p_j^t = exp(t·a_j^t / τ_t) / Σ_k exp(t·a_k^t / τ_t)           teacher
    p_j^s = exp(s·a_j^s / τ_s) / Σ_k exp(s·a_k^s / τ_s)           student
    cross-entropy = -Σ_j p_j^t log p_j^s          entropy = -Σ_j p_j^t log p_j^t          KL = their difference

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_ssl.quantised import Anchors, Int8Rows
from compress_ssl.similarity.divergence import Divergence


def divergence(
    query: Tensor,
    query_anchors: Anchors,
    target: Tensor,
    target_anchors: Anchors,
    *,
    temperature: float,
    target_temperature: float,
    index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    own: tuple[Tensor, Tensor] | None = None,
) -> Divergence:
    """Arguments as in similarity.anchor_kl; `kl` is differentiable by `query`, `gradient` is None."""
    query_own, target_own = own if own is not None else (None, None)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        student = _similarities(query.to(dtype), query_anchors, query_own) / temperature
        teacher = _similarities(target.detach().to(dtype), target_anchors, target_own) / target_temperature
        left_out = torch.zeros_like(teacher, dtype=torch.bool)
        if index is not None and anchor_index is not None:
            left_out[:, left_out.shape[1] - len(anchor_index) :] = index[:, None] == anchor_index[None, :]
        # a query with nothing left would be 0/0: it keeps everything and is multiplied by 0 below
        usable = ~left_out.all(dim=1)
        left_out &= usable[:, None]
        log_q, log_p = (s.masked_fill(left_out, float("-inf")).log_softmax(dim=1) for s in (student, teacher))
        p = log_p.exp()
        log_q, log_p = (shares.masked_fill(left_out, 0) for shares in (log_q, log_p))  # 0 * -inf is no number
        kl, entropy = (p * (log_p - log_q)).sum(dim=1), -(p * log_p).sum(dim=1)
        return Divergence(kl * usable, entropy * usable, None)


def _similarities(rows: Tensor, anchors: Anchors, own: Tensor | None) -> Tensor:
    """(B, A) products with the anchors; (B, 1 + A) with an anchor of each row's own in front."""
    constant = anchors.float() if isinstance(anchors, Int8Rows) else anchors.detach()
    similarities = rows @ constant.to(rows.device, rows.dtype).T
    if own is None:
        return similarities
    return torch.cat([(rows * own.detach().to(rows.dtype)).sum(dim=1, keepdim=True), similarities], dim=1)
