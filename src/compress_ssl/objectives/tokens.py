"""Tokens: within each picture, the student's patches resemble one another as the teacher's do. For pairs of ViTs.

Source: relations between tokens are distilled in MiniLM (Wang et al., NeurIPS 2020, Sec. 3.2; v2, Findings of ACL 2021,
Sec. 3.1), between patches of images in Zhang et al., Knowledge Distillation via Token-Level Relationship Graph (2023).
With u_a the patch tokens of one picture, at length one, and T of them,

    p_ab = exp(u_a·u_b/τ) / Σ_{c≠a} exp(u_a·u_c/τ)      b ≠ a, for teacher and student, each in its own space
    L = CompRess-1q(rows) + token_weight · mean over pictures and a of KL(p_a^t || p_a^s)

Relations: it is CompRess's divergence with the other patches of the picture as anchors; no projector for tokens, no
bank, any two widths. The 1q term teaches the embedding, which patches alone do not.
Differs from MiniLM: tokens of the last layer instead of its attention's queries, keys and values; unit tokens with a
temperature instead of products over sqrt(d); a token is not compared with itself, for that is 1 on both sides and, at
a small temperature, all of the distribution. Grids of two sizes are made one (compress_ssl.patch_tokens).
The token term is computed by each process for its own pictures. The teacher must be live: tables hold no tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_ssl.objectives import compress_1q
from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Config(compress_1q.Config):
    """1q's, and how tokens are compared."""

    name: str = "tokens"
    token_weight: float = 1.0  # of the tokens' divergence, beside 1 of the rows'
    token_temperature: float = 0.1  # divides similarities of tokens, both sides; not tuned

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, usual in (("token_weight", "1"), ("token_temperature", "0.1")):
            if not 0 < getattr(self, name) < math.inf:
                raise Refusal(f"--objective.{name.replace('_', '-')} expected more than 0, got {getattr(self, name)}: "
                              f"{usual} is the default")  # fmt: skip


def token_kl(query: Tensor, target: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) between similarities of each token to the other tokens of its picture.

    Args:
        query: (B, T, D_s) unit tokens; receives the gradient. T at least 2.
        target: (B, T, D_t) unit tokens of the same squares. Constant.
    Returns: scalar in nats, mean over B and T.
    """
    own = torch.eye(query.shape[1], dtype=torch.bool, device=query.device)
    log_q, log_p = (
        (rows @ rows.transpose(1, 2) / temperature).masked_fill(own, -math.inf).log_softmax(dim=2)
        for rows in (query, target.detach())
    )
    difference = (log_p - log_q).masked_fill(own, 0)  # -inf - -inf is no number
    return (log_p.exp() * difference).sum(dim=2).mean()


class Objective(compress_1q.Objective):
    """1q on the rows; the tokens behind them among themselves.

    Rows are (B, D + T · D_token) on both sides: the embedding, then the tokens.
    """

    config: Config
    tokens = True
    token_side: int | None = None  # T is its square; set before the first step

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        rows, theirs = self._tokens(query), self._tokens(target)
        whole = super().__call__(self._row(query), self._row(target), index)
        return whole + self.config.token_weight * token_kl(rows, theirs, temperature=self.config.token_temperature)

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        super().update(key, self._row(target), index)

    def _row(self, rows: Tensor) -> Tensor:
        return rows[:, : self.width].contiguous()

    def _tokens(self, rows: Tensor) -> Tensor:
        """(B, T, D_token)"""
        assert self.token_side is not None, "set where models are opened"
        return rows[:, self.width :].unflatten(1, (self.token_side**2, -1))
