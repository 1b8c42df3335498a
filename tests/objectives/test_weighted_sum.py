"""A sum of objectives: each term as it is alone, with options of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress_ssl import distill, objectives, scorer
from compress_ssl.cli import parse
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded
from compress_ssl.objectives.weighted_sum import Config, Objective
from compress_ssl.refusal import Refusal
from compress_ssl.weighted import Weighted

pytestmark = pytest.mark.filterwarnings("error")
NEEDED = ["--teacher", "a", "--data", "digits", "--out", "runs/a"]


def alone(term: str, *, width: int = 9, **options: Any) -> Any:
    module = objectives.find(term)
    return module.Objective(module.Config(**options), width=width, target_width=9, images=23)


def make(*terms: str, width: int = 9, **how: Any) -> Objective:
    return Objective(Config(terms=terms, **how), width=width, target_width=9, images=23)


@pytest.mark.parametrize(
    ("terms", "width"),
    [(("compress_1q", "regression"), 9), (("compress_2q", "crd", "cc"), 5), (("isd", "crd"), 5), (("regression",), 9)],
)
def test_the_loss_is_the_weighted_sum_of_what_each_term_is_alone(unit, terms: tuple[str, ...], width: int) -> None:
    """A term would be left out, fed by another's rows, or divided by the weights of the others."""
    weights = (1.0, 0.5, 3.0)[: len(terms)]
    whole, parts = make(*terms, width=width, weights=weights), [alone(term, width=width) for term in terms]
    for one in (whole, *parts):
        if getattr(one, "fits_targets", False):
            one.fit(unit(23, 9, seed=99), torch.arange(23))
    for step in range(4):
        query, target, index = unit(3, width, seed=step), unit(3, 9, seed=30 + step), torch.arange(3) + 4 * step
        key = unit(3, width, seed=60 + step)
        first, second = query.clone().requires_grad_(), query.clone().requires_grad_()
        loss = whole(first, target, index, key)
        each = [part(second, target, index, *([key] if hasattr(part, "reads_key") else [])) for part in parts]
        summed = sum(weight * one for weight, one in zip(weights, each, strict=True))
        torch.testing.assert_close(loss, summed, rtol=0, atol=0)
        loss.backward()
        summed.backward()
        torch.testing.assert_close(first.grad, second.grad)
        for one in (whole, *parts):
            one.update(key, target, index)


def test_what_the_terms_need_is_asked_for(unit) -> None:
    """A term would lack keys, heads or rows, or the student would be as wide as no teacher."""
    first = make("compress_1q", "regression")
    assert (first.space, first.momentum, first.reads_key, first.key_view) == ("teacher", None, False, "student")
    assert (first.fits_targets, first.stored_anchors, len(first.trained)) == (False, False, 0)
    second = make("isd", "cc", "crd", width=5)
    assert (second.space, second.momentum, second.reads_key, second.key_view) == ("own", 0.99, True, "teacher")
    assert (second.fits_targets, len(second.trained)) == (True, 2)
    assert make("compress_2q", "regression").space == "teacher"
    assert (make("regression", "sp").within_batch, first.within_batch) == (True, False)
    third = make("compress_1q", "regression", options=("compress_1q.anchors=stored",))
    assert third.stored_anchors
    third.fill(unit(23, 9, seed=1), torch.arange(23))
    assert third.terms["compress_1q"].bank.filled == 23


def test_the_momentum_is_the_one_that_all_terms_ask_for() -> None:
    """One term's keys would be made by the other's slow copy."""
    assert make("compress_2q", "crd", width=5).momentum == 0.999
    assert make("compress_2q", "isd", width=5, options=("compress_2q.momentum=0.99",)).momentum == 0.99
    assert make("compress_2q", "crd", width=5, options=("compress_2q.momentum=none",)).momentum is None
    with pytest.raises(Refusal, match=r"expected one momentum .* compress_2q.momentum=0.999 and isd.momentum=0.99:"):
        Config(terms=("compress_2q", "isd"))
    with pytest.raises(Refusal, match=r"compress_2q.momentum=None and isd.momentum=0.99:"):
        Config(terms=("compress_2q", "isd"), options=("compress_2q.momentum=none",))


def test_options_reach_their_term_from_flags_and_from_files(tmp_path: Path) -> None:
    """`--objective.options` would be parsed and ignored, or reach all terms."""
    flags = [*NEEDED, "--objective", "weighted_sum", "--objective.terms", "compress_1q", "crd", "--objective.weights",
             "1", "0.5", "--objective.options", "compress_1q.temperature=auto", "compress_1q.bank-size=11",
             "crd.temperature=0.1"]  # fmt: skip
    file = tmp_path / "sum.yaml"
    file.write_text(
        "objective:\n  name: weighted_sum\n  terms: [compress_1q, crd]\n  weights: [1, 0.5]\n"
        "  options: [compress_1q.temperature=auto, compress_1q.bank-size=11, crd.temperature=0.1]\n"
    )
    first = parse(distill.Config, flags, "compress-ssl distill").objective
    second = parse(distill.Config, [str(file), *NEEDED], "compress-ssl distill").objective
    assert first == second
    assert first.weights == (1, 0.5)
    one, other = first.configs.values()
    assert (one.temperature, one.bank_size, one.name) == ("auto", 11, "compress_1q")
    assert (other.temperature, other.bank_size) == (0.1, 16_384)
    assert yaml.safe_load(file.read_text())["objective"]["terms"] == list(first.terms)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"options": ("compress_1q.temprature=1",)}, "an option of compress_1q, got .*: did you mean 'temperature'"),
        ({"options": ("compress_1q.name=x",)}, "an option of compress_1q, got"),
        ({"options": ("crd.temperature=1",)}, "TERM among compress_1q, regression, got 'crd.temperature=1'"),
        ({"options": ("compress_1q.temperature",)}, "TERM.option=value"),
        ({"options": ("compress_1q.temperature=-1",)}, "--objective.temperature expected more than 0 or auto"),
        ({"options": ("compress_1q.bank_size=many",)}, "a whole number for --objective.options compress_1q.bank_size"),
        ({"options": ("compress_1q.start=full",)}, "expected one of empty, random for"),
        ({"terms": ()}, "--objective.terms expected at least one objective, each once, got none"),
        ({"terms": ("regression", "regression")}, "each once, got regression, regression"),
        ({"terms": ("regresion",)}, "did you mean 'regression'"),
        ({"terms": ("weighted_sum", "regression")}, "objectives that are no sums"),
        ({"weights": (1.0,)}, "a weight for each of compress_1q, regression, got 1"),
        ({"weights": (1.0, 0.0)}, "numbers above 0, got 1 0"),
        ({"weights": (1.0, float("nan"))}, "numbers above 0"),
    ],
)
def test_what_cannot_be_summed_is_refused(how: dict[str, Any], told: str) -> None:
    """A typing error would be an option that is ignored for a day."""
    with pytest.raises(Refusal, match=told) as refusal:
        Config(**how)
    assert "\n" not in str(refusal.value)


def test_a_resumed_sum_has_each_term_s_state(unit) -> None:
    """A term would start over, or take another's bank."""

    def whole(seed: int) -> Weighted:
        objective = Objective(Config(terms=("cc", "crd", "isd")), width=5, target_width=9, images=23, seed=seed)
        objective.fit(unit(23, 9, seed=99), torch.arange(23))
        return Weighted([objective], [1.0], [(5, 9)])

    first, second = whole(0), whole(1)
    for step in range(3):
        first.update(unit(3, 5, seed=step), unit(3, 9, seed=30 + step), torch.arange(3) + 3 * step)
    second.load_state_dict(first.state_dict())
    rows = unit(3, 5, seed=9), unit(3, 9, seed=39), torch.arange(3) + 11, unit(3, 5, seed=10)
    assert torch.equal(first(*rows), second(*rows))
    with pytest.raises(Refusal, match="expected a saved sum of regression, got cc, crd, isd"):
        make("regression").load_state_dict(first.members[0].state_dict())


def test_the_automatic_temperature_of_each_term_is_found(unit) -> None:
    """The word `auto` would reach the division, or one term would be given another's perplexity."""
    options = ("compress_1q.temperature=auto", "compress_2q.temperature=auto", "compress_2q.perplexity=0.2")
    objective = make("compress_1q", "compress_2q", "regression", options=options)
    whole = Weighted([objective], [1.0], [(9, 9)])
    ids = tuple(map(str, range(200)))
    rows = Embeddings(unit(200, 9, seed=1).numpy(), torch.full((200,), -1).numpy(), ids)
    other = Embeddings(unit(40, 9, seed=2).numpy(), torch.full((40,), -1).numpy(), ids[:40])
    judges = [Embedded(train=rows, test=other)]

    class Fabric:
        world_size, is_global_zero = 1, True
        broadcast = staticmethod(lambda found: found)

    fabric: Any = Fabric()
    assert scorer.settle_temperatures(whole, judges, fabric)
    found = objective.temperature
    assert found.keys() == {"compress_1q", "compress_2q"}
    assert found["compress_1q"] < found["compress_2q"], "two in a hundred, and a fifth"
    told = scorer.temperatures_told(whole, judges, ["teacher"])
    assert [line.partition(" temperature")[0] for line in told] == ["compress_1q:", "compress_2q:"]
    assert not scorer.settle_temperatures(whole, judges, fabric)
