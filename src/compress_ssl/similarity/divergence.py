"""What every way of computing the divergence returns: the rows' values and, ready made, their gradient.

With w_j the anchors' shares and a_j the student's anchors, o_t = Σ p_j^t a_j and o_s = Σ p_j^s a_j:

    cross-entropy = log Σ exp(s·a_j / τ_s) - s·o_t / τ_s        KL = cross-entropy - entropy of p^t
    d/ds of either = (o_s - o_t) / τ_s

so the gradient needs no K x B matrix, and the cross term comes for free with it.
Source: CompRess, Sec. 3, differentiated.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Divergence(NamedTuple):
    """kl, entropy: (B,) nats, of Σ p^t (log p^t - log p^s) and of the teacher's shares.
    gradient: (B, D_s) of each row's KL, and so of its cross-entropy, by its query; None where it was not asked for.
    A query without an anchor has 0 everywhere.
    """

    kl: Tensor
    entropy: Tensor
    gradient: Tensor | None

    @property
    def cross_entropy(self) -> Tensor:
        """(B,) nats, of -Σ p^t log p^s."""
        return self.kl + self.entropy
