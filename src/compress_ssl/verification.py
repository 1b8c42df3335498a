"""What a table holds, for a person; and whether every bit of it is what was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as RichTable

from compress_ssl.embeddings import ROWS_AT_ONCE
from compress_ssl.record import damaged, unpack
from compress_ssl.sealed import Damaged
from compress_ssl.shard import Shard, read_about, records_file
from compress_ssl.table import Table, command, damage, read_manifest


def verify(path: Path, *, console: Console | None = None) -> list[str]:
    """Read a finished table whole; what is wrong with it, one sentence a file, [] if nothing is.

    Compares the manifest and what is told of each shard with their seals, each file of rows with its checksum, each row
    with its own, and looks for rows without length one and for ids that stand there twice.

    Raises: Refusal if the manifest is missing, damaged, or of an unfinished table.
    """
    table = Table(path)
    troubles = []
    ids: set[tuple[str, str]] = set()
    files = [(split, *shard) for split, about in table.manifest["splits"].items() for shard in about["shards"]]
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        for split, number, images, seal in bar.track(files, description="verifying"):
            file = records_file(path / split, number)
            try:
                about, checksum, found = read_about(path / split, number)
                if found != seal or len(about.ids) != images:
                    raise Damaged("another shard than the manifest lists")
                here = {(split, id) for id in about.ids}
                if len(here) != len(about.ids) or here & ids:
                    raise Damaged("ids that stand in the table twice")
                ids |= here
            except (OSError, Damaged) as trouble:
                troubles.append(str(damage(file.with_suffix(".json"), str(trouble), table.origin)))
                continue
            try:
                views = 1 + table.manifest["splits"][split]["views"]
                _verify_rows(file, checksum, about.ids, views, table)
            except (OSError, Damaged) as trouble:
                troubles.append(str(damage(file, str(trouble), table.origin)))
    return troubles


def _verify_rows(file: Path, checksum: str, ids: Sequence[str], views: int, table: Table) -> None:
    shard = Shard(file, images=len(ids), views=views, width=table.width, dtype=table.dtype, in_memory=True)
    records = shard.records()
    if shard.checksum() != checksum:
        bad = np.flatnonzero(damaged(records))
        of = f" (row of {ids[bad[0] // views]})" if len(bad) else ""
        raise Damaged(f"bytes that do not match their checksum{of}")
    for start in range(0, len(records), ROWS_AT_ONCE):
        rows = unpack(records[start : start + ROWS_AT_ONCE].copy(), table.width, table.dtype)
        lengths = rows.norm(dim=1).numpy()
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < 0.02))
        if len(wrong):
            raise Damaged(f"a row of length {lengths[wrong[0]]:.3g} for {ids[(start + wrong[0]) // views]}")


def information(path: Path) -> RichTable:
    """What a table holds, finished or not, a line a fact."""
    told = RichTable(show_header=False, box=None, padding=(0, 2, 0, 0))
    told.add_column(style="bold", no_wrap=True)
    told.add_column(overflow="fold")
    for name, value in _facts(path, read_manifest(path)):
        told.add_row(name, value)
    return told


def _facts(path: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    origin = manifest["origin"]
    encoder, views, view = origin["encoder"], origin["views"]["count"], origin["views"].get("view")
    space = encoder.get("space", "own")
    yield "table", str(path)
    yield "encoder", f"{encoder.get('spec', 'unknown')}, weights {encoder.get('weights', 'unknown')[:16]}"
    yield (
        "rows",
        f"{encoder['width']} × {origin['dtype']}"
        + {"own": "", "teacher": ", in the teacher's space"}.get(space, f", in the space of {space}"),
    )
    seen = encoder["preprocessing"]
    crop = {"squash": ", squashed", "border": ", with a border"}.get(seen.get("crop", "center"), "")
    yield "input", f"{seen['size']} pixels, {seen['interpolation']}, crop fraction {seen['crop_fraction']:g}{crop}"
    yield (
        "views",
        "evaluation"
        + (
            f" and {views} random ones of each training image: scale {view['scale'][0]:g} to {view['scale'][1]:g}, "
            f"flip {view['flip']:g}, seed {origin['views']['seed']}"
            if views and view
            else ""
        ),
    )
    yield "data", f"{origin['data'].get('name', 'unknown')}"
    if "splits" in manifest:
        yield from _split_facts(Table(path, manifest=manifest))
    else:
        done = sum(1 for _ in path.glob("*/[0-9]*.json"))
        yield "state", f"unfinished, {done} shards are there"
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    yield "on disk", f"{size / 2**20:.1f} MiB, made by compress-ssl {origin['code']}"
    yield "again", command(origin, path)


def _split_facts(table: Table) -> Iterator[tuple[str, str]]:
    for split, about in table.manifest["splits"].items():
        counts = f"{about['images']} images, shards: {len(about['shards'])}, unusable: {len(table.skipped(split))}"
        yield split, f"{counts}, fingerprint {about['fingerprint'][:16]}"
        found = table.manifest["statistics"][split]
        if found:
            spread = f"{found['cosine_mean']:.3f} ± {found['cosine_std']:.3f}"
            limits = f"{found['cosine_smallest']:.3f} to {found['cosine_largest']:.3f}"
            mean = f"length of the mean row {found['mean_row_length']:.3f}"
            yield "", f"cosine of two images {spread} ({limits}); {mean}"
        yield "", f"1 - cosine by rounding: {about['rounding']['mean']:.1e}, at most {about['rounding']['largest']:.1e}"
