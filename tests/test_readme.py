"""Every command line of README.md is run, as a reader would run it."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress_ssl import distill
from compress_ssl.cli import VERBS, main, parse
from compress_ssl.encoder import open_encoder
from compress_ssl.hardware import HardwareConfig

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# a command whose line, or the comment line above it, says one of these is only parsed here
ELSEWHERE = re.compile(r"#.*\b(download|downloads|network|weights|hours?|GPU|CUDA|processes|machines)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Command:
    """One command line; `block` numbers the fenced block it stands in, whose commands share a folder."""

    block: int
    words: tuple[str, ...]
    elsewhere: bool


def commands(text: str) -> list[Command]:
    """The `make …` and `compress-ssl …` lines of all bash and console blocks, in order."""
    found = []
    for block, (language, body) in enumerate(FENCE.findall(text)):
        if language not in ("bash", "console", "sh", "shell"):
            continue
        above = ""
        for line in body.replace("\\\n", " ").splitlines():
            bare = line.strip().removeprefix("$ ").strip()
            if bare.startswith(("make", "compress-ssl", ".venv/bin/compress-ssl")):
                words = shlex.split(bare, comments=True)
                words[0] = Path(words[0]).name
                if words[0] in ("make", "compress-ssl"):
                    marked = bool(ELSEWHERE.search(bare) or ELSEWHERE.search(above))
                    found.append(Command(block, tuple(words), marked))
            if bare.startswith("#"):
                above = bare
            elif not bare:
                above = ""
    return found


# later flags override: enough to see a command through, on a CPU, with few pictures and a small teacher
SHORT = ("--epochs", "0.1", "--batch-size", "16", "--accelerator", "cpu", "--workers", "0")
QUIET = ("--device", "cpu", "--workers", "0")
SMALL = ("--encoder", "compress/resnet10_small_w8")
BRIEF = ("--seconds", "2", "--batch-size", "16", "--accelerator", "cpu", "--workers", "0")
SHORTER = {"pretrain": (*SHORT, *SMALL), "distill": SHORT, "embed": QUIET, "evaluate": QUIET, "doctor": BRIEF}
TEACHER = ("pretrain", "--data", "photos", "--out", "runs/teacher")
PYTHON = (
    [body for language, body in FENCE.findall(README.read_text()) if language == "python"] if README.exists() else []
)
COMMANDS = commands(README.read_text()) if README.exists() else []
OURS = [command for command in COMMANDS if command.words[0] == "compress-ssl"]


def test_the_readme_has_the_commands_that_a_newcomer_needs():
    """A README without commands, or one whose fences nobody can find, would pass by having nothing to run."""
    assert README.exists(), "README.md is missing"
    made = {command.words[1] for command in COMMANDS if command.words[0] == "make" and len(command.words) > 1}
    assert {"demo", "test"} <= made
    verbs = {command.words[1] for command in OURS}
    assert {"distill", "evaluate", "embed", "report"} <= verbs, f"got {sorted(verbs)}"
    assert not all(command.elsewhere for command in OURS), "every command is marked as one for another machine"


def test_commands_are_found_with_prompts_comments_and_continued_lines():
    """A command that is not found is never run."""
    text = "```bash\n# downloads\ncompress-ssl embed \\\n  --data a  # b\n\nmake demo\n```\n"
    text += "```console\n$ make x\nout\n```\n"
    first, second, third = commands(text)
    assert first == Command(0, ("compress-ssl", "embed", "--data", "a"), True)
    assert second == Command(0, ("make", "demo"), False)
    assert third.words == ("make", "x")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.words[0] == "make"],
                         ids=lambda command: " ".join(command.words))  # fmt: skip
def test_make_targets_exist(command):
    """`make: *** No rule to make target` is the first thing that a newcomer would see."""
    done = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", OURS, ids=lambda command: " ".join(command.words)[:80])
def test_commands_parse(command, monkeypatch, capsys):
    """An option that was renamed would be refused."""
    monkeypatch.chdir(ROOT)  # configs/ are named relative to it
    verb, *rest = command.words[1:] or ("--help",)
    if verb.startswith("-"):
        assert verb in ("--help", "-h", "--version", "-V")
        return
    assert verb in VERBS
    kind = importlib.import_module(f"compress_ssl.{verb}").Config
    if {"-h", "--help"} & set(rest):
        with pytest.raises(SystemExit) as end:
            parse(kind, rest, f"compress-ssl {verb}")
        assert end.value.code == 0
        assert capsys.readouterr().out
    else:
        parse(kind, rest, f"compress-ssl {verb}")


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"compress/\w+", README.read_text() if README.exists() else "")))
)
def test_our_own_models_in_the_readme_exist(name):
    """A name in a table that nothing answers to; commands with a large one are run with a small one below."""
    assert open_encoder(f"{name}@random", weights="random").width > 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A reader's folder: configs/, and photos/ with small pictures in folders by class, vectors of them."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    random = np.random.default_rng(3)
    for kind in range(3):
        (folder / "photos" / f"kind{kind}").mkdir(parents=True)
        for number in range(23):
            quarters = np.kron(random.integers(0, 165, (2, 2, 3)), np.ones((20, 18, 1)))  # so that no two are alike
            pixels = quarters + np.array([90, 40, 0])[(np.arange(3) + kind) % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"kind{kind}" / f"{number}.jpg")
    ids = sorted(str(file.relative_to(folder / "photos")) for file in (folder / "photos").rglob("*.jpg"))
    np.save(folder / "vectors.npy", random.standard_normal((len(ids), 7)).astype(np.float32))
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")
    return folder


@pytest.fixture
def inside(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COMPRESS_SSL_HOME", str(place / "home"))
    return place


def test_commands_run(inside, capsys):
    """What the README promises would not work. Commands run in order in one folder, as one reader's would, so they are
    one test: shared out among processes, some would miss what those before them made. Trainings are cut short, of a
    small teacher, and a batch has no more images than our few. What needs a network is only parsed, above."""
    ran = [command for command in OURS if not command.elsewhere]
    assert len(ran) > 10
    for command in ran:
        looks = {"--info", "--verify"} & set(command.words)  # at what is there: nothing to be cut short
        shorter = () if looks else SHORTER.get(command.words[1], ())
        assert main([*command.words[1:], *shorter]) == 0, capsys.readouterr().err
        if "--out" in command.words:
            assert (inside / command.words[command.words.index("--out") + 1]).exists()


def test_the_python_of_the_readme_runs(inside, monkeypatch):
    """A name that was moved would fail in the reader's own program. The training is cut short."""
    if not PYTHON:
        pytest.fail("README.md has no python block")
    real = distill.run

    def shorter(config: distill.Config) -> Path:
        short = replace(config.training, epochs=0.1, batch_size=16)
        return real(replace(config, training=short, hardware=HardwareConfig(accelerator="cpu", workers=0)))

    monkeypatch.setattr(distill, "run", shorter)
    if not (inside / "runs" / "teacher").exists():  # when this test runs alone
        assert main([*TEACHER, *SHORTER["pretrain"]]) == 0
    for code in PYTHON:
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})
