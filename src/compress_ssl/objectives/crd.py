"""CRD: of the teacher's row of an image and those of other images, the student's row is to tell which is its own.

Source: Tian et al., Contrastive Representation Distillation, ICLR 2020, Eq. 10 (noise contrastive estimation) and 19
(the critic); the objective without labels that the paper of CompRess compares with (NeurIPS 2020, Sec. 4). Two linear
heads that learn with the student lead both models' rows to 128 numbers of length one, g_S and g_T. With N negatives

    h(t, s) = e^{g_T(t)·g_S(s)/τ} / (e^{g_T(t)·g_S(s)/τ} + N·c)            that t and s are of one image
    L = -log h(t, s) - Σ_n log(1 - h(t_n, s))   +   -log h(t, s) - Σ_n log(1 - h(t, s_n))

c, the mean of e^{·/τ} over other images, is a constant: where the paper has 1/M, the authors' code measures it in its
first batch, against a memory of random rows; here it is the exact mean over random rows, so that nothing is measured.
Differs from the authors' code: there each of the M images has a slot in a memory, moved by a half whenever it is seen;
positives are read from it, and negatives are drawn. Here the positive is the image's own row as it is now, with a
gradient to both heads, and the negatives are the rows of the last N images, which is a ring of N instead of M rows;
rows of the query's own image are not among them. With fewer negatives N is their number, so that h stays a probability.
Heads see sqrt(D)·row: entries of about 1, beside which a bias as it starts does not count.
The paper, ResNet-18 from MoCo's ResNet-50: CRD 43.7, 1q 53.5 (% by nearest neighbour).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl.bank import Bank
from compress_ssl.quantised import values
from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' values."""

    name: str = "crd"
    bank_size: int = 16_384  # N, negatives on each side; capped at the number of training images
    temperature: float = 0.07  # divides similarities of the heads' rows
    head_width: int = 128  # of the rows that are compared

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise Refusal(f"--objective.temperature expected more than 0, got {self.temperature}: the authors' is 0.07")
        for name, usual in (("bank_size", 16_384), ("head_width", 128)):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise Refusal(f"--objective.{flag} expected at least 1, got {getattr(self, name)}: the authors' is "
                              f"{usual}")  # fmt: skip


def noise_contrastive(
    anchor: Tensor, positive: Tensor, negatives: Tensor, left_out: Tensor, *, temperature: float
) -> Tensor:
    """-log h(positive) - Σ log(1 - h(negative)), see the module.

    Args:
        anchor: (B, D) unit rows.
        positive: (B, D) the other model's rows of the same images.
        negatives: (N, D) the other model's rows of other images.
        left_out: (B, N) bool, negatives that do not count for an anchor. Where none counts, N in h is 1.
    Returns: scalar in nats, mean over B.
    """
    count = (~left_out).sum(dim=1).clamp(min=1)
    noise = count.log() + log_mean_of_random_rows(anchor.shape[1], temperature=temperature)  # log(N·c)
    own = (anchor * positive).sum(dim=1) / temperature - noise
    others = anchor @ negatives.T / temperature - noise[:, None]
    wrong = functional.softplus(others).masked_fill(left_out, 0).sum(dim=1)  # -log(1 - h) is softplus of h's logit
    return (functional.softplus(-own) + wrong).mean()


def log_mean_of_random_rows(width: int, *, temperature: float) -> float:
    """log E[e^{x·y/τ}] of independent random unit rows x, y with `width` entries.

    It is log 0F1(D/2; 1/(4τ²)), the normaliser of the von Mises-Fisher distribution: a sum of positive terms, of which
    those near 1/(2τ) are the largest.
    """
    order = torch.arange(64 + math.ceil(2 / temperature), dtype=torch.float64)
    half = torch.tensor(width / 2, dtype=torch.float64)
    terms = order * -math.log(4 * temperature**2) - torch.lgamma(order + 1) - torch.lgamma(half + order)
    return float(terms.logsumexp(dim=0) + torch.lgamma(half))


class Heads(nn.Module):
    """One linear layer for each model."""

    def __init__(self, width: int, target_width: int, head_width: int):
        super().__init__()
        self.student, self.teacher = nn.Linear(width, head_width), nn.Linear(target_width, head_width)

    def forward(self, query: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D_s) and (B, D_t) unit rows -> (B, D) unit rows of both."""
        pairs = ((self.student, query), (self.teacher, target))
        both = (head(rows.to(head.weight.dtype) * math.sqrt(rows.shape[1])) for head, rows in pairs)
        student, teacher = (functional.normalize(rows, dim=1) for rows in both)
        return student, teacher


class Objective:
    """Two heads, and a bank of what they made of the last images."""

    momentum: float | None = None  # keys are the queries themselves
    stored_anchors = False
    space = "own"

    def __init__(
        self,
        config: Config,
        *,
        width: int,
        target_width: int,
        images: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        **_: Any,  # the group: the bank is the same in every process, the heads' gradients are averaged
    ):
        self.config, self.temperature = config, config.temperature
        with torch.random.fork_rng(devices=[]):  # alike in every process; the student's weights are drawn as without it
            torch.manual_seed(seed)
            self.trained = Heads(width, target_width, config.head_width)
        self.trained.to(device)
        widths = dict.fromkeys(("student", "teacher"), config.head_width)
        self.bank = Bank(min(config.bank_size, images), widths, device=device)

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_s) unit rows with gradient, (B, D_t) unit rows, (B,) samples -> scalar in nats.

        Takes memory for 2·B·N similarities.
        """
        student, teacher = self.trained(query, target.detach())
        left_out = index[:, None] == self.bank.index[None, :]
        losses = []
        for anchor, positive, side in ((student, teacher, "teacher"), (teacher, student, "student")):
            negatives = values(self.bank.anchors(side)).to(anchor.dtype)
            losses.append(noise_contrastive(anchor, positive, negatives, left_out, temperature=self.temperature))
        return losses[0] + losses[1]

    @torch.no_grad()
    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Write what the heads make of the batch, that of all processes, into the bank; after backward."""
        student, teacher = self.trained(key, target)
        self.bank.write(index, student=student.float(), teacher=teacher.float())

    def state_dict(self) -> dict[str, Any]:
        return self.bank.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state)
