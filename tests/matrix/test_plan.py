"""A file of options as its page and the help describe it: which cells it makes, and what each of them is."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress_ssl import benchmark, distill, pretrain
from compress_ssl.matrix.plan import BUDGET, OWN, Cell, Untrained
from compress_ssl.settings import build

PAGE = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text()
OURS = {"data": "digits", "teacher": "compress/resnet10_small_w8@random", "out": "bench"}


def cells(values: dict[str, Any]) -> list[Cell]:
    config = build(benchmark.Config, OURS | values, {})
    return benchmark.matrix_of(config, size=8, accelerator="cpu").cells()


def row(values: dict[str, Any], name: str) -> Any:
    """The configuration of the row on one student with one seed."""
    found = [cell.config for cell in cells({"students": ["timm/resnet18"], "seeds": [3], **values}) if cell.row == name]
    assert len(found) == 1
    return found[0]


def test_the_pages_file_makes_the_cells_that_the_page_counts():
    """Who copies it would be told that it is wrong, or wait for another number of trainings."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    made = cells(yaml.safe_load(text))
    assert f"= {len(made)} cells" in PAGE
    configs = {(cell.row, cell.setting): cell.config for cell in made}
    swept = configs["compress_1q", "1024"]
    assert (swept.objective.bank_size, swept.objective.temperature) == (1024, 0.07)
    assert (swept.training.epochs, swept.optimizer.learning_rate, swept.schedule.warmup) == (20, 6e-3, 0.05)
    sharp = configs["sharp_2q", ""]
    assert (sharp.objective.name, sharp.objective.temperature, sharp.teacher) == ("compress_2q", 0.02, OURS["teacher"])
    assert configs["supervised", ""].optimizer.learning_rate == 1e-3
    assert configs["supervised", ""].training.epochs == configs["alone", ""].training.epochs == 10
    assert isinstance(configs["random", ""], Untrained)


def test_every_key_of_a_file_is_in_the_pages_table_and_no_other():
    """A key that is told nowhere is found by reading the source; one that is gone is refused."""
    table = PAGE.partition("## Keys")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(benchmark.Config))


def test_what_the_benchmark_decides_and_what_makes_the_budget_is_told():
    """A row would be refused for an option that nobody forbade."""
    forbidden = PAGE.partition("Not allowed")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", forbidden)) == set(OWN)
    budget = PAGE.partition("what\nmakes the budget equal (")[2].partition(")")[0]
    told = set(re.findall(r"`(\w+)`", budget))
    alone = set(BUDGET) - {"training", "hardware"}
    assert alone <= told
    groups = {field.name for group in (distill.TrainingConfig, distill.HardwareConfig)
              for field in dataclasses.fields(group)}  # fmt: skip
    assert told - alone <= groups


def test_the_helps_example_is_a_file():
    """The only thing that the terminal shows of the format would not be one."""
    text = inspect.getdoc(benchmark.Config).partition("docs/benchmark.md:\n\n")[2]
    made = cells(yaml.safe_load(inspect.cleandoc(text)))
    assert {(cell.row, cell.setting) for cell in made} >= {("sharp", "0.02"), ("compress", "0.04"), ("random", "")}
    sharp = next(cell.config for cell in made if (cell.row, cell.setting) == ("sharp", "0.04"))
    assert (sharp.objective.name, sharp.objective.temperature) == ("compress_2q", 0.04), "the sweep's value counts"


def test_a_row_changes_an_option_of_common_and_keeps_its_neighbours():
    """A row with a learning rate of its own would be trained by another optimizer than the others."""
    common = {"optimizer": {"name": "adamw", "learning_rate": 6e-3}, "schedule.warmup": 0.1}
    config = row({"common": common, "objectives": {"compress_2q": {"optimizer.learning_rate": 1e-3}}}, "compress_2q")
    assert (config.optimizer.name, config.optimizer.learning_rate, config.schedule.warmup) == ("adamw", 1e-3, 0.1)
    assert (config.training.seed, config.student) == (3, "timm/resnet18")


@pytest.mark.parametrize(("common", "temperature"), [({"temperature": 0.5}, 0.5),
                                                     ({"name": "compress_1q", "temperature": 0.5}, 0.04)])  # fmt: skip
def test_the_objective_of_common_holds_for_those_whom_it_names(common, temperature):
    """A temperature meant for 1q would be used in 2q, or one meant for all in none."""
    config = row({"common": {"objective": common}, "objectives": ["compress_2q"]}, "compress_2q")
    assert (config.objective.name, config.objective.temperature) == ("compress_2q", temperature)


def test_rows_of_the_frame_take_the_budget_of_common_and_nothing_else():
    """SimCLR at a learning rate of distillation would look worse than it is; for other epochs, better."""
    common = {"epochs": 7, "held_out": 11, "precision": "32", "optimizer.learning_rate": 0.7, "schedule.warmup": 0.5}
    config = row({"common": common, "frame": ["alone"]}, "alone")
    usual = pretrain.Config(data="d", out=Path("o"))
    assert (config.training.epochs, config.held_out, config.hardware.precision) == (7, 11, "32")
    assert (config.optimizer, config.schedule, config.method.name) == (usual.optimizer, usual.schedule, "simclr")
    assert config.encoder == "timm/resnet18"
