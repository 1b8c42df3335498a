"""One pass over the anchors against all similarities at once in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.quantised import Int8Rows, quantise
from compress_ssl.similarity import anchor_cross_entropy, anchor_kl, naive, streamed
from compress_ssl.similarity.divergence import Divergence

pytestmark = pytest.mark.filterwarnings("error")
SAME = {"temperature": 0.04, "target_temperature": 0.04}
KINDS = {"float32": lambda rows: rows, "bfloat16": Tensor.bfloat16, "float16": Tensor.half, "int8": quantise}
GRADIENT = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3, "int8": 3e-2}


def clustered(count: int, *, width: int, target_width: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, D_s), (N, D_t): rows of a student that has learned its teacher's twenty clusters, somewhat."""
    draw = torch.Generator().manual_seed(7)  # the same models for every seed
    centres = torch.randn(20, 12, generator=draw)
    student, teacher = torch.randn(12, width, generator=draw), torch.randn(12, target_width, generator=draw)
    draw = torch.Generator().manual_seed(seed)
    points = centres[torch.randint(20, (count,), generator=draw)] + 0.6 * torch.randn(count, 12, generator=draw)
    seen = points + 0.5 * torch.randn(count, 12, generator=draw)
    return functional.normalize(seen @ student), functional.normalize(points @ teacher)


def case(
    *, batch: int = 13, anchors: int = 211, width: int = 48, target_width: int = 80, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """query, query_anchors, target, target_anchors."""
    query, target = clustered(batch, width=width, target_width=target_width, seed=2 * seed)
    query_anchors, target_anchors = clustered(anchors, width=width, target_width=target_width, seed=2 * seed + 1)
    return query, query_anchors, target, target_anchors


def truth(query: Tensor, query_anchors: Tensor, target: Tensor, target_anchors: Tensor, **options) -> Divergence:
    """All similarities at once, in float64."""
    leaf = query.double().requires_grad_()
    if options.get("own") is not None:
        options["own"] = tuple(rows.double() for rows in options["own"])
    found = naive.divergence(leaf, query_anchors.double(), target.double(), target_anchors.double(), **options)
    (gradient,) = torch.autograd.grad(found.kl.sum(), leaf)
    return Divergence(found.kl.detach(), found.entropy, gradient)


def off(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 37, 211, 1000])
@pytest.mark.parametrize("temperatures", [(0.04, 0.04), (0.07, 0.05), (0.01, 0.02)], ids=str)
@pytest.mark.parametrize("extras", ["plain", "masked", "own slot", "all"])
def test_chunks_of_any_size_give_what_all_at_once_gives(
    kind: str, chunk: int, temperatures: tuple[float, float], extras: str
) -> None:
    """The loss would depend on how much memory there is; a bank in fewer bits would train another student."""
    rows = case()
    options: dict = {"temperature": temperatures[0], "target_temperature": temperatures[1]}
    if extras in ("masked", "all"):
        options |= {"index": torch.arange(13) * 3, "anchor_index": torch.arange(211) % 61}
    if extras in ("own slot", "all"):
        options["own"] = clustered(13, width=48, target_width=80, seed=99)
    query, query_anchors, target, target_anchors = rows
    stored = KINDS[kind](query_anchors), KINDS[kind](target_anchors)
    ours = streamed.divergence(query, stored[0], target, stored[1], **options, chunk=chunk)
    expected = truth(*rows, **options)
    assert off(ours.gradient, expected.gradient) <= GRADIENT[kind]
    assert off(ours.kl, expected.kl) <= GRADIENT[kind]
    assert off(ours.entropy, expected.entropy) <= GRADIENT[kind]
    assert off(ours.cross_entropy, expected.cross_entropy) <= GRADIENT[kind]
    without = streamed.divergence(query, stored[0], target, stored[1], **options, chunk=chunk, gradient=False)
    assert without.gradient is None
    torch.testing.assert_close(without.kl, ours.kl)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_bank_that_both_models_share_is_read_once_and_right(kind: str) -> None:
    """1q compares queries and targets with the same rows."""
    query, anchors, target, _ = case(target_width=48)
    stored = KINDS[kind](anchors)
    ours = streamed.divergence(query, stored, target, stored, **SAME, chunk=19)
    apart = streamed.divergence(query, stored, target, KINDS[kind](anchors), **SAME, chunk=19)
    torch.testing.assert_close(ours, apart)
    assert off(ours.gradient, truth(query, anchors, target, anchors, **SAME).gradient) <= GRADIENT[kind]


@pytest.mark.parametrize("seed", range(3))
def test_wide_int8_rows_are_multiplied_in_eight_bits_and_stay_within_three_per_cent(seed: int) -> None:
    """The quicker product would be paid for with another student. (Narrow rows are multiplied as floats.)"""
    rows = case(width=512, target_width=2048, seed=seed)
    assert streamed._Rows(rows[0], quantise(rows[1])).packed == (streamed._int8_levels() > 0)
    ours = streamed.divergence(rows[0], quantise(rows[1]), rows[2], quantise(rows[3]), **SAME, chunk=64)
    expected = truth(*rows, **SAME)
    assert off(ours.gradient, expected.gradient) <= 3e-2
    assert off(ours.kl, expected.kl) <= 3e-2


def test_without_the_eight_bit_product_int8_rows_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build of torch, or another processor, would refuse to train."""
    monkeypatch.setattr(streamed, "_int8_levels", lambda: 0)
    rows = case(width=512, target_width=600)
    stored = quantise(rows[1]), quantise(rows[3])
    ours = streamed.divergence(rows[0], stored[0], rows[2], stored[1], **SAME, chunk=64)
    exact = truth(rows[0], stored[0].float(), rows[2], stored[1].float(), **SAME)
    assert off(ours.gradient, exact.gradient) <= 2e-5


def test_eight_bit_products_do_not_saturate() -> None:
    """AVX2 adds pairs of products in 16 bits: rows of extremes would be wrong by half, without a word."""
    if streamed._int8_levels() == 0:
        pytest.skip("torch has no oneDNN quantised product here")
    draw = torch.Generator().manual_seed(1)
    signs = (torch.randint(2, (5, 640), generator=draw) * 2 - 1).float()
    rows, anchors = signs[:2] / 640**0.5, Int8Rows((signs * 127).to(torch.int8), torch.full((5,), 1 / 127 / 640**0.5))
    out = torch.empty(5, 2)
    streamed._Rows(rows, anchors).compare(anchors, out)
    torch.testing.assert_close(out, anchors.float() @ rows.T, atol=1e-5, rtol=1e-5)


def test_rows_may_be_strided_and_unaligned() -> None:
    """A slice of a larger table would be read as if it lay in one piece."""
    rows = case(anchors=97)
    odd = []
    for part in rows:
        wide = torch.full((len(part), 2 * part.shape[1] + 1), float("nan"))
        wide[:, 1::2] = part
        odd.append(wide[:, 1::2])
    assert not odd[1].is_contiguous()
    torch.testing.assert_close(
        streamed.divergence(*odd, **SAME, chunk=31), streamed.divergence(*rows, **SAME, chunk=31), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.04, 0.01])
@pytest.mark.parametrize("chunk", [2, 100])
def test_a_query_with_only_its_own_anchors_is_0_beside_one_that_has_others(temperature: float, chunk: int) -> None:
    """0/0 would poison the mean of the batch; early in a run the bank holds little else."""
    query, query_anchors, target, target_anchors = case(batch=3, anchors=5)
    found = streamed.divergence(
        query, query_anchors, target, target_anchors, temperature=temperature, target_temperature=temperature,
        index=torch.tensor([4, 4, 9]), anchor_index=torch.full((5,), 4), chunk=chunk,
    )  # fmt: skip
    assert found.kl[:2].tolist() == found.entropy[:2].tolist() == [0, 0]
    assert float(found.gradient[:2].abs().max()) == 0
    assert float(found.kl[2]) > 0


@pytest.mark.parametrize("temperature", [0.04, 0.01])
@pytest.mark.parametrize("chunk", [2, 100])
def test_a_nan_is_not_hidden(temperature: float, chunk: int) -> None:
    """A student that has diverged would seem to have nothing to compare with: loss 0, for ever."""
    query, *rest = case(batch=3, anchors=7)
    query[1] = float("nan")
    found = streamed.divergence(query, *rest, temperature=temperature, target_temperature=temperature, chunk=chunk)
    assert found.kl.isnan().tolist() == [False, True, False]
    assert found.gradient.isnan().any(dim=1).tolist() == [False, True, False]


def test_the_same_sample_twice_in_a_batch_is_kept_from_its_anchors_twice() -> None:
    """A substitute for an unusable image can be in its batch already."""
    rows = case(batch=4, anchors=9)
    options = {**SAME, "index": torch.tensor([5, 2, 5, 7]), "anchor_index": torch.tensor([5, 1, 7, 5, 0, 3, 2, 5, 8])}
    torch.testing.assert_close(
        streamed.divergence(*rows, **options, chunk=4).kl.double(), truth(*rows, **options).kl, atol=1e-5, rtol=1e-5
    )


def test_the_compiled_epilogue_equals_the_eager_one() -> None:
    """An accelerator runs the compiled one; its rounding may differ, its values must not."""
    similarities, maximum = 25 * torch.randn(37, 12), torch.full((12,), 25.0)
    eager, compiled = similarities.clone(), similarities.clone()
    expected = streamed._weigh(eager, maximum)
    try:
        ours = torch.compile(streamed._weigh, dynamic=True)(compiled, maximum)
    except Exception as trouble:  # of the compiler, in many shapes: the machine has none
        pytest.skip(f"torch.compile does not work here ({type(trouble).__name__})")
    torch.testing.assert_close((compiled, *ours), (eager, *expected), rtol=1e-4, atol=1e-6)


def test_anchors_overwritten_before_backward_change_nothing() -> None:
    """The bank may be written before the gradient is propagated."""
    query, query_anchors, target, target_anchors = case()
    gradients = []
    for overwrite in (False, True):
        leaf, anchors = query.clone().requires_grad_(), query_anchors.clone()
        loss = anchor_kl(leaf, anchors, target, target_anchors, temperature=0.04)
        if overwrite:
            anchors.zero_()
        loss.backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """It would be zero where it is not."""
    query, *rest = case()
    leaf = query.clone().requires_grad_()
    loss = anchor_kl(leaf, *rest, temperature=0.04)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        gradient.sum().backward()


def test_cross_entropy_has_the_gradient_of_the_divergence_and_the_entropy_on_top() -> None:
    """Objectives written with one could not be compared with those written with the other."""
    query, *rest = case()
    values, gradients = [], []
    for function in (anchor_kl, anchor_cross_entropy):
        leaf = query.clone().requires_grad_()
        value = function(leaf, *rest, temperature=0.04)
        value.backward()
        values.append(value.detach())
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    torch.testing.assert_close(values[1] - values[0], truth(query, *rest, **SAME).entropy.mean().float())


@pytest.mark.parametrize("path", ["naive", "streamed"])
def test_every_path_gives_the_same_value_and_gradient(path: str) -> None:
    """`path` would be a choice between methods, not between ways of computing one."""
    query, *rest = case()
    options = {"temperature": 0.07, "target_temperature": 0.05, "own": clustered(13, width=48, target_width=80, seed=5),
               "index": torch.arange(13), "anchor_index": torch.arange(211)}  # fmt: skip
    leaf = query.clone().requires_grad_()
    value = anchor_kl(leaf, *rest, **options, path=path)
    value.backward()
    expected = truth(query, *rest, **options)
    assert float(value.detach()) == pytest.approx(float(expected.kl.mean()), rel=1e-5)
    assert off(leaf.grad, expected.gradient / 13) <= 2e-5


def test_a_path_that_does_not_exist_or_cannot_take_the_rows_is_refused() -> None:
    """A flag would be parsed and ignored."""
    rows = case()
    with pytest.raises(ValueError, match="expected path auto, naive, streamed or fused, got 'fast'"):
        anchor_kl(*rows, temperature=0.04, path="fast")
    with pytest.raises(
        ValueError, match=r"path fused expected tensors that its kernels can take, but query is torch\.float64"
    ):
        anchor_kl(*(part.double() for part in rows), temperature=0.04, path="fused")


def test_own_anchors_of_another_shape_are_refused() -> None:
    """They would be broadcast over the batch."""
    rows = case()
    with pytest.raises(ValueError, match="expected one own anchor per query"):
        anchor_kl(*rows, temperature=0.04, own=(rows[0][:1], rows[2][:1]))


def test_integers_without_a_scale_are_refused() -> None:
    """The loss would be infinite, and nothing would say why."""
    query, anchors, target, others = case()
    with pytest.raises(ValueError, match=r"expected anchors of floats or Int8Rows, got torch.int8 and torch.float32"):
        anchor_kl(query, (anchors * 127).to(torch.int8), target, others, temperature=0.04)
