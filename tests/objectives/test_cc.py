"""Cluster classification against cross-entropy in loops over floats, and scikit-learn's clusters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional

from compress_ssl.objectives.cc import UNKNOWN, Config, Objective
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def make(images: int = 23, *, seed: int = 0, **options: Any) -> Objective:
    return Objective(Config(**options), width=5, target_width=9, images=images, seed=seed)


def test_the_loss_and_its_gradients_equal_loops_over_floats(unit) -> None:
    """Another scale of the logits would be another learning rate, or logits that cannot differ."""
    objective, index = make(clusters=3), torch.tensor([4, 0, 22, 4])
    objective.fit(unit(23, 9, seed=1), torch.arange(23))
    objective.trained.double()
    query = unit(4, 5, seed=2).double().requires_grad_()
    loss = objective(query, unit(4, 9, seed=3), index)
    loss.backward()

    weight, bias = objective.trained.weight.tolist(), objective.trained.bias.tolist()
    total, slope = 0.0, [[0.0] * 5 for _ in range(4)]
    for place, row in enumerate(query.tolist()):
        own = int(objective.cluster[index[place]])
        logits = [math.fsum(a * b * math.sqrt(5) for a, b in zip(row, line, strict=True)) + shift
                  for line, shift in zip(weight, bias, strict=True)]  # fmt: skip
        whole = math.fsum(math.exp(logit) for logit in logits)
        total += math.log(whole) - logits[own]
        for number, line in enumerate(weight):
            error = math.exp(logits[number]) / whole - (number == own)
            for column in range(5):
                slope[place][column] += error * line[column] * math.sqrt(5) / 4
    assert float(loss.detach()) == pytest.approx(total / 4, rel=1e-12)
    torch.testing.assert_close(query.grad, torch.tensor(slope, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert objective.trained.weight.grad.abs().sum() > 0, "the classifier learns too"


def test_the_clusters_are_those_of_the_teacher_s_rows() -> None:
    """The student would learn to tell apart what the teacher does not."""
    centres, generator = torch.eye(9)[:4], torch.Generator().manual_seed(0)
    truth = torch.arange(40) % 4
    rows = functional.normalize(centres[truth] + 0.1 * torch.randn(40, 9, generator=generator))
    order = torch.randperm(40, generator=generator)
    objective = make(40, clusters=4)
    objective.fit(rows[order], order)
    reference = KMeans(4, n_init=10, random_state=0).fit(rows.numpy())
    assert adjusted_rand_score(reference.labels_, objective.cluster.numpy()) == 1
    assert adjusted_rand_score(truth, objective.cluster.numpy()) == 1, "rows and images go together"


def test_a_student_that_knows_the_clusters_reaches_a_small_loss(unit) -> None:
    """Logits of unit rows that are not scaled stay nearly equal, and so does the loss."""
    objective = make(clusters=3)
    objective.fit(unit(23, 9, seed=1), torch.arange(23))
    index = torch.arange(23)
    query = functional.normalize(functional.one_hot(objective.cluster, 5).float() + 0.05)
    optimizer = torch.optim.SGD(objective.trained.parameters(), lr=0.5, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        loss = objective(query, query, index)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01


@pytest.mark.parametrize(
    ("images", "asked", "clusters"),
    [(23, None, 2), (800, None, 10), (50_000, None, 625), (1_281_167, None, 16_000), (7, 11, 7), (7, 3, 3)],
)
def test_the_number_of_clusters_grows_with_the_images(images: int, asked: int | None, clusters: int) -> None:
    """ImageNet's number would leave three images in each cluster of CIFAR-10."""
    assert make(images, clusters=asked).clusters == clusters


def test_an_image_without_a_row_is_refused_when_it_is_met(unit) -> None:
    """It would be taught a cluster that nobody gave it."""
    objective = make(5, clusters=2)
    objective.fit(unit(4, 9, seed=1), torch.tensor([0, 1, 3, 4]))
    assert objective.cluster[2] == UNKNOWN
    query = unit(2, 5, seed=2)
    objective(query, query, torch.tensor([4, 3]))
    with pytest.raises(Refusal, match="got none for image number 2: mend"):
        objective(query, query, torch.tensor([4, 2]))


def test_on_an_accelerator_it_is_refused_without_waiting(unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU would run dry in every step, or learn from an image without a cluster."""
    objective = make(5, clusters=2)
    objective.fit(unit(4, 9, seed=1), torch.tensor([0, 1, 3, 4]))

    class Accelerator:
        type = "cuda"

    query, index = unit(2, 5, seed=2), torch.tensor([4, 2])
    alone = objective(query[:1], query[:1], index[:1])
    monkeypatch.setattr(torch.Tensor, "device", Accelerator())
    loss = objective(query, query, index)
    monkeypatch.undo()
    torch.testing.assert_close(loss, alone / 2)
    meta = make(5, clusters=2)
    meta.cluster = meta.cluster.to("meta")
    meta.trained.to("meta")
    here = torch.zeros(2, dtype=torch.int64, device="meta")
    meta(query.to("meta"), query, here)
    meta.update(query, query, here)
    assert len(meta._unknown) == 1, "read when it has arrived"


def test_a_resumed_one_has_the_clusters_it_started_with(unit) -> None:
    """Clusters found anew have other numbers: the classifier would start over."""
    first, second = make(clusters=3), make(clusters=3, seed=5)
    for one in (first, second):
        one.fit(unit(23, 9, seed=1 + one.seed), torch.arange(23))
    assert not torch.equal(first.cluster, second.cluster)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.cluster, second.cluster)
    with pytest.raises(Refusal, match="expected saved clusters of 7 images, got 23"):
        make(7).load_state_dict(first.state_dict())


def test_the_classifier_is_chosen_by_the_seed_alone() -> None:
    """Processes would start with different ones; the student's own weights would depend on the number of clusters."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    weights = [make(seed=seed).trained.weight for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("option", "value"), [("clusters", 1), ("iterations", 0)])
def test_options_that_cluster_nothing_are_refused(option: str, value: int) -> None:
    """One cluster teaches nothing, after an hour."""
    with pytest.raises(Refusal, match=f"--objective.{option} expected at least"):
        Config(**{option: value})


def test_made_up_clusters_are_as_many_and_chosen_by_the_seed(unit) -> None:
    """Steps that are measured would be refused for want of clusters, or be those of another classifier."""
    found = []
    for seed in (3, 3, 4):
        objective = Objective(Config(clusters=4), width=5, target_width=9, images=97)
        objective.fit_randomly(torch.Generator().manual_seed(seed))
        assert torch.equal(objective.cluster.unique(), torch.arange(4))
        assert torch.isfinite(objective(unit(97, 5, seed=1), unit(97, 9, seed=2), torch.arange(97)))
        found.append(objective.cluster)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
