"""What metrics are called in a table."""

from __future__ import annotations

import re
from pathlib import Path

from compress_ssl.metric_names import heading, without_spreads

TABLE = (Path(__file__).parents[1] / "docs" / "evaluations.md").read_text()


def test_headings_say_what_was_measured():
    """`linear probe 5` would be read as the fifth probe, and ten columns of whole names fit no terminal."""
    found = {name: heading(name) for name in (
        "nearest_neighbour", "nearest_neighbour_20", "neighbour_overlap_5", "linear_probe", "linear_probe_5",
        "few_labels_1_top_5", "n_shot_class_mean_4", "retrieval_recall_10", "nearest_neighbour_20_per_class",
    )}  # fmt: skip
    assert list(found.values()) == [
        "1-NN", "20-NN", "kept@5", "linear", "linear top-5", "1 % labels, top-5", "4-shot mean", "recall@10",
        "20-NN by class",
    ]  # fmt: skip


def test_no_two_metrics_of_ours_have_one_heading():
    """Two columns of one name cannot be told apart."""
    names = set()
    for row in re.findall(r"^\| `\w+` \| (.*?) \|", TABLE, re.MULTILINE):
        names |= {name.replace("K", "10") for name in re.findall(r"`([a-z]\w+)`", row)}
    assert len(names) > 15
    assert len({heading(name) for name in names}) == len(names)


def test_somebodys_own_metric_keeps_its_name():
    """A dotted module's score would be called like one of ours."""
    assert heading("my_linear_probe_5") == "my linear probe 5"


def test_a_spread_is_one_only_beside_what_varies():
    """Somebody's own score that ends like one would be missing from the table."""
    assert without_spreads(["a", "a_std", "my_std", "b_interval", "a"]) == ["a", "my_std", "b_interval"]
