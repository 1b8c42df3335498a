"""Scores that a finished run of a benchmark keeps, and when they are made again."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from compress_ssl import distill
from compress_ssl.evaluate import Protocols
from compress_ssl.evaluations import nearest_neighbour
from compress_ssl.matrix.cell import Bench
from compress_ssl.matrix.plan import Cell
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder, plain


class Made(Exception):
    """The scores are made again."""


@pytest.mark.parametrize(
    ("known", "asked", "again"),
    [
        ({"nearest_neighbour": plain(nearest_neighbour.Config())}, Protocols(), False),  # before other files were added
        (plain(Protocols()), Protocols(), False),
        (plain(Protocols()), Protocols(nearest_neighbour=nearest_neighbour.Config(neighbours=(1, 5))), True),
    ],
)
def test_an_evaluation_that_is_added_leaves_scores_as_they_were(known, asked, again, tmp_path):
    """Days of finished trainings would be embedded again for a score nobody asked for, or other scores be mixed."""
    told = {"config": plain({"seed": 3}), "protocols": known, "evaluations": ["nearest_neighbour"], "metrics": {}}
    (tmp_path / "scores.json").write_text(json.dumps(told))

    def make():
        raise Made

    runner = SimpleNamespace(protocols=asked, evaluations=("nearest_neighbour",))
    if again:
        with pytest.raises(Made):
            Bench._completed(runner, tmp_path / "scores.json", {"seed": 3}, make)
    else:
        assert Bench._completed(runner, tmp_path / "scores.json", {"seed": 3}, make) == told


def test_a_start_that_failed_before_it_computed_anything_may_be_mended(tmp_path):
    """Whoever corrects a row that was refused would be told to rename it: its folder has the refused configuration."""
    config = distill.Config(teacher="a", data="digits", out=tmp_path / "seed0")
    cell = Cell("timm/resnet18", "compress", 0, tmp_path / "seed0", config)
    runner = SimpleNamespace(_begun=Bench._begun)
    RunFolder.open(cell.folder, replace(config, held_out=7), resume=False)
    Bench.refuse_other(runner, cell)
    (cell.folder / "metrics.jsonl").write_text("")
    with pytest.raises(Refusal, match="held_out: 7 → 1000"):
        Bench.refuse_other(runner, cell)
