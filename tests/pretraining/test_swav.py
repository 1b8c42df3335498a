"""SwAV: prototypes of length one, frozen at first; a bank that joins later; assignments that use all prototypes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn
from torch.nn import functional

from compress_ssl.encoder import open_encoder
from compress_ssl.pretraining import swav

FABRIC = SimpleNamespace(device=torch.device("cpu"), global_rank=0, world_size=1)


def method(**options: float) -> tuple[swav.Head, swav.Method]:
    torch.manual_seed(0)
    config = swav.Config(prototypes=11, hidden_width=7, projection_width=5, **options)  # type: ignore[arg-type]
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=16)
    learner = swav.make_learner(config, encoder, ranks=1).train()
    return learner.head, swav.Method(config, learner, images=200, fabric=FABRIC)  # type: ignore[arg-type]


def test_prototypes_have_length_one_before_the_first_step_and_after_every_one() -> None:
    """One long prototype would win all pictures."""
    head, ours = method()
    query = head(torch.randn(2 * 3, 64))
    for _ in range(2):
        torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(11))
        with torch.no_grad():
            head.prototypes.weight.mul_(3)
        ours.update(query, None, torch.arange(3), 0.5)


def test_the_default_epsilon_tells_near_rows_apart() -> None:
    """Rows of an untrained encoder are nearly one: assigned to all prototypes alike, they would teach to stay so."""
    torch.manual_seed(0)
    middle = functional.normalize(torch.randn(1, 128), dim=1)
    rows = functional.normalize(middle + 0.04 * torch.randn(64, 128), dim=1)
    scores = rows @ functional.normalize(torch.randn(32, 128), dim=1).T

    def decided(epsilon: float) -> float:
        shares = sinkhorn(scores, epsilon=epsilon)
        return math.log(32) + float((shares * shares.log()).sum(dim=1).mean())  # nats, 0: all alike

    assert decided(swav.Config().epsilon) > 2 * decided(0.05)


def test_prototypes_stay_at_first() -> None:
    """Random rows would order the prototypes, and both end in one point."""
    head, ours = method(freeze=0.1)
    for progress, expected in ((0.05, 0.0), (0.1, 1.0)):
        head.prototypes.weight.grad = torch.ones(11, 5)
        ours.restrain(progress)
        assert float(head.prototypes.weight.grad.mean()) == expected


def test_scores_are_float32_in_a_training_in_bfloat16() -> None:
    """Divided by 0.05, the rounding of a bfloat16 moves an assignment by a tenth."""
    head, _ = method()
    embeddings = torch.randn(2 * 3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, scores = head(embeddings)
    assert rows.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(scores, rows @ head.prototypes.weight.T)


@pytest.mark.parametrize(("progress", "rows", "joins"), [(0.3, 20, False), (0.6, 12, False), (0.6, 20, True)])
def test_the_bank_joins_when_it_is_full_and_its_time_has_come(progress: float, rows: int, joins: bool) -> None:
    """Rows of an untrained encoder, or a few of them, would take the prototypes that the batch needs."""
    head, ours = method(bank_start=0.5, bank_size=3840, epsilon=0.05)
    assert ours.bank is not None
    assert ours.bank.size == 20, "a tenth of the images: no picture meets itself"
    for start in range(0, rows, 4):
        ours.update(head(torch.randn(3 * 4, 64)), None, torch.arange(start, start + 4), 0.0)
    query = head(torch.randn(3 * 3, 64))
    scores = list(query.scores.split(3))
    queued = [ours.bank.anchors(name) @ head.prototypes.weight.T for name in ("first", "second")]
    alone, together = (SwaVLoss()(scores[:2], scores[2:], others) for others in (None, queued))
    loss = ours.loss(query, None, torch.arange(3), progress)
    assert not torch.allclose(alone, together)
    torch.testing.assert_close(loss, (together if joins else alone).squeeze())
