"""Linear probe: a softmax regression on the frozen embeddings.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, "Linear": unit rows, standardised by the train split's
per-dimension mean and variance, one linear layer, SGD on random views.
Two protocols. "paper" is that one: it embeds the train images anew for every epoch, and needs `Embedded.augmented`.
"stored" fits the same loss to the stored rows of the evaluation view and solves it to its optimum by L-BFGS, so there
is no learning rate, order or number of epochs to it, and two machines agree. Where rows × dimensions × classes exceed
`to_the_end` it ends some thousandths of a nat above the optimum, in few passes and by a recipe that has no options
(`softmax_regression` says which). Without random views it sees less data: compare models under one protocol.
Differs from the paper: both standardise with the statistics of the evaluation view, so that train and test rows go
through one map; the layer starts at zero, the loss being convex.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, labelled_rows, require_same_images, tensor
from compress_ssl.metrics import accuracy, top_k_accuracy
from compress_ssl.refusal import Refusal
from compress_ssl.softmax_regression import TO_THE_END, softmax_regression, standardiser

TOP = 5  # classes that may hold the right one; and only where there are more classes than that


@dataclass(frozen=True, kw_only=True)
class Config:
    ONLY: ClassVar = {  # protocol -> the options that it alone reads
        "stored": ("to_the_end",),
        "paper": ("epochs", "batch_size", "learning_rate", "sgd_momentum", "milestones", "factor", "seed"),
    }
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
