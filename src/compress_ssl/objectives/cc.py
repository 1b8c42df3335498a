"""Cluster classification: the teacher's rows are clustered once, and the student learns which cluster an image is in.

Source: "CC", the first baseline of Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, Sec. 4; the idea is that of
Noroozi et al., Boosting Self-Supervised Learning via Knowledge Transfer, CVPR 2018, and of Yan et al., ClusterFit, CVPR
2020. Every random view of an image has the cluster that k-means gave to the image in the evaluation view; of two mixed
pictures it is that of the one with the larger share.
Relations: regression and 1q keep the teacher's rows as they are; here all that is left of a row is a number.
The classifier is one linear layer, dropped after training, over sqrt(D_s) · query. The authors classify the features
themselves, but a query is a unit row, whose entries are so small that a linear layer as it starts makes nearly equal
logits of all images. Times sqrt(D_s) its entries have the size 1 that batch norm would give them, but each row by
itself: the loss stays a mean over images, the same in parts and in several processes.
The paper, ResNet-18 from MoCo's ResNet-50: CC 51.1, 1q 53.5 (% by nearest neighbour).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl.clustering import k_means
from compress_ssl.host_copy import HostCopy
from compress_ssl.refusal import Refusal

UNKNOWN = -1  # cluster of an image that had no row
IMAGES_PER_CLUSTER = 80  # 1.28 million images of ImageNet in 16 000 clusters
MOST = 16_000


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the teacher's rows are clustered."""

    name: str = "cc"
    # none: one for 80 training images, from 2 to 16000 (the size of ClusterFit's on ImageNet); capped at their number
    clusters: int | None = None
    iterations: int = 20  # of Lloyd's algorithm, from different rows at random

    def __post_init__(self) -> None:
        if self.clusters is not None and self.clusters < 2:
            raise Refusal(f"--objective.clusters expected at least 2, got {self.clusters}: leave it out")
        if self.iterations < 1:
            raise Refusal(f"--objective.iterations expected at least 1, got {self.iterations}: leave it out")


class Objective:
    """The cluster of each image, and the classifier that learns with the student."""

    momentum: float | None = None  # nothing is compared with keys
    stored_anchors = False
    space = "own"
    temperature = None
    fits_targets = True

    def __init__(
        self,
        config: Config,
        *,
        width: int,
        images: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        **_: Any,
    ):
        self.config, self.seed = config, seed
        wanted = config.clusters or min(max(images // IMAGES_PER_CLUSTER, 2), MOST)
        self.clusters = min(wanted, images)
        self.cluster = torch.full((images,), UNKNOWN, device=device)
        self.scale = math.sqrt(width)
        with torch.random.fork_rng(devices=[]):  # alike in every process; the student's weights are drawn as without it
            torch.manual_seed(seed)
            self.trained = nn.Linear(width, self.clusters)
        self.trained.to(device)
        self._unknown: list[HostCopy] = []

    def fit(self, target: Tensor, index: Tensor) -> None:
        """Cluster (N, D_t) unit rows of the images (N,); once, before the first step."""
        rows = target.float().cpu().numpy()
        _, assignments = k_means(
            rows, clusters=self.clusters, iterations=self.config.iterations, seed=self.seed, start="random", attempts=1
        )
        self.cluster.fill_(UNKNOWN)
        self.cluster[index] = torch.from_numpy(assignments).to(self.cluster.device)

    def fit_randomly(self, generator: torch.Generator) -> None:
        """Make clusters up: a step costs what it does with those of `fit`."""
        self.cluster.copy_(torch.randint(self.clusters, self.cluster.shape, generator=generator))

    def __call__(self, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(B, D_s) unit rows with gradient, their targets, (B,) samples -> cross-entropy, scalar in nats.

        Raises: Refusal if an image had no row when clusters were made; on an accelerator `update` raises it, as soon as
            it is known, and such an image counts 0 until then.
        """
        del target  # its cluster is known
        clusters = self.cluster[index]
        if clusters.device.type == "cpu":
            _refuse(_first_unknown(clusters, index))
        logits = self.trained(query.to(self.trained.weight.dtype) * self.scale)
        return functional.cross_entropy(logits, clusters, ignore_index=UNKNOWN, reduction="none").mean()

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Nothing is kept of a step."""
        del key, target
        if index.device.type == "cpu":
            return
        self._unknown.append(HostCopy(_first_unknown(self.cluster[index], index)))
        while self._unknown and self._unknown[0].arrived():
            _refuse(self._unknown.pop(0).read())

    def state_dict(self) -> dict[str, Any]:
        return {"cluster": self.cluster.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: Refusal if it is of another number of images."""
        if state["cluster"].shape != self.cluster.shape:
            raise Refusal(f"expected saved clusters of {len(self.cluster)} images, got {len(state['cluster'])}: resume "
                          "with the data that started the run")  # fmt: skip
        self.cluster.copy_(state["cluster"])


def _first_unknown(clusters: Tensor, index: Tensor) -> Tensor:
    """(2,) whether an image has no cluster, and which is the first."""
    unknown = clusters == UNKNOWN
    return torch.stack([unknown.any().long(), index.index_select(0, unknown.int().argmax()[None]).squeeze(0)])


def _refuse(found: Tensor) -> None:
    bad, image = found.tolist()
    if bad:
        raise Refusal(f"expected a row of the teacher for every training image when clusters were made, got none for "
                      f"image number {image}: mend or remove the file, and start the run anew")  # fmt: skip
