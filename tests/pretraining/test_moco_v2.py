"""MoCo's loss against lightly's own with the same bank; keys that batch norm does not give away."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl.encoder import open_encoder
from compress_ssl.pretraining import Views, moco_v2
from compress_ssl.refusal import Refusal

FABRIC = SimpleNamespace(
    device=torch.device("cpu"), global_rank=0, world_size=1, autocast=lambda: contextlib.nullcontext()
)


def unit(count: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_the_loss_and_its_gradient_are_lightly_s(temperature: float) -> None:
    """A teacher would be pretrained by another method than the one that is named."""
    key, anchors = unit(7, 1), unit(11, 2)
    ours, theirs = unit(7, 0).requires_grad_(), unit(7, 0).requires_grad_()
    judge = NTXentLoss(temperature=temperature, memory_bank_size=(11, 5))
    judge.memory_bank.bank = anchors.clone()
    judge.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    expected = judge(theirs, key)
    same = torch.zeros(7, 11, dtype=torch.bool)
    loss = moco_v2.info_nce(ours, key, anchors, same=same, temperature=temperature)
    torch.testing.assert_close(loss, expected)
    loss.backward(), expected.backward()
    # lightly normalises once more, which takes the part along the row out of the gradient
    radial = (ours.grad * ours).sum(dim=1, keepdim=True) * ours  # type: ignore[operator]
    torch.testing.assert_close(ours.grad - radial, theirs.grad, rtol=1e-4, atol=1e-6)  # type: ignore[operator]


def test_an_earlier_key_of_the_same_picture_is_not_compared() -> None:
    """A picture would be driven away from itself wherever one epoch ends and the next begins."""
    query, key, anchors = unit(3, 0), unit(3, 1), unit(5, 2)
    same = torch.zeros(3, 5, dtype=torch.bool)
    same[:, 2] = True
    loss = moco_v2.info_nce(query, key, anchors, same=same, temperature=0.2)
    rest = anchors[[0, 1, 3, 4]]
    assert loss == moco_v2.info_nce(query, key, rest, same=same[:, :4] & False, temperature=0.2)


def test_keys_come_in_the_order_of_their_queries_and_see_other_statistics() -> None:
    """Unsorted keys would teach nothing; statistics of the query's batch would tell which key is the positive one."""
    torch.manual_seed(0)
    config = moco_v2.Config(parts=4, bank_size=40, projection_width=5, hidden_width=7)
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=16)
    learner = moco_v2.make_learner(config, encoder, ranks=1).train()
    method = moco_v2.Method(config, learner, images=400, fabric=FABRIC)  # type: ignore[arg-type]
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    keys = method.keys(Views([images], [images]), torch.Generator().manual_seed(1))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    expected = torch.empty_like(keys)
    for part in order.split(3):
        expected[part] = functional.normalize(learner.head(learner.encoder(images[part])), dim=1).detach()
    torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(keys, functional.normalize(learner.head(learner.encoder(images)), dim=1), atol=1e-3)
    assert method.slow.training
    assert not any(weight.requires_grad for weight in method.slow.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in method.slow.modules())


def test_parts_of_one_image_are_refused() -> None:
    """Batch norm has no statistics of one row: a traceback from inside the model, or rows of zeros."""
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=16)
    learner = moco_v2.make_learner(moco_v2.Config(), encoder, ranks=2).train()
    images = torch.zeros(7, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(Refusal, match=r"--method.parts expected at least 2 images in each, got 7 in 4 parts"):
        learner([images])


def test_without_batch_norm_a_batch_is_embedded_at_once() -> None:
    """A transformer would be eight times as many small kernels, for nothing."""
    encoder = open_encoder("timm/test_vit", weights="random", size=32)
    assert moco_v2.make_learner(moco_v2.Config(parts=8), encoder, ranks=1).parts == 1
