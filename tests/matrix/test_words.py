"""What a benchmark's file gets wrong is told by what stands in the file: the key, and the part of the file it is in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from compress_ssl import cli
from compress_ssl.refusal import Refusal, about

USUAL = {
    "data": "digits",
    "teacher": "compress/resnet10_small_w8@random",
    "students": ["compress/resnet10_small_w8"],
    "objectives": {"compress_2q": {}},
    "devices": ["cpu"],
}


def refused(folder: Path, capsys: pytest.CaptureFixture, *words: str) -> str:
    assert cli.main(["benchmark", *words, "--out", str(folder / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert not (folder / "out").exists()
    return told.removeprefix("compress-ssl: ").rstrip()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objectives": {"w": {"objective": {"name": "weighted_sum", "terms": ["compress_1p"]}}}},
         "objectives.w: objective expected an objective, got 'compress_1p': did you mean 'compress_1q'?"),
        ({"objectives": {"compress_2q": {"objective.temperature": -1}}},
         "objectives.compress_2q: objective.temperature expected more than 0 or auto, got -1.0"),
        ({"objectives": {"crd": {"objective": {"head-width": 0}}}},
         "objectives.crd: objective.head_width expected at least 1, got 0"),
        ({"common": {"batch_sizes": 3}}, "common: expected an option of distill, got batch_sizes: did you mean"),
        ({"common": {"schedule.warmup": 2}}, "common: schedule.warmup expected a share"),
        ({"common": {"objective": {"momentum": 0.5}}, "objectives": ["crd"]},
         "objectives.crd and common: expected an option of distill, got objective.momentum"),
        ({"common": {"seed": 3}}, "common expected options of a training, got seed"),
        ({"frame": {"alone": {"method.temprature": 1}}}, "frame.alone: expected an option of pretrain, got method."),
        ({"sweep": {"option": "objective.temperature", "values": [0.1, -1]}},
         "sweep, objectives.compress_2q with objective.temperature -1: objective.temperature expected more than 0"),
        ({"sweep": {"option": "bank_size", "values": [7]}}, "got bank_size: did you mean 'objective.bank_size'?"),
        ({"sweep": {"options": "views", "values": [7]}}, "got options: did you mean 'option'?"),
        ({"sweep": {"option": "views", "values": 7}}, "expected a list for sweep.values, got 7"),
        ({"metrics": ["cka"]}, "got metrics: known: common, data, devices, evaluations,"),
        ({"evaluations": ["linear_prob"]}, "evaluations: expected an evaluation .* 'linear_probe'?"),
        ({"protocols": {"few_labels": {"repeats": 9}}}, "protocols: few_labels.repeats expected few_labels among"),
        ({"protocols": {"linear_probe": {"protocol": "paper"}}}, "protocols.linear_probe.protocol expected stored"),
        ({"protocols": {"linear_probe": {"epochs": 5}}}, "protocols: linear_probe.epochs expected the protocol paper"),
        ({"protocols": {"linear_probe": {"learning_rate": 0.1, "batch_size": 64}}},
         "protocols: linear_probe.batch_size expected the protocol paper, which a benchmark cannot have, got 64"),
        ({"teacher": "timm/resnet500"}, "teacher: expected a model of timm, got 'resnet500'"),
        ({"teacher": None}, "expected teacher, got nothing for it: write --teacher, or teacher: in the file"),
        ({"students": ["compress/resnet11"]}, "students: expected a backbone of compress/, got 'resnet11'"),
        ({"data": "nothere"}, "data: expected a folder of images"),
        ({"seeds": [0, -1]}, "seeds expected 0 or more, got -1"),
        ({"devices": ["gpu"]}, "devices: device expected cpu, cuda or mps as available here, got 'gpu'"),
        ({"only": ["x"]}, "only expected rows of the file, got x"),
    ],
)  # fmt: skip
def test_the_key_is_named_as_it_stands_in_the_file(changes, told, tmp_path, capsys):
    """A flag that nobody typed would be looked for in the command, or the right key in the wrong row."""
    file = tmp_path / "matrix.yaml"
    file.write_text(yaml.safe_dump(USUAL | changes))
    found = refused(tmp_path, capsys, str(file))
    start, _, end = told.partition(".* ")
    assert start in found
    assert end in found
    assert not re.search(r"--(?!teacher, or)", found), found


def test_a_command_that_is_advised_stays_as_it_is_typed():
    """`compress-ssl embed encoder timm/resnet18 out rows` is no command."""
    with pytest.raises(Refusal) as found, about("data"):
        raise Refusal("--held-out expected rows, got none: run `compress-ssl embed --encoder a --batch-size 3`, or "
                      "leave --held-out out")  # fmt: skip
    assert str(found.value) == ("data: held_out expected rows, got none: run `compress-ssl embed --encoder a "
                                "--batch-size 3`, or leave held_out out")  # fmt: skip


@pytest.mark.parametrize(("name", "told"), [("nothere.csv", "which does not exist: check the path"),
                                            (".", "got the folder .: name the file in it")])  # fmt: skip
def test_raw_numbers_that_are_not_there_are_told_without_the_systems_words(name, told, tmp_path, capsys):
    """`[Errno 2]` says nothing to whoever mistyped a path."""
    found = refused(tmp_path, capsys, "--results", name)
    assert told in found
    assert "Errno" not in found
