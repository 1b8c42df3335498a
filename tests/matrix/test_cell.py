"""Scores that a finished run of a benchmark keeps, and when they are made again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from compress_ssl.evaluate import Protocols
from compress_ssl.evaluations import nearest_neighbour
from compress_ssl.matrix.cell import Bench
from compress_ssl.run_folder import plain


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
