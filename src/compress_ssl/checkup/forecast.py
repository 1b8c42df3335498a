"""Measured speeds -> hours, and sizes -> bytes. Arithmetic only; what is left out is said where it is used."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from compress_ssl.record import record_dtype

BANK_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
SCALE_BYTES = {"float32": 0, "bfloat16": 0, "int8": 4}  # of each row
SAMPLE_BYTES = 8  # which image an anchor is of
WEIGHT_BYTES = 4  # weights, gradients and optimizer are float32 in every precision


class Hours(NamedTuple):
    """embed: once, before the training; train: all epochs; scores on held-out images come on top."""

    embed: float
    train: float

    @property
    def total(self) -> float:
        return self.embed + self.train


def live(images: int, *, epochs: float, step: float, loader: float) -> Hours:
    """Hours with the teacher in every step.

    Args:
        images: of the training.
        step: images a second of whole steps.
        loader: images a second of the loader alone: a short measurement begins with batches that were read before it.
    """
    return Hours(0.0, epochs * images / min(step, loader) / 3600)


def stored(images: int, *, epochs: float, step: float, loader: float, embed: float) -> Hours:
    """Hours with stored rows.

    Args:
        step: images a second of whole steps with rows from memory.
        loader: images a second of the loader, cutting for the student alone.
        embed: hours to store the rows; 0 where they are stored already.
    """
    return Hours(embed, epochs * images / min(step, loader) / 3600)


def embedding(images: int, tested: int, *, views: int, teacher: float, reading: float, loader: float) -> float:
    """Hours in which `embed` stores the rows.

    Args:
        images: of the training split, held-out ones too; `tested` of the test split, the evaluation view alone.
        views: random views stored of each training image, besides the evaluation view.
        teacher: views a second that it embeds.
        reading: training images a second, all views of each cut.
        loader: images a second, one view of each cut.
    """
    trained = max(images * (1 + views) / teacher, images / reading)
    return (trained + max(tested / teacher, tested / loader)) / 3600


def table_bytes(images: int, tested: int, *, views: int, width: int) -> int:
    """A table's float16 rows with their crops and checksums; ids and labels are some 40 bytes an image more.

    Args:
        images: of the training split, with all views; `tested` of the test split, with the evaluation view alone.
    """
    return (images * (1 + views) + tested) * record_dtype(width, "float16").itemsize


def bank_bytes(size: int, widths: Collection[int], *, dtype: str) -> int:
    """Anchors of all models whose rows a bank holds, and of which images they are."""
    return size * (SAMPLE_BYTES + sum(width * BANK_BYTES[dtype] + SCALE_BYTES[dtype] for width in widths))


def training_bytes(parameters: int, *, slow_copy: bool, optimizer_states: int) -> int:
    """Weights of the student, their gradients, its slow copy, and what the optimizer keeps of each."""
    return parameters * WEIGHT_BYTES * (2 + slow_copy + optimizer_states)
