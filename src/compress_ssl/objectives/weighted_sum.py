"""A sum of objectives: Σ weight · term, each term with options of its own.

    --objective weighted_sum --objective.terms compress_1q regression --objective.weights 1 0.5
    --objective.options compress_1q.temperature=0.07 compress_1q.anchors=stored

Source: none of its own; each term's is in its file.
The weights are not divided by their sum (those of several teachers are, see compress_ssl.weighted): what a term counts
does not depend on the others, and a learning rate that suits one term of weight 1 may be too large for three.
All terms see one query: in the teacher's space if any of them needs that (the others then see the projected row too),
else in the student's own. Keys, where any are needed, are of one slow copy; it sees the picture as the teacher does if
one term asks for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compress_ssl import objectives
from compress_ssl.projector import ProjectorConfig, Space
from compress_ssl.refusal import Refusal, nearest
from compress_ssl.settings import build, fit_words, options


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which objectives, and how much each counts."""

    name: str = "weighted_sum"
    terms: tuple[str, ...] = ("compress_1q", "regression")  # objectives by name
    weights: tuple[float, ...] = ()  # of each term; none: 1 each
    options: tuple[str, ...] = ()  # TERM.option=value, as --objective.option of that term

    def __post_init__(self) -> None:
        told = ", ".join(self.terms)
        if not self.terms or len(set(self.terms)) < len(self.terms):
            raise Refusal(f"--objective.terms expected at least one objective, each once, got {told or 'none'}: name "
                          "them")  # fmt: skip
        if self.name in self.terms:
            raise Refusal(
                f"--objective.terms expected objectives that are no sums, got {told}: write its terms instead"
            )
        if self.weights and len(self.weights) != len(self.terms):
            raise Refusal(f"--objective.weights expected a weight for each of {told}, got {len(self.weights)}: give as "
                          "many, or none")  # fmt: skip
        if not all(0 < weight < math.inf for weight in self.weights):
            given = " ".join(f"{weight:g}" for weight in self.weights)
            raise Refusal(f"--objective.weights expected numbers above 0, got {given}: leave out a term that is to "
                          "count for nothing")  # fmt: skip
        for term in self.terms:
            if getattr(objectives.find(term).Objective, "tokens", False):
                raise Refusal(f"--objective.terms expected objectives that compare rows alone, got {term}, which has a "
                              "weight of its own for what it adds to compress_1q: use it by itself")  # fmt: skip
        _one_momentum(self.configs)

    @property
    def configs(self) -> dict[str, Any]:
        """Each term's own configuration.

        Raises: Refusal if a term or an option of it is unknown, or cannot have its value.
        """
        told, given = ", ".join(self.terms), {term: dict[str, Any]() for term in self.terms}
        for option in self.options:
            path, equals, word = option.partition("=")
            term = next((term for term in self.terms if path.startswith(f"{term}.")), None)
            if term is None or not equals:
                raise Refusal(f"--objective.options expected TERM.option=value with TERM among {told}, got {option!r}: "
                              f"{nearest(path.partition('.')[0], self.terms)}")  # fmt: skip
            _put(given[term], term, path.removeprefix(f"{term}.").replace("-", "_"), word)
        return {
            term: build(objectives.find(term).Config, values, {}, prefix=f"--objective.options {term}.")
            for term, values in given.items()
        }

    @property
    def space(self) -> Space:
        return "teacher" if any(objectives.space_of(config) == "teacher" for config in self.configs.values()) else "own"

    @property
    def projector(self) -> ProjectorConfig:
        """That of the terms which are published with one.

        Raises: Refusal if they are not the same.
        """
        usual = ProjectorConfig()
        asked = {term: objectives.projector_of(config, usual) for term, config in self.configs.items()}
        different = {term: projector for term, projector in asked.items() if projector != usual}
        if len(set(different.values())) > 1:
            raise Refusal(f"--objective.terms expected one projector for all terms, got different ones of "
                          f"{' and '.join(different)}: say which with --projector.kind")  # fmt: skip
        return next(iter(different.values()), usual)


class Objective:
    """The terms, side by side.

    Attributes:
        terms: name -> objective.
        temperature: of each term that has one.
    """

    def __init__(self, config: Config, **how: Any):
        """`how` as of every objective; each term gets the same."""
        self.config = config
        configs = config.configs
        self.terms = {term: objectives.find(term).Objective(one, **how) for term, one in configs.items()}
        self.weights = dict(zip(self.terms, config.weights or [1.0] * len(self.terms), strict=True))
        self.space, self.momentum = config.space, _one_momentum(configs)
        self.stored_anchors = any(term.stored_anchors for term in self.terms.values())
        self.fits_targets = any(map(_fits, self.terms.values()))
        self.reads_key = any(map(_reads_key, self.terms.values()))
        self.within_batch = any(getattr(term, "within_batch", False) for term in self.terms.values())
        views = {getattr(term, "key_view", "student") for term in self.terms.values()}
        self.key_view = "teacher" if "teacher" in views else "student"
        heads = [getattr(term, "trained", None) for term in self.terms.values()]
        self.trained = nn.ModuleList([head for head in heads if head is not None])

    @property
    def temperature(self) -> dict[str, Any]:
        found = {name: term.temperature for name, term in self.terms.items()}
        return {name: temperature for name, temperature in found.items() if temperature is not None}

    def __call__(self, query: Tensor, target: Tensor, index: Tensor, key: Tensor | None = None) -> Tensor:
        """(B, D_s) unit rows with gradient, (B, D_t), (B,) samples, (B, D_s) where a term reads it -> scalar."""
        losses = [
            self.weights[name] * term(query, target, index, *([key] if _reads_key(term) else []))
            for name, term in self.terms.items()
        ]
        return sum(losses[1:], start=losses[0])

    def update(self, key: Tensor, target: Tensor, index: Tensor) -> None:
        """Each term writes what it keeps; after backward."""
        for term in self.terms.values():
            term.update(key, target, index)

    def fill(self, target: Tensor, index: Tensor) -> None:
        """Give (B, D_t) stored targets to the terms that have them as anchors."""
        for term in self.terms.values():
            if term.stored_anchors:
                term.fill(target, index)

    def fit(self, target: Tensor, index: Tensor) -> None:
        """Show (N, D_t) unit rows of all images to the terms that look at them once."""
        for term in self.terms.values():
            if _fits(term):
                term.fit(target, index)

    def state_dict(self) -> dict[str, Any]:
        return {name: term.state_dict() for name, term in self.terms.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: Refusal if it is of other terms."""
        if state.keys() != self.terms.keys():
            raise Refusal(f"expected a saved sum of {', '.join(self.terms)}, got {', '.join(state)}: resume with the "
                          "options that started the run")  # fmt: skip
        for name, term in self.terms.items():
            term.load_state_dict(state[name])


def _reads_key(term: Any) -> bool:
    return getattr(term, "reads_key", False)


def _fits(term: Any) -> bool:
    return getattr(term, "fits_targets", False)


def _put(values: dict[str, Any], term: str, option: str, word: str) -> None:
    """Enter an option of a term, which may lie in a group; `build` refuses those that there are not."""
    kind = objectives.find(term).Config
    known = {name: hint for name, hint in options(kind, kind()).items() if name != "name"}
    if option not in known:
        raise Refusal(
            f"--objective.options expected an option of {term}, got {term}.{option}: {nearest(option, known)}"
        )
    *groups, last = option.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[last] = fit_words([word], known[option], f"--objective.options {term}.{option}")


def _one_momentum(configs: dict[str, Any]) -> float | None:
    """Of the slow copy that all terms share: what those that ask for one ask for; None if none does.

    Raises: Refusal if they ask for different ones; a term whose keys are to be the queries asks for none.
    """
    asked: dict[str, float | None] = {}
    for term, config in configs.items():
        of_all = getattr(objectives.find(term).Objective, "momentum", None)
        if hasattr(config, "momentum"):
            asked[term] = config.momentum
        elif of_all is not None:
            asked[term] = of_all
    if len(set(asked.values())) > 1:
        told = " and ".join(f"{term}.momentum={momentum}" for term, momentum in asked.items())
        raise Refusal(f"--objective.options expected one momentum for all terms, got {told}: set it of one of them")
    return next(iter(asked.values()), None)
