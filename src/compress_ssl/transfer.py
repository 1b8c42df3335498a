"""Transfer: models scored on other data sets than the one they were made for, each with its own train and test split.

Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020, tables on CUB-200, Cars-196 and Places; the linear protocol
is that of evaluations/linear_transfer. Nothing is trained but the linear layer, so a student that kept its teacher's
features keeps its place on data that neither has seen. Accuracies come as shares of all images and, behind
`_per_class`, as means over the classes, which is what Aircraft, Pets and Flowers are reported in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from compress_ssl.datasets import Splits
from compress_ssl.embeddings import Embeddings
from compress_ssl.metric_names import heading
from compress_ssl.refusal import Refusal
from compress_ssl.stored import Stored

METRICS = ("nearest_neighbour", "linear_transfer")  # evaluations that are done where none is named
Rows = tuple[Embeddings, Embeddings]  # of train and of test


def open_others(names: Sequence[str], *, data: str, open_data: Callable[[str], Splits]) -> dict[str, Splits]:
    """The data sets of `--on`, by their names.

    Raises: Refusal for one that is named twice, is the one of `--data`, or has no labels to score by.
    """
    opened: dict[str, Splits] = {}
    for name in names:
        if name == data or name in opened:
            also = "is --data already" if name == data else "is named twice"
            raise Refusal(f"--on expected other data sets, each once, got {name}, which {also}: leave it out")
        splits = open_data(name)
        assert splits.test is not None
        for images in (splits.train, splits.test):
            if not (images.labels >= 0).any():
                raise Refusal(f"--on expected labelled images, got none with a label in {images.name}: put the images "
                              "of each class into a folder of its own, or leave it out")  # fmt: skip
        opened[name] = splits
    return opened


def stored_rows(stored: Stored, splits: Splits, name: str, read: Callable[[Stored, Splits], Rows]) -> Rows:
    """Rows of another data set, which stored ones hardly ever hold.

    Raises: Refusal that says so.
    """
    try:
        return read(stored, splits)
    except Refusal as refusal:
        raise Refusal(f"--on expected models that can embed {name}, got the stored rows {stored.path}, which can be "
                      "scored only on the data they hold rows of: name the encoder that made them, or leave --on "
                      "out") from refusal  # fmt: skip


def by_class_too(protocols: Any) -> Any:
    """Protocols in which every evaluation that knows the mean over classes gives it."""
    known = {field.name: getattr(protocols, field.name) for field in fields(protocols)}
    return replace(
        protocols,
        **{name: replace(one, per_class=True) for name, one in known.items() if hasattr(one, "per_class")},
    )


def transfer_tables(transfer: dict[str, Any]) -> Group:
    """The tables that a terminal shows, one for each data set.

    Args:
        transfer: as in results.json, {data set: {"images": …, "models": {model: {"metrics": …, "missing": …}}}}.
    """
    return Group(*(
        part for name, told in transfer.items()
        for part in (Text(f"on {name}", style="bold"), _table(told["models"], told["images"]))
    ))  # fmt: skip


def images_told(images: dict[str, int]) -> str:
    """What scores rest on: of 100 test images one weighs a point, and a larger gallery has nearer neighbours."""
    told = f"{images['test']} test images, {images['train']} training images as gallery and to fit on"
    if "test_labelled" not in images:
        return told
    return f"{told}; with a label {images['test_labelled']} and {images['train_labelled']}"


def _table(models: dict[str, Any], images: dict[str, int]) -> RichTable:
    columns = list(dict.fromkeys(metric for one in models.values() for metric in one["metrics"]))
    table = RichTable(header_style="bold")
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(heading(column), justify="right")
    for model, one in models.items():
        values = [f"{100 * one['metrics'][key]:.1f}" if key in one["metrics"] else "–" for key in columns]
        table.add_row(escape(model), *values)
    table.caption = images_told(images)
    return table
