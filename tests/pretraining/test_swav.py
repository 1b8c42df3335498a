"""SwAV: prototypes of length one, frozen at first; a bank that joins later; assignments that use all prototypes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightly.loss import SwaVLoss

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


def test_prototypes_stay_at_first() -> None:
    """Random rows would order the prototypes, and both end in one point."""
    head, ours = method(freeze=0.1)
    for progress, expected in ((0.05, 0.0), (0.1, 1.0)):
        head.prototypes.weight.grad = torch.ones(11, 5)
        ours.restrain(progress)
        assert float(head.prototypes.weight.grad.mean()) == expected


@pytest.mark.parametrize(("progress", "rows", "joins"), [(0.3, 20, False), (0.6, 12, False), (0.6, 20, True)])
def test_the_bank_joins_when_it_is_full_and_its_time_has_come(progress: float, rows: int, joins: bool) -> None:
    """Rows of an untrained encoder, or a few of them, would take the prototypes that the batch needs."""
    head, ours = method(bank_start=0.5, bank_size=3840)
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
