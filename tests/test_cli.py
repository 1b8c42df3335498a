"""The command line: verbs, help, and one sentence for whoever cannot be served."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress_ssl import distill, embed
from compress_ssl.cli import VERBS, main

TINY = "compress/resnet10_small_w8@random"
LOCAL = ["--accelerator", "cpu", "--workers", "0"]
DISTILL = ["distill", "--teacher", TINY, "--teacher-size", "8", "--student", TINY, "--student-size", "8", *LOCAL]
PRETRAIN = ["pretrain", "--encoder", TINY, "--size", "8", *LOCAL]
EMBED = ["embed", "--encoder", TINY, "--size", "8", "--device", "cpu", "--workers", "0"]
INTO = ["--data", "digits", "--out", "a"]
EVALUATE = ["evaluate", TINY, "--size", "8", "--device", "cpu", "--workers", "0"]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Relative paths, and whatever a command writes by mistake, stay in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_SSL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")


def pictures(folder: Path, count: int) -> Path:
    """A folder with `count` small pictures, no two alike."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(7)
    for number in range(count):
        pixels = random.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def refusal(capsys, *words: str) -> str:
    """The one sentence on stderr that a command answers with, exit code 2, nothing on stdout."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line]
    assert out == ""
    assert len(told) == 1, err
    assert told[0].startswith("compress-ssl: ")
    assert "expected" in told[0]
    assert "got" in told[0]
    assert "Traceback" not in err
    assert "│" not in err
    return told[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# ---- help ----------------------------------------------------------------------------------------------------------


def python(code: str, *words: str) -> subprocess.CompletedProcess:
    run = [sys.executable, *(["-c", code] if code else []), *words]
    return subprocess.run(run, capture_output=True, text=True, timeout=60)


def test_help_imports_nothing_heavy():
    """`compress-ssl --help` would take as long as importing torch: ten seconds instead of a tenth."""
    done = python(
        "import sys\nfrom compress_ssl.cli import main\nassert main(['--help']) == 0\nassert main(['--version']) == 0\n"
        "assert main(['embde']) == 2\n"
        "heavy = {'torch', 'torchvision', 'timm', 'lightning', 'tyro', 'numpy', 'yaml', 'rich', 'PIL', 'sklearn'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_what_trains_is_imported_when_it_trains():
    """`distill --help`, a wrong option and every score of stored rows would wait 5 s for Lightning's own imports."""
    verbs = "distill, pretrain, evaluate, embed, doctor, benchmark"
    told = python(f"import sys\nfrom compress_ssl import {verbs}\nprint('lightning.fabric' in sys.modules)").stdout
    assert told == "False\n"


def test_the_package_imports_nothing_heavy():
    """`from compress_ssl import __version__` in someone's setup script would start torch."""
    assert python("import sys, compress_ssl; print('torch' in sys.modules)").stdout == "False\n"


def test_the_module_runs_like_the_command():
    """On machines where the command is not on the path there would be no way in."""
    done = python("", "-m", "compress_ssl.cli", "--help")
    assert done.returncode == 0
    assert all(re.search(rf"^  {verb} ", done.stdout, re.MULTILINE) for verb in VERBS)
    assert python("", "-m", "compress_ssl.cli", "embde").returncode == 2


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_without_a_verb_it_says_which_there_are(words, capsys):
    """A newcomer who types the bare command would get an error."""
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert all(verb in out for verb in VERBS)
    assert err == ""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verbs_help_is_readable(verb, flag, capsys):
    """An option that nobody can read about, or that runs out of an 80-column terminal, is not used."""
    with pytest.raises(SystemExit) as end:
        main([verb, flag])
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"compress-ssl {verb} [-h]" in out
    assert ("--out" in out) == (verb not in ("doctor", "models"))  # which write nothing
    usage, _, _, *options = out.splitlines()  # the two sentences at the top are the terminal's to wrap
    assert usage.startswith("usage: compress-ssl")
    assert max(map(len, options)) <= 80
    assert "<class" not in out
    assert "MISSING" not in out.upper().replace("WHAT IS MISSING", "")


def test_help_can_be_cut_short():
    """`--help | head` would end in a stack trace."""
    shell = f"{sys.executable} -m compress_ssl.cli distill --help | head -n 1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("usage: compress-ssl distill")
    assert done.stderr == ""


def test_help_shows_what_a_file_sets(capsys):
    """Nobody could see what a configuration amounts to before it runs for days."""
    Path("a.yaml").write_text("epochs: 17.25\nobjective: {name: compress_1q, bank_size: 4321}\n")
    with pytest.raises(SystemExit) as end:
        main(["distill", "a.yaml", "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "17.25" in out
    assert "4321" in out
    assert "--objective.momentum" not in out


def test_an_option_of_a_verb_says_what_it_means(capsys):
    """`--gallery INT` alone tells nobody anything."""
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "training images among which the neighbours of those kept aside are looked for" in out
    assert "(default: 128000)" in out


# ---- bad input: what is not there ----------------------------------------------------------------------------------


# fmt: off
NOT_THERE = [
    (["embde"], "expected a verb, got 'embde': did you mean 'embed'?"),
    (["--teacher", "x"], "expected a verb, got '--teacher'"),
    (["distill", "--teahcer", "x"], "got --teahcer: did you mean '--teacher'?"),
    (["distill", "--teacher", "a", "--teacher", "b"], "expected --teacher once, got it twice"),
    (["distill", "--objectve", "crd"], "got --objectve: did you mean '--objective'?"),
    (["distill", "--obj", "crd"], "got --obj: did you mean '--objective'?"),
    (["pretrain", "--metod", "dino"], "got --metod: did you mean '--method'?"),
    (["distill", "--temprature", "0.1"], "got --temprature: did you mean '--objective.temperature'?"),
    (["distill", "--lr", "0.1"], "got --lr: see compress-ssl distill --help"),
    (["distill", "--temperature", "0.1"], "got --temperature: did you mean '--objective.temperature'?"),
    (["distill", "--training.epochs", "3"], "got --training.epochs: did you mean '--epochs'?"),
    (["distill"], "expected --teacher, --data, --out, got nothing for them: see compress-ssl distill --help"),
    (["embed", "--encoder", "a", "--data", "b"], "expected --out, got nothing for it"),
    ([*DISTILL, *INTO, "left", "over"], "got left over too"),
    ([*DISTILL, *INTO, "b.yaml"], "got b.yaml too: name files before the options"),
    ([*DISTILL, *INTO, "-epochs", "3"], "got -epochs 3 too"),
    ([*DISTILL, *INTO, "--epochs", "x"], "expected a number for --epochs, got 'x'"),
    ([*DISTILL, *INTO, "--epochs"], "expected a number after --epochs, got nothing"),
    ([*DISTILL, *INTO, "--batch-size", "1.5"], "expected a whole number for --batch-size"),
    ([*DISTILL, *INTO, "--precision", "bf61"], "got 'bf61': did you mean 'bf16'?"),
    ([*DISTILL, *INTO, "--view.scale", "1"], "expected a list of 2, each a number for --view.scale"),
    ([*DISTILL, *INTO, "--objective"], "--objective expected a name, got nothing"),
    ([*DISTILL, *INTO, "--objective", "compres_1q"], "did you mean 'compress_1q'?"),
    (["pretrain", "--data", "digits", "--out", "a", "--method", "simcrl"], "did you mean 'simclr'?"),
    ([*EVALUATE, *INTO, "--metrics", "linaer_probe"], "did you mean 'linear_probe'?"),
    (["evaluate", *INTO], "expected at least one model to evaluate, got none"),
    ([*EVALUATE, *INTO, "--protocols.linear-probe.epochs", "0"], "got 0 and 256"),
    ([*EMBED, "--data", "digit", "--out", "a"], "did you mean 'digits'?"),
    ([*EMBED, "--data", "torchvision/CIFAR11", "--out", "a"], "did you mean 'torchvision/CIFAR10'?"),
    ([*EMBED, *INTO, "--device", "gpu"], "--device expected cpu, cuda or mps"),
    ([*EMBED, *INTO, "--batch-size", "0"], "--batch-size expected at least 1, got 0"),
    ([*EMBED, *INTO, "--space", "teacher"], "expected a student with a projector"),
    (["embed", "--encoder", "timm/resnet81", *INTO], "did you mean 'resnet"),
    (["embed", "--encoder", "torchvision/resnet81@random", *INTO], "did you mean 'resnet"),
    (["embed", "--encoder", "compress/resnet10_smal", *INTO], "did you mean 'resnet10_small'?"),
    (["embed", "--encoder", "resnet18", *INTO], "/resnet18'"),
    (["embed", "--encoder", "runs/nowhere", *INTO], "got 'runs/nowhere', where nothing lies"),
    (["embed", "--encoder", "compress/alexnet", *INTO], "compress/alexnet@random"),
    (["embed", "missing.yaml", "--out", "a"], "got missing.yaml, which does not exist: check the path"),
    (["report", "nowhere"], "got nothing: name folders"),
    (["report"], "expected at least one run folder, got none"),
]
# fmt: on


def last_words(value: list[str] | str) -> str:
    return " ".join(value)[-60:] if isinstance(value, list) else ""


@pytest.mark.parametrize(("words", "told"), NOT_THERE, ids=last_words)
def test_what_is_not_there_is_told_with_the_nearest_name(words, told, capsys):
    """A typing error would end in a stack trace, or in a box that does not say what was meant."""
    assert told in refusal(capsys, *words)
    assert not Path("a").exists(), "a command that was refused must leave nothing behind"


def test_an_unknown_key_in_a_file_is_told_with_the_nearest_name(capsys):
    """A misspelled temperature would train at the default one."""
    Path("a.yaml").write_text("objective: {temprature: 0.1}\n")
    told = refusal(capsys, "distill", "a.yaml", *DISTILL[1:], "--data", "digits", "--out", "a")
    assert "got objective.temprature: did you mean 'temperature'?" in told


def test_a_flag_is_judged_by_the_type_it_has_though_its_text_has_another(capsys):
    """`--data 7`, a folder called 7, would be refused as a number."""
    assert "expected a number for --epochs" in refusal(capsys, "distill", "--teacher", "3", "--data", "7", "--out", "5",
                                                       "--student", "none", "--epochs", "x")  # fmt: skip


# ---- bad input: data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [DISTILL, EMBED, EVALUATE, PRETRAIN], ids=lambda c: c[0])
def test_an_empty_folder_is_refused(command, capsys):
    """Zero images would end in a division by zero, or in a run folder without anything in it."""
    Path("photos").mkdir()
    assert "expected images" in refusal(capsys, *command, "--data", "photos", "--out", "a")
    assert not Path("a").exists()


@pytest.mark.parametrize("command", [DISTILL, EVALUATE], ids=lambda command: command[0])
def test_one_image_is_refused(command, capsys):
    """There is nothing to compare it with; neighbours of nothing fail far away from the cause."""
    pictures(Path("photos"), 1)
    told = refusal(capsys, *command, "--data", "photos", "--out", "a")
    assert re.search(r"expected at least 4 images .*got 1", told)
    assert not Path("a").exists()


def test_one_image_can_be_embedded(capsys):
    """One vector is all that someone with one query wants."""
    pictures(Path("photos"), 1)
    assert main([*EMBED, "--data", "photos", "--out", "a"]) == 0
    assert capsys.readouterr().out.strip() == "a"


@pytest.mark.parametrize("verb", ["distill", "pretrain"])
@pytest.mark.parametrize(("size", "told"), [("57", r"got .*\b57\b"), ("1", r"got 1\b")])
def test_a_batch_that_does_not_fit_the_data_is_refused(verb, size, told, capsys):
    """More than there is would make an epoch of no steps; a batch of one has no statistics for batch norm."""
    pictures(Path("photos"), 23)
    command = {"distill": DISTILL, "pretrain": PRETRAIN}[verb]
    assert re.search(told, refusal(capsys, *command, "--data", "photos", "--out", "a", "--batch-size", size))


def test_weights_that_do_not_fit_are_refused_with_the_keys(capsys):
    """A student would start from half-filled weights, or a stack trace would list a thousand keys."""
    torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3), "stranger": torch.zeros(1)}, "weights.pth")
    told = refusal(
        capsys, "embed", "--encoder", "compress/resnet10_small_w8@weights.pth", "--data", "digits", "--out", "a"
    )
    assert re.search(r"missing \(bn1\.weight", told)
    assert re.search(r"unexpected \(stranger\)", told)
    assert not Path("a").exists()


@pytest.mark.parametrize("verb", ["distill", "evaluate", "embed"])
def test_strict_makes_an_unusable_image_an_error(verb, capsys):
    """A folder that was damaged in copying would be learnt from as if it were whole."""
    folder = pictures(Path("photos"), 23)
    (folder / "zz.png").write_bytes((folder / "000.png").read_bytes()[:99])
    short = ["--batch-size", "3", "--epochs", "2", "--objective.temperature", "0.04"]  # auto is told before training
    command = {"distill": [*DISTILL, *short], "evaluate": EVALUATE, "embed": EMBED}[verb]
    told = refusal(capsys, *command, "--data", "photos", "--out", "a", "--strict")
    assert re.search(r"--strict expected every image to be usable, got zz\.png: (truncated|broken)", told)


# ---- bad input: where it is to be written --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run, tiny but whole."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    short = ["--epochs", "0.1", "--batch-size", "64", "--held-out", "30", "--gallery", "40"]
    assert main([*DISTILL, "--data", "digits", "--out", str(folder), *short]) == 0
    return folder


@pytest.mark.parametrize("verb", ["distill", "pretrain", "embed", "evaluate", "demo"])
def test_a_folder_that_holds_another_run_is_left_as_it_is(verb, finished, capsys):
    """A forgotten --out would overwrite days of training."""
    before = contents(finished)
    command = {"distill": DISTILL, "embed": EMBED, "pretrain": PRETRAIN, "evaluate": EVALUATE, "demo": ["demo"]}[verb]
    data = [] if verb == "demo" else ["--data", "digits"]
    assert "--out expected a" in refusal(capsys, *command, *data, "--out", finished)
    assert contents(finished) == before


def test_resuming_with_another_configuration_shows_the_difference(finished, capsys):
    """Two halves of a run under two configurations are a run that nobody can repeat."""
    before = contents(finished)
    told = refusal(capsys, "distill", finished / "config.yaml", "--resume", "--optimizer.learning-rate", "0.5")
    assert "learning_rate: 0.01 → 0.5" in told
    assert contents(finished) == before


def test_resuming_nothing_is_refused(capsys):
    """A mistyped folder would start a new run from scratch, unnoticed."""
    assert "got no config.yaml there" in refusal(capsys, *DISTILL, "--data", "digits", "--out", "a", "--resume")
    assert not Path("a").exists()


@pytest.mark.parametrize("command", [DISTILL, EMBED, EVALUATE], ids=lambda command: command[0])
def test_a_place_under_a_file_is_refused(command, capsys):
    """`--out notes.txt/run` would end in a stack trace from inside pathlib."""
    Path("notes.txt").write_text("mine")
    for out in ("notes.txt", "notes.txt/run"):
        assert "notes.txt" in refusal(capsys, *command, "--data", "digits", "--out", out)
    assert Path("notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (
            errno.EACCES,
            "expected permission, got 'Permission denied' for a/b: choose another folder or change its rights",
        ),
        (errno.EROFS, "expected permission, got 'Read-only file system' for a/b"),
        (errno.ENOSPC, "expected room on the disk, got none left while writing a/b: free some space"),
        (errno.ENAMETOOLONG, "expected a path that can be used, got 'File name too long' for a/b: choose another"),
    ],
)
def test_a_disk_that_does_not_take_it_is_told_in_one_sentence(number, told, monkeypatch, capsys):
    """Rights, a full disk, a read-only one: the user can help it, a stack trace cannot."""

    def run(_):
        raise OSError(number, os.strerror(number), "a/b")

    monkeypatch.setattr(embed, "run", run)
    assert told in refusal(capsys, *EMBED, "--data", "digits", "--out", "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(capsys):
    """The first write of a run would end in a stack trace."""
    Path("locked").mkdir(mode=0o500)
    assert "expected permission" in refusal(capsys, *EMBED, "--data", "digits", "--out", "locked/a")


def test_a_full_disk_leaves_what_was_saved(finished, monkeypatch, capsys):
    """A results file cut off in the middle would replace the one that was there."""
    before = contents(finished)
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    told = refusal(capsys, *EMBED, "--data", "digits", "--out", finished.parent / "table")
    assert "expected room on the disk" in told
    monkeypatch.undo()
    assert contents(finished) == before
    assert not [file for file in (finished.parent / "table").rglob("*") if file.is_file()], "a half-written file stayed"


# ---- what is not the user's mistake --------------------------------------------------------------------------------


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    """A bug would be told as if the user had made it, and nobody could find it."""

    def run(_):
        raise ValueError("expected by nobody")

    monkeypatch.setattr(embed, "run", run)
    with pytest.raises(ValueError, match="expected by nobody"):
        main([*EMBED, "--data", "digits", "--out", "a"])


def test_a_strange_error_of_the_disk_keeps_its_traceback(monkeypatch):
    """A failing disk (EIO) is nothing that choosing another folder helps with."""

    def run(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "a")

    monkeypatch.setattr(embed, "run", run)
    with pytest.raises(OSError, match="Input/output error"):
        main([*EMBED, "--data", "digits", "--out", "a"])


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    """After Ctrl-C the run would be there and nobody would know how to go on; a path with a space must survive."""

    class Interrupted(Exception):
        pass

    def run(_):
        raise Interrupted("stopped at step 3 of 7, everything is saved")

    monkeypatch.setattr(distill, "run", run)
    assert main([*DISTILL, "--data", "my photos", "--out", "a"]) == 130
    err = capsys.readouterr().err
    assert "stopped at step 3 of 7" in err
    line = err.splitlines()[-1]
    assert line.startswith("continue with: compress-ssl distill --teacher")
    assert line.endswith("--data 'my photos' --out a --resume")
    assert main([*DISTILL, "--data", "b", "--out", "a", "--resume"]) == 130
    assert capsys.readouterr().err.count("--resume") == 1


def test_ctrl_c_before_anything_is_to_be_saved_is_quiet(monkeypatch, capsys):
    """A stack trace answers whoever stops `embed`, which continues where it was anyway."""

    def run(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "run", run)
    assert main([*EMBED, "--data", "digits", "--out", "a"]) == 130
    assert capsys.readouterr().err == "compress-ssl: interrupted\n"


def test_a_finished_run_names_its_page(finished, capsys):
    """Whoever waited for it would have to look for what came out."""
    assert (finished / "report.html").is_file()
    command = json.loads((finished / "environment.json").read_text())
    assert {"command", "versions", "hardware"} <= command.keys()
    assert main(["report", str(finished), "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
