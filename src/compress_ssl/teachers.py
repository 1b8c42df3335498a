"""One teacher or several: targets = teachers(batch), the rows of all of them side by side.

Each is live or stored, with a preprocessing and an input size of its own. All see the same part of each picture: where
rows of one are stored with their crops, those crops are shown to the others and to the student too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_ssl.datasets import ImageSet
from compress_ssl.loader import Batch
from compress_ssl.refusal import Refusal
from compress_ssl.stored import is_stored, needs_ids
from compress_ssl.stored_teacher import StoredConfig, StoredTeacher
from compress_ssl.teacher import LiveTeacher, open_teacher
from compress_ssl.transforms import RandomView, ReplayView, TrainView


def teacher_specs(given: str | Sequence[str]) -> tuple[str, ...]:
    """The teachers that `--teacher` names.

    Raises: Refusal if there is none, or one of them twice.
    """
    specs = (given,) if isinstance(given, str) else tuple(given)
    if not specs:
        raise Refusal("--teacher expected at least one teacher, got none: name a run folder, timm/NAME, …")
    places = [str(Path(spec).expanduser().resolve()) for spec in specs]
    for place, spec in zip(places, specs, strict=True):
        if places.count(place) > 1:
            raise Refusal(f"--teacher expected every teacher once, got {spec} twice: leave one out, and give the other "
                          "more of --teacher-weights if it is to count for more")  # fmt: skip
    return specs


def teacher_names(count: int) -> list[str]:
    """How metrics and results name them: teacher, or teacher_1, teacher_2, …"""
    return ["teacher"] if count == 1 else [f"teacher_{number}" for number in range(1, count + 1)]


def open_teachers(
    given: str | Sequence[str],
    images: ImageSet,
    *,
    ids: Path | None = None,
    stored: StoredConfig = StoredConfig(),
    device: torch.device,
    **how: Any,
) -> Teachers:
    """All teachers of `images`.

    Args:
        ids: of every .npy of vectors among them.
        stored: of those that are stored.
        how: as of `open_teacher`.
    Raises: Refusal if an option does not go with any of them.
    """
    specs = teacher_specs(given)
    if len(specs) == 1:
        return Teachers([open_teacher(specs[0], images, ids=ids, stored=stored, device=device, **how)], specs, device)
    if ids is not None and not any(map(needs_ids, specs)):
        raise Refusal(f"--ids expected vectors in a .npy among the teachers, got {ids} and none: leave --ids out")
    if stored != StoredConfig() and not any(map(is_stored, specs)):
        raise Refusal("--stored expected a table of stored embeddings or a file of vectors among the teachers, got "
                      "live encoders: leave it out, or run `compress-ssl embed` first")  # fmt: skip
    members = [
        open_teacher(
            spec,
            images,
            ids=ids if needs_ids(spec) else None,
            stored=stored if is_stored(spec) else StoredConfig(),
            device=device,
            **how,
        )
        for spec in specs
    ]
    return Teachers(members, specs, device)


class Teachers:
    """A teacher made of others; of a single one it is that one.

    Args:
        specs: as they were named.
    """

    def __init__(self, members: Sequence[LiveTeacher | StoredTeacher], specs: Sequence[str], device: torch.device):
        self.members, self.specs, self.device = list(members), tuple(specs), device
        self.names = teacher_names(len(self.members))

    def __iter__(self) -> Iterator[LiveTeacher | StoredTeacher]:
        return iter(self.members)

    @property
    def input_size(self) -> int | None:
        """Pixels of the first one's input; None where that is known of none."""
        return next((one.preprocessing.size for one in self.members if one.preprocessing is not None), None)

    def __call__(self, batch: Batch) -> Tensor:
        """Images and index of a batch -> (B, sum of D_t) float32, unit rows side by side, on the batch's device."""
        if len(self.members) == 1:
            return self.members[0](batch)
        found = self.prepare(batch).target
        looked_up = iter([] if found is None else found.split(self.stored_widths(), dim=1))
        rows = [
            one(replace(batch, target=next(looked_up))) if isinstance(one, StoredTeacher) else one(batch)
            for one in self.members
        ]
        return torch.cat([part.float() for part in rows], dim=1)

    def prepare(self, batch: Batch) -> Batch:
        """With the rows of those that are stored, side by side, while the step before computes."""
        if len(self.members) == 1:
            return self.members[0].prepare(batch)
        if batch.target is not None:
            return batch
        rows = [part for one in self.members if (part := one.prepare(batch).target) is not None]
        if not rows:
            return batch
        target = torch.cat(rows, dim=1)
        return replace(batch, target=target.pin_memory() if self.device.type == "cuda" else target)

    def view(self, config: TrainView, size: int) -> RandomView | ReplayView:
        """What is cut of the training images: for the student's input and for all that look, at the largest of them.

        Raises: Refusal if the crops of two tables differ.
        """
        size = max([size, *(one.preprocessing.size for one in self.members if isinstance(one, LiveTeacher))])
        replaying = [one for one in self.members if isinstance(one, StoredTeacher) and one.replay]
        if not replaying:
            return RandomView(config, size)
        views = [one.view(config, size) for one in replaying]
        for one, other in itertools.pairwise(replaying):
            one.refuse_other_crops(other)
        return views[0]

    def announce(self, keys: list[tuple[int, int]]) -> None:
        for one in self.members:
            one.announce(keys)

    def settle(self, *, wait: bool) -> None:
        for one in self.members:
            one.settle(wait=wait)

    def modules(self) -> list[nn.Module]:
        return [module for one in self.members for module in one.modules()]

    def identity(self) -> dict[str, str]:
        """As of each, by its name; of a single one as it is."""
        if len(self.members) == 1:
            return self.members[0].identity()
        return {
            f"{name} {what.removeprefix('teacher ')}": value
            for name, one in zip(self.names, self.members, strict=True)
            for what, value in one.identity().items()
        }

    def stored_widths(self) -> list[int]:
        """Of the rows that `prepare` puts side by side."""
        return [one.width for one in self.members if isinstance(one, StoredTeacher)]
