"""Recipes of the paper: every file under configs/ joins by existing."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from compress_ssl import backbones, benchmark, distill, objectives, pretrain, pretraining
from compress_ssl.backbones import from_torchvision
from compress_ssl.cli import FAMILIES, parse
from compress_ssl.encoder import open_encoder
from compress_ssl.settings import build, gather

FOLDER = Path(__file__).parents[1] / "configs"
PRETRAINING = sorted(FOLDER.glob("pretrain_*.yaml"))
LIKE = sorted(FOLDER.glob("*_like.yaml"))  # settings of others, to compare with
BENCHMARKS = sorted(FOLDER.glob("benchmark_*.yaml"))
FILES = sorted(set(FOLDER.glob("*.yaml")) - set(PRETRAINING) - set(LIKE) - set(BENCHMARKS))
PAIRS = ("moco_r50_to_alexnet", "moco_r50_to_r18", "moco_r50_to_mobilenet_v2", "swav_r50_to_r18",
         "simclr_r50x4_to_r50", "simclr_r50x4_to_alexnet")  # fmt: skip
WIDTHS = {"alexnet": 4096, "r18": 512, "mobilenet_v2": 1280, "r50": 2048}  # of the paper's students

recipes = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
pretraining_recipes = pytest.mark.parametrize("file", PRETRAINING, ids=lambda file: file.stem)


def opening(file: Path) -> str:
    """The comment at the top, without its marks, lines that a backslash continues joined."""
    lines = file.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].strip() for line in lines[:end]).replace("\\\n", "")


def test_every_pair_of_the_paper_has_a_recipe_for_both_objectives():
    """A row of the paper's table that nobody can run would look as if it had never been part of it."""
    assert {file.stem for file in FILES} >= {f"{pair}_{objective}" for pair in PAIRS for objective in ("1q", "2q")}


@recipes
def test_a_recipe_opens_with_a_command_that_parses(file):
    """Whoever copies the first line would be told that it is wrong."""
    words = shlex.split(opening(file).split("\n")[0])
    assert words[:3] == ["compress-ssl", "distill", f"configs/{file.name}"]
    config = parse(distill.Config, [str(file), *words[3:]], "compress-ssl distill")
    assert str(config.out) == f"runs/{file.stem}"
    assert config.teacher == yaml.safe_load(file.read_text())["teacher"]


@recipes
def test_a_recipe_tells_its_cost_and_the_papers_number_and_that_it_is_the_papers(file):
    """A number next to our command would be read as ours, and a run of days would come as a surprise."""
    told = opening(file)
    assert re.search(r"^cost: .*(as published|not published)", told, re.MULTILINE)
    assert re.search(r"^expected: \d\d\.\d / \d\d\.\d / (\d\d\.\d|not given) %", told, re.MULTILINE)
    assert "not reproduced here" in told


@recipes
def test_a_recipe_holds_the_papers_hyper_parameters(file):
    """Another learning rate or temperature gives another student under the paper's name (NN 46.9 -> 34.6 at 0.1)."""
    written = yaml.safe_load(file.read_text())
    config = build(distill.Config, gather(distill.Config, [str(file)], FAMILIES), FAMILIES)
    assert (config.training.epochs, config.training.batch_size) == (130, 256)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("sgd", 0.01)
    assert (config.optimizer.sgd_momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    assert config.schedule.name == "step"
    assert [130 * share for share in config.schedule.milestones] == pytest.approx([90, 120], abs=1e-9)
    assert config.schedule.factor == 0.2
    assert (config.objective.bank_size, config.objective.temperature) == (128_000, 0.04)
    assert (config.view.scale, config.view.flip, config.student_size) == ((0.08, 1.0), 0.5, 224)
    assert {"epochs", "batch_size", "optimizer", "schedule", "objective"} <= written.keys(), "a reader must see them"
    if config.objective.name == "compress_2q":
        assert written["objective"]["momentum"] == config.objective.momentum == 0.999


@recipes
def test_a_recipe_names_an_objective_and_models_that_exist(file):
    """It would fail on the user's machine, after the data had been read."""
    config = build(distill.Config, gather(distill.Config, [str(file)], FAMILIES), FAMILIES)
    assert config.objective.name in objectives.names()
    assert file.stem.endswith(config.objective.name.removeprefix("compress"))
    if config.teacher.startswith("tables/"):  # ResNet-50x4: only its stored rows
        return
    spec = backbones.read_spec(config.teacher)
    assert spec.kind == "torchvision"
    assert spec.name in from_torchvision.names()


@pytest.mark.parametrize("student", sorted({yaml.safe_load(file.read_text())["student"] for file in FILES}))
def test_the_students_of_the_recipes_are_as_wide_as_the_papers(student):
    """With another embedding (a classifier's 1000 numbers, say) the published numbers would not be comparable."""
    used = [file.stem for file in FILES if yaml.safe_load(file.read_text())["student"] == student]
    expected = {width for name, width in WIDTHS.items() for stem in used if f"_to_{name}_" in stem}
    assert expected == {open_encoder(student, weights="random").width}


@pytest.mark.parametrize("file", LIKE, ids=lambda file: file.stem)
def test_a_setting_of_others_opens_with_a_command_that_parses_and_says_what_is_theirs(file):
    """A number got by it would be held against software that does other things."""
    told = opening(file)
    words = shlex.split(told.split("\n")[0])
    assert words[:3] == ["compress-ssl", "distill", f"configs/{file.name}"]
    config = parse(distill.Config, [str(file), *words[3:]], "compress-ssl distill")
    assert str(config.out) == f"runs/{file.stem}"
    for line in ("cost: ", "expected: .*not reproduced here", "As described there", "Not as there"):
        assert re.search(f"^{line}", told, re.MULTILINE), line


def test_the_setting_like_lightly_train_is_as_it_is_described():
    """ "LightlyTrain-like" would be a name for any weak setting."""
    file = str(FOLDER / "lightly_train_v1_like.yaml")
    config = parse(distill.Config, [file, "--teacher", "a", "--data", "b", "--out", "c"], "compress-ssl distill")
    assert (config.objective.name, config.objective.bank_size, config.objective.temperature) == (
        "batch_in_bank", 8192, 0.07,
    )  # fmt: skip
    assert (config.mixing.kind, config.mixing.alpha, config.mixing.probability) == ("mixup", 1, 1)
    assert (config.optimizer.name, config.optimizer.weight_decay) == ("lars", 1e-6)
    assert config.optimizer.learning_rate == pytest.approx(1.8 * (config.training.batch_size / 1536) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_a_benchmark_opens_with_a_command_that_parses_and_has_cells_that_can_be_built(file):
    """A night's matrix would be refused in the evening, or its last row in the morning."""
    told = opening(file)
    words = shlex.split(told.split("\n")[0])
    assert words[:3] == ["compress-ssl", "benchmark", f"configs/{file.name}"]
    config = parse(benchmark.Config, [str(file), *words[3:]], "compress-ssl benchmark")
    assert str(config.out) == f"runs/{file.stem}"
    assert re.search(r"^expected: .*not reproduced here", told, re.MULTILINE)
    cells = benchmark.matrix_of(config, size=32, accelerator="cpu").cells()
    count = int(re.search(r"^cost: .*?(\d+) trainings", told, re.MULTILINE)[1])
    assert sum(cell.row != "random" for cell in cells) == count
    for sweep in re.findall(r"^\{option: .*\}$", told, re.MULTILINE):
        other = replace(config, sweep=yaml.safe_load(sweep))
        assert benchmark.matrix_of(other, size=32, accelerator="cpu").cells()


def test_every_method_has_a_recipe_for_every_data_set():
    """A method without one would be tried with another's learning rate, and judged by that."""
    expected = {
        f"pretrain_{data}_{method}"
        for data in ("cifar10", "tiny_imagenet_100", "imagenet")
        for method in pretraining.names()
    }
    assert {file.stem for file in PRETRAINING} == expected


@pretraining_recipes
def test_a_recipe_of_pretraining_opens_with_a_command_that_parses(file):
    """Whoever copies the first line would be told that it is wrong, or pretrain by another method than the file's."""
    words = shlex.split(opening(file).split("\n")[0])
    assert words[:3] == ["compress-ssl", "pretrain", f"configs/{file.name}"]
    config = parse(pretrain.Config, [str(file), *words[3:]], "compress-ssl pretrain")
    assert str(config.out) == f"runs/{file.stem}"
    assert file.stem.endswith(config.method.name)
    assert (config.size, config.encoder) == tuple(
        yaml.safe_load(file.read_text())[name] for name in ("size", "encoder")
    )


@pretraining_recipes
def test_a_recipe_of_pretraining_tells_its_cost_and_what_to_expect(file):
    """The authors' number next to our command would be read as ours, and days of work come as a surprise."""
    told = opening(file)
    assert re.search(r"^cost: ", told, re.MULTILINE)
    assert re.search(r"^expected: ", told, re.MULTILINE)
    assert "reproduced here" in told


@pretraining_recipes
def test_a_recipe_of_pretraining_names_an_encoder_that_takes_its_size(file):
    """It would fail on the user's machine, after the data had been read."""
    written = yaml.safe_load(file.read_text())
    encoder = open_encoder(written["encoder"], weights="random", size=written["size"])
    assert encoder.preprocessing.size == written["size"]
