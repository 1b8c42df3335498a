"""YAML of plain values -> the dataclass that is the configuration; files and flags together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from compress_ssl import distill, evaluate, pretrain
from compress_ssl.cli import FAMILIES, parse
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder, plain
from compress_ssl.settings import build, options, read

NEEDED = ["--teacher", "a", "--data", "digits", "--out", "runs/a"]


@pytest.fixture
def write(tmp_path):
    """write(text) -> the path of a new YAML file."""

    def new(text: str) -> str:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        file.write_text(text)
        return str(file)

    return new


def distilled(*words: str) -> distill.Config:
    return parse(distill.Config, [*words], "compress-ssl distill")


def refused(*words: str) -> str:
    with pytest.raises(Refusal) as refusal:
        distilled(*words)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_flags_override_files_and_files_override_defaults(write):
    """The value that a user wrote last, and closest, would not be the one that is used."""
    file = write("epochs: 7\nbatch_size: 96\noptimizer: {learning_rate: 0.5}\n")
    config = distilled(file, *NEEDED, "--batch-size", "33")
    assert (config.training.epochs, config.training.batch_size) == (7, 33)
    assert config.training.seed == distill.TrainingConfig().seed
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (0.5, 1e-4)
    assert distilled(*NEEDED).training == distill.TrainingConfig()


def test_a_later_file_overrides_an_earlier_one_option_by_option(write):
    """A small file of one's own changes over a recipe would wipe out the recipe, or be ignored."""
    first = write("epochs: 7\noptimizer: {learning_rate: 0.5, weight_decay: 0.25}\nstudent: timm/a\n")
    second = write("optimizer: {weight_decay: 0.125}\nepochs: 9\n")
    config = distilled(first, second, *NEEDED)
    assert (config.training.epochs, config.student) == (9, "timm/a")
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (0.5, 0.125)
    assert distilled(second, first, *NEEDED).optimizer.weight_decay == 0.25


@pytest.mark.parametrize("order", ["flat first", "grouped first"])
def test_the_later_file_wins_however_an_option_without_group_is_written(write, order):
    """A run's config.yaml has `training: {epochs: …}` where people write `epochs: …`: one of them would always win."""
    flat, grouped = write("epochs: 3\n"), write("training: {epochs: 5, batch-size: 6}\n")
    files = (flat, grouped) if order == "flat first" else (grouped, flat)
    assert distilled(*files, *NEEDED).training.epochs == (5 if order == "flat first" else 3)
    assert distilled(*files, *NEEDED).training.batch_size == 6


def test_keys_may_have_dashes_as_flags_do(write):
    """Someone who copies an option from the command line into a file would be told that it is unknown."""
    file = write("batch-size: 5\noptimizer:\n  learning-rate: 0.5\nobjective: {name: compress_1q, bank-size: 11}\n")
    config = distilled(file, *NEEDED, "--student_size", "16")
    assert (config.training.batch_size, config.optimizer.learning_rate, config.objective.bank_size) == (5, 0.5, 11)
    assert config.student_size == 16
    dashed, underscored = write("batch-size: 5\n"), write("batch_size: 6\n")
    assert distilled(dashed, underscored, *NEEDED).training.batch_size == 6
    assert distilled(underscored, dashed, *NEEDED).training.batch_size == 5


def test_one_option_under_two_spellings_is_refused(write):
    """Which of the two counts would be anybody's guess."""
    assert "batch_size" in refused(write("batch-size: 5\nbatch_size: 6\n"), *NEEDED)


def test_the_objective_decides_which_options_there_are():
    """--objective compress_1q would offer the momentum of 2q, or lose an option of its own."""
    assert not hasattr(distilled(*NEEDED, "--objective", "compress_1q").objective, "momentum")
    config = distilled(*NEEDED, "--objective=compress_2q", "--objective.momentum", "0.5")
    assert (config.objective.name, config.objective.momentum) == ("compress_2q", 0.5)
    assert distilled(*NEEDED, "--objective.name", "compress_1q").objective.name == "compress_1q"
    assert "--objective.momentum" in refused(*NEEDED, "--objective", "compress_1q", "--objective.momentum", "0.5")


@pytest.mark.parametrize("written", ["objective: compress_1q\n", "objective:\n  name: compress_1q\n"])
def test_a_file_chooses_an_objective_and_flags_choose_another(write, written):
    """The name in a file would be ignored, or could not be overridden."""
    file = write(written)
    assert distilled(file, *NEEDED).objective.name == "compress_1q"
    assert distilled(file, *NEEDED, "--objective", "compress_2q").objective.name == "compress_2q"
    later = write("objective: {temperature: 0.125}\n")
    config = distilled(file, later, *NEEDED)
    assert (config.objective.name, config.objective.temperature) == ("compress_1q", 0.125)


def test_options_of_the_objective_stay_with_it(write):
    """Naming the file's own objective would reset its options; naming another one would inherit alien ones."""
    file = write("objective: {name: compress_2q, momentum: 0.5, temperature: 0.125}\n")
    assert distilled(file, *NEEDED, "--objective", "compress_2q").objective.momentum == 0.5
    assert distilled(file, *NEEDED, "--objective", "compress_1q").objective.temperature == 0.04
    other = write("objective: {name: compress_1q, bank_size: 11}\n")
    config = distilled(file, other, *NEEDED).objective
    assert (config.name, config.bank_size, config.temperature) == ("compress_1q", 11, 0.04)


def test_options_without_a_name_hold_for_whatever_objective_is_chosen(write):
    """`--objective compress_1q` over a file with a temperature would quietly train at another one."""
    file = write("objective: {temperature: 0.125}\n")
    assert distilled(file, *NEEDED, "--objective", "compress_1q").objective.temperature == 0.125


@pytest.mark.parametrize("word", ["none", "None", "null", "~"])
def test_none_in_a_file_is_none(write, word):
    """`momentum: none`, as the help writes it, would be a text or an error."""
    assert distilled(write(f"objective: {{name: compress_2q, momentum: {word}}}\n"), *NEEDED).objective.momentum is None


@pytest.mark.parametrize(
    "words", [["--objective.momentum", "none"], ["--objective.momentum=none"], ["--objective.momentum", "None"]]
)
def test_none_on_the_command_line_is_none(words):
    """The same word would mean one thing in a file and another on the command line."""
    assert distilled(*NEEDED, "--objective", "compress_2q", *words).objective.momentum is None


def test_none_stays_a_name_where_an_option_takes_text():
    """Data in a folder called none would be looked for in one called None."""
    assert distilled("--teacher", "a", "--data", "none", "--out=none").data == "none"
    assert distilled("--teacher", "a", "--data", "none", "--out=none").out == Path("none")


def test_numbers_may_be_written_as_people_write_them(write):
    """YAML reads 1e-4 as text and 130 as an integer: a learning rate would be refused or compared as text."""
    file = write(
        "epochs: 2\noptimizer: {weight_decay: 1e-4, learning_rate: 1}\nprecision: 32\nview: {scale: [0.25, 1]}\n"
    )
    config = distilled(file, *NEEDED)
    assert (config.optimizer.weight_decay, config.optimizer.learning_rate) == (1e-4, 1.0)
    assert isinstance(config.training.epochs, float)
    assert config.hardware.precision == "32"
    assert config.view.scale == (0.25, 1.0)


def test_a_runs_config_can_be_given_back(tmp_path):
    """Nobody could repeat a run from its folder, which is what the file is kept for."""
    words = ["--objective", "compress_1q", "--objective.bank-size", "11", "--epochs", "3",
             "--time-budget", "30m", "--schedule.milestones", "0.25", "0.5", "0.75", "--workers", "0",
             "--unusual", "convert", "--strict"]  # fmt: skip
    config = distilled(*NEEDED, *words)
    RunFolder.open(tmp_path / "run", config, resume=False)
    assert distilled(str(tmp_path / "run" / "config.yaml")) == config
    again = distilled(str(tmp_path / "run" / "config.yaml"), "--out", "other", "--epochs", "5")
    assert (again.out, again.training.epochs, again.objective) == (Path("other"), 5, config.objective)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (pretrain, ["--data", "digits", "--out", "a", "--method.temperature", "0.5", "--method.colour.grey", "0"]),
        (evaluate, ["a", "b=c", "--data", "digits", "--out", "x", "--metrics", "linear_probe", "--size", "8"]),
    ],
)
def test_every_verbs_config_survives_being_written(verb, words, tmp_path):
    """A table, positional models or a nested group would come back as something else."""
    config = parse(verb.Config, words, "compress-ssl")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(config)))
    assert parse(verb.Config, [str(file)], "compress-ssl") == config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch: 3\n", r"got epoch: did you mean 'epochs'"),
        ("optimizer: {learnin-rate: 3}\n", r"got optimizer\.learnin_rate: did you mean 'learning_rate'"),
        ("training: {epoch: 3}\n", r"got training\.epoch: did you mean 'epochs'"),
        ("objective: {name: compress_1q, momentum: 0.5}\n", r"got objective\.momentum"),
        ("objective: compres_2q\n", r"got 'compres_2q': did you mean 'compress_2q'"),
        ("objective: 3\n", r"expected text for objective\.name, got 3"),
        ("objective:\n", r"expected text for objective\.name, got None"),
        ("epochs: many\n", r"expected a number for training\.epochs, got 'many'"),
        ("epochs: true\n", r"expected a number for training\.epochs, got True"),
        ("batch_size: 1.5\n", r"expected a whole number for training\.batch_size, got 1\.5"),
        ("batch_size: true\n", r"expected a whole number for training\.batch_size, got True"),
        ("strict: 1\n", r"expected true or false for strict, got 1"),
        ("student: 3\n", r"expected text for student, got 3"),
        ("student_size: big\n", r"expected a whole number or none for student_size, got 'big'"),
        ("unusual: convrt\n", r"expected one of skip, convert for unusual, got 'convrt': did you mean 'convert'"),
        ("view: {scale: [0.5]}\n", r"expected a list of 2, each a number for view\.scale, got \[0\.5\]"),
        ("optimizer: sgd\n", r"expected options under optimizer, got 'sgd'"),
        ("epochs: 3\ntraining: 4\n", r"expected options under training, got 4"),
        ("out: [a]\n", r"expected a path for out, got \['a'\]"),
        ("- epochs\n", r"expected option: value lines in .*, got a list"),
        ("3: epochs\n", r"expected names of options as keys in .*, got 3"),
        ("epochs: [3\n", r"expected YAML in .*: mend the file"),
        ("a: !!python/object/apply:os.getcwd []\n", r"expected YAML in .*python/object"),
    ],
)
def test_what_a_file_gets_wrong_is_told_in_one_sentence(write, text, told):
    """The key would be ignored, or its value fail an hour later under a name that the user never wrote."""
    assert re.search(told, refused(write(text), *NEEDED)), refused(write(text), *NEEDED)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    """A wrong path would end in a stack trace about byte 0xff."""
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00a")
    assert "expected YAML" in refused(str(tmp_path / "a.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    assert "expected YAML" in refused(str(tmp_path / "folder.yaml"))
    assert "does not exist: check the path" in refused(str(tmp_path / "missing.yaml"))


def test_an_empty_file_changes_nothing(write):
    """Commenting out the last line of a file would make it an error."""
    assert read(write("# nothing\n")) == {}
    assert distilled(write("# nothing\n"), *NEEDED) == distilled(*NEEDED)


def test_options_are_what_the_command_line_calls_them():
    """The nearest name in a message would be one that does not exist."""
    default = build(distill.Config, {"objective": "compress_1q"}, FAMILIES)
    names = options(distill.Config, default)
    assert {
        "epochs",
        "workers",
        "objective.bank_size",
        "view.flip",
        "optimizer.learning_rate",
        "teacher",
    } <= names.keys()
    assert not {"training", "training.epochs", "objective.momentum", "hardware.workers"} & names.keys()
    default = build(evaluate.Config, {}, FAMILIES)
    assert "protocols.linear_probe.epochs" in options(evaluate.Config, default)
    assert "models" not in options(evaluate.Config, default), "positional: there is no --models"
