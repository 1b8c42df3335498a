"""Advice follows from numbers: each appears where its number asks for it, and only there."""

from __future__ import annotations

import copy
import io
import shlex
from typing import Any

import pytest
from rich.console import Console

from compress_ssl import cli, embed
from compress_ssl.checkup import advice, findings

SIDES = {"smallest": 200, "percent_5": 250, "median": 300, "percent_95": 500, "largest": 800}
RATE = {"images_per_second": 100.0, "error": 0.01, "seconds": 5.0}
HEALTHY: dict[str, Any] = {
    "data": {
        "images": 10_000,
        "looked_at": 10_000,
        "splits": {"train": {"images": 9000}, "test": {"images": 1000}},
        "unusable": [],
        "exact_duplicates": {"copies": 0, "groups": 0, "leaks": 0, "other_label": 0},
        "near_duplicates": {"compared": 10_000, "copies": 0, "leaks": 0, "expected_leaks": 0},
        "short_side": SIDES,
        "share_below_input": 0.01,
        "input_size": 224,
        "labels": {"classes": 10},
    },
    "teacher": {
        "queries": 900,
        "gallery": 5000,
        "nearest_neighbour": 0.6,
        "effective_dimension": 30.0,
        "cosine": {"mean": 0.3},
        "temperature": {"suggested": 0.045, "share": 0.02, "default": 0.04, "default_share": 0.015},
        "bank": {"suggested": 8100, "neighbours": 162.0, "enough": 5000},
    },
    "student": {"unsafe": None, "parameter_share": 0.4, "multiply_add_share": 0.3},
    "speed": {
        "workers": 4,
        "cores": 8,
        "input_size": 224,
        "loader": RATE | {"images_per_second": 500.0},
        "loader_stored": None,
        "teacher": RATE,
        "step_alone": RATE,
        "parts_live": {"teacher": 0.1},
        "parts_stored": {"objective": 0.05},
    },
    "forecast": {
        "images": 8100,
        "views": 4,
        "live": {"hours": 2.0},
        "stored": {"embed_hours": 0.1, "hours": 1.9},
        "table_bytes": 10**8,
        "free_disk": 10**11,
        "memory": {"weights": 10**8, "activations": 10**9, "bank": 10**7, "whole": 1_110_000_000},
        "free_memory": 10**10,
    },
}
PLAN: dict[str, Any] = {
    "data": "photos",
    "teacher": "runs/teacher",
    "teacher_size": None,
    "batch_size": 256,
    "views": 4,
    "unusual": "skip",
    "workers": None,
    "accelerator": "auto",
    "temperature": 0.04,
    "bank_size": 128_000,
    "within_batch": False,
}


def test_where_nothing_is_wrong_nothing_is_advised():
    """Advice for everybody is read by nobody."""
    assert advice.give(HEALTHY, plan=PLAN) == []


CASES = {
    "data.exact_duplicates.leaks=35": ("take these images out of one split", "35 of 1 000"),
    "data.near_duplicates.expected_leaks=20": ("take these images out of one split", "about 20 more"),
    "data.unusable=broken": ("mend or remove the unusable images", "12 of 10 000"),
    "data.unusable=cmyk": ("use --unusual convert", "12 cmyk"),
    "data.exact_duplicates.other_label=3": ("look at the labels", "3 groups"),
    "data.exact_duplicates.copies=200": ("remove copies", "200 of 10 000"),
    "student.unsafe=expected 8 channels": ("choose another student, or a GPU", "expected 8 channels"),
    "forecast.images=100": ("lower --batch-size to 100", "100 images"),
    "forecast.free_memory=1000": ("train with --accumulate", "activations take most"),
    "forecast.free_disk=1000": ("store fewer views", "100 MB"),
    "forecast.live.hours=9.0": ("--teacher tables/teacher", "9.0 h"),
    "speed.loader.images_per_second=50.0": ("raise --workers", "4 processes on 8 cores"),
    "speed.parts_stored.objective=0.5": None,
    "teacher.temperature.suggested=0.02": ("--objective.temperature auto", "0.02"),
    "teacher.nearest_neighbour=0.15": ("choose another teacher", "15 %"),
    "teacher.effective_dimension=2.0": ("check its weights", "2.0 directions"),
    "student.multiply_add_share=1.3": ("choose a smaller student", "130 %"),
    "data.share_below_input=0.9": None,
}


@pytest.mark.parametrize("case", CASES)
def test_a_number_gives_its_advice_and_no_other(case):
    """Each with the number that justifies it: one could not decide whether to follow it otherwise."""
    found = copy.deepcopy(HEALTHY)
    path, value = case.split("=")
    *way, last = path.split(".")
    place = found
    for name in way:
        place = place[name]
    if last == "unusable":
        place[last] = [{"kind": value, "count": 12}]
    else:
        place[last] = type(place[last])(value) if place[last] is not None else value
    given = advice.give(found, plan=PLAN)
    expected = CASES[case]
    if expected is None:
        assert given == [], "no smaller bank would do, or no smaller input"
        return
    assert len(given) == 1, given
    assert expected[0] in given[0]["do"]
    assert expected[1] in given[0]["because"]


def test_large_photographs_are_shrunk_rather_than_read_by_more_processes():
    """More processes cannot be had everywhere; smaller files are read several times as quickly."""
    found = copy.deepcopy(HEALTHY)
    found["speed"]["loader"]["images_per_second"] = 50.0
    found["data"]["short_side"]["median"] = 1080
    (one,) = advice.give(found, plan=PLAN)
    assert one["do"] == "shrink the images once, then use --data photos_small"
    assert one["command"] == "compress-ssl shrink --data photos --short-side 384 --out photos_small"
    assert "1 080 px" in one["because"]


def test_a_bank_that_costs_half_a_step_may_be_smaller():
    """Only as far as a query keeps its neighbours."""
    found = copy.deepcopy(HEALTHY)
    found["speed"]["parts_stored"]["objective"] = 0.5
    found["teacher"]["bank"] = {"suggested": 50_000, "neighbours": 1000.0, "enough": 5000}
    (one,) = advice.give(found, plan=PLAN | {"bank_size": 50_000})
    assert one["do"] == "try a smaller bank: train with --objective.bank-size 5000"
    assert "50 % of a step" in one["because"]
    assert "100 neighbours" in one["because"]


def test_faults_come_before_hours_and_hours_before_accuracy():
    """People read the first line."""
    found = copy.deepcopy(HEALTHY)
    found["teacher"]["temperature"]["suggested"] = 0.01
    found["forecast"]["live"]["hours"] = 20.0
    found["data"]["exact_duplicates"]["leaks"] = 100
    given = [one["do"] for one in advice.give(found, plan=PLAN)]
    assert given == [
        "take these images out of one split",
        "store the teacher's rows once, then train with --teacher tables/teacher",
        "train with --objective.temperature auto",
    ]


def test_commands_are_whole_and_can_be_pasted_into_a_shell():
    """Half a command is looked up first; a name with a blank in it, unquoted, is two."""
    plan = PLAN | {"data": "my photos", "teacher_size": 160, "unusual": "convert", "workers": 2, "accelerator": "cpu"}
    found = copy.deepcopy(HEALTHY)
    found["forecast"]["live"]["hours"] = 20.0
    (one,) = advice.give(found, plan=plan)
    assert shlex.split(one["command"]) == [
        "compress-ssl", "embed", "--encoder", "runs/teacher", "--data", "my photos", "--views", "4", "--size", "160",
        "--unusual", "convert", "--workers", "2", "--device", "cpu", "--out", "tables/teacher",
    ]  # fmt: skip
    understood = cli.parse(embed.Config, shlex.split(one["command"])[2:], "compress-ssl embed")
    assert (understood.size, understood.views, understood.device) == (160, 4, "cpu")
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(*findings.advice([one], []), sep="\n")
    text = shown.export_text()
    assert max(map(len, text.splitlines())) <= 80
    pasted = text[text.index("compress-ssl") :].replace("\\\n", "")  # as a shell joins lines
    assert shlex.split(pasted) == shlex.split(one["command"]), "as it is shown, too"


def test_a_teacher_whose_rows_could_not_be_had_is_passed_over():
    """A folder with one usable image would end in an error about the advice, and show none."""
    nothing = dict.fromkeys(("nearest_neighbour", "effective_dimension", "cosine", "temperature", "bank"))
    found = HEALTHY | {"teacher": HEALTHY["teacher"] | nothing}
    assert advice.give(found, plan=PLAN) == []


def test_reading_is_judged_by_what_stored_rows_need():
    """With stored rows images are cut at the student's size alone: that may be quick enough."""
    found = copy.deepcopy(HEALTHY)
    found["speed"]["loader"]["images_per_second"] = 50.0
    found["speed"]["loader_stored"] = RATE | {"images_per_second": 200.0}
    assert advice.give(found, plan=PLAN) == []


def test_without_teacher_and_student_only_the_data_speaks():
    """A look at data alone must not fail for what was not looked at."""
    found = HEALTHY | {"teacher": None, "student": None, "speed": None, "forecast": None}
    assert advice.give(found, plan=PLAN) == []


def test_a_batch_that_cannot_be_computed_in_parts_is_not_advised_to_be():
    """The default objective refuses --accumulate: whoever did as advised would be told so by the next command."""
    found = copy.deepcopy(HEALTHY)
    found["forecast"]["free_memory"] = 1000
    (one,) = advice.give(found, plan=PLAN | {"within_batch": True})
    assert one["do"] == "lower --batch-size"


def test_a_teacher_is_judged_where_the_objective_keeps_no_bank():
    """A regression would be started onto a teacher that knows nothing of these images."""
    found = copy.deepcopy(HEALTHY)
    found["teacher"] |= {"bank": None, "nearest_neighbour": 0.1}
    (one,) = advice.give(found, plan=PLAN | {"temperature": None, "bank_size": None})
    assert one["do"] == "choose another teacher"
