"""Configurations as commands: what is typed again is what was run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from compress_ssl import distill, objectives, pretrain, pretraining
from compress_ssl.cli import parse
from compress_ssl.hardware import HardwareConfig
from compress_ssl.matrix.command import command
from compress_ssl.optim import OptimizerConfig, ScheduleConfig
from compress_ssl.projector import ProjectorConfig
from compress_ssl.training import TrainingConfig
from compress_ssl.transforms import TrainView

DISTILL = {
    "as it is": {},
    "another objective": {"objective": objectives.find("compress_1q").Config(temperature=0.07)},
    "an option of the usual one": {"objective": objectives.find("compress_2q").Config(momentum=None)},
    "groups": {
        "training": TrainingConfig(epochs=0.5, seed=3),
        "optimizer": OptimizerConfig(learning_rate=1e-4),
        "schedule": ScheduleConfig(milestones=(0.25, 0.5)),
        "hardware": HardwareConfig(accelerator="cpu", workers=0),
        "view": TrainView(scale=(0.4, 1.0), flip=0.0),
    },
    "switches": {"projector": ProjectorConfig(kind="mlp", batch_norm=False), "strict": True},
    "words with spaces": {"teacher": "my teacher", "student_size": 32},
}


@pytest.mark.parametrize("changes", DISTILL.values(), ids=DISTILL)
def test_a_distillations_command_has_its_configuration(changes):
    """The command in the table would make other numbers than the table's."""
    config = distill.Config(**({"teacher": "t", "data": "d", "out": Path("o")} | changes))
    words = shlex.split(command("distill", config))
    assert words[:2] == ["compress-ssl", "distill"]
    assert parse(distill.Config, words[2:], "compress-ssl distill") == config


@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_can_be_typed(name):
    """Of one of them the command would be refused."""
    config = distill.Config(teacher="t", data="d", out=Path("o"), objective=objectives.find(name).Config())
    assert parse(distill.Config, shlex.split(command("distill", config))[2:], "compress-ssl distill") == config


@pytest.mark.parametrize("name", pretraining.names())
def test_every_pretraining_can_be_typed(name):
    """Rows of the frame could not be made again."""
    config = pretrain.Config(
        data="d", out=Path("o"), method=pretraining.find(name).Config(), training=TrainingConfig(epochs=7), size=8
    )
    assert parse(pretrain.Config, shlex.split(command("pretrain", config))[2:], "compress-ssl pretrain") == config


def test_nothing_that_is_usual_is_written():
    """Of a line of fifty options nobody sees the one that matters."""
    config = distill.Config(teacher="t", data="d", out=Path("o"), training=TrainingConfig(epochs=7))
    assert command("distill", config) == "compress-ssl distill --teacher t --data d --out o --epochs 7"
