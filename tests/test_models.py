"""`compress-ssl models`: sizes are those of the opened encoder, a file is told by its format, nothing is downloaded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision

from compress_ssl import models
from compress_ssl.cli import main
from compress_ssl.encoder import costs, open_encoder, save_encoder
from compress_ssl.refusal import Refusal


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert main(["models", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "name",
    ["timm/resnet10t", "timm/test_vit", "timm/mobilenetv3_small_050", "torchvision/squeezenet1_1",
     "compress/resnet10_small_w8"],
)  # fmt: skip
def test_what_is_listed_is_what_opening_the_model_shows(name: str) -> None:
    """People choose a student by these numbers; they are computed without its weights."""
    encoder, about = open_encoder(name, weights="random"), models.describe(name)
    assert {key: about[key] for key in ("parameters", "multiply_adds")} == costs(encoder)
    assert (about["width"], about["input_size"]) == (encoder.width, encoder.preprocessing.size)
    assert about["embedding"] == encoder.embedding
    assert about["trouble"] is None


def test_weights_licence_and_use_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Some weights must not be used in a product, and a model without any is no teacher by its name."""
    found = {about["name"]: about for about in listed(capsys, "resnet18")}
    assert found["timm/resnet18"]["use"] == "both"
    assert found["timm/resnet18"]["licence"] == "apache-2.0"
    assert found["torchvision/resnet18"]["use"] == "both"
    assert found["compress/resnet18_small"]["use"] == "student"
    assert next(iter(found)) in ("timm/resnet18", "torchvision/resnet18"), "the exact ones come first"
    tags = [about["name"] for about in listed(capsys, "resnet18.*", "--limit", "2")]
    assert [name.startswith("timm/resnet18.") for name in tags] == [True, True]


def test_a_size_in_the_name_needs_no_list(capsys: pytest.CaptureFixture[str]) -> None:
    """Our own families accept any width; no list can hold them all."""
    (about,) = listed(capsys, "compress/resnet10_small_w12")
    assert about["width"] == 96
    with pytest.raises(Refusal, match="did you mean 'resnet10_small'"):
        models.run(models.Config(pattern="compress/resnet10_smll"))


def test_many_matches_say_how_to_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    """All 1400 take minutes."""
    assert main(["models", "compress/resnet", "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["model", "parameters"]
    assert len(lines) == 4
    assert "more match: write more of the name, or give --limit 0 for all" in lines[-1]
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "timm/NAME" in out
    assert "moco_v2" in out


def test_a_misspelt_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows 1400 names by heart."""
    assert main(["models", "resnt18"]) == 2
    assert "did you mean 'resnet18'" in capsys.readouterr().err


def test_a_checkpoint_is_told_by_its_format_and_how_to_write_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Files are called checkpoint_0199.pth.tar; which backbone they are for is a matter of trying."""
    state = torchvision.models.resnet18().state_dict()
    query = {f"module.encoder_q.{name}": value for name, value in state.items() if not name.startswith("fc.")}
    heads = {f"module.encoder_q.fc.{place}.{part}": torch.zeros((128, 512) if place else (512, 512))[
        slice(None) if part == "weight" else 0] for place in (0, 2) for part in ("weight", "bias")}  # fmt: skip
    both = query | heads
    both |= {name.replace("encoder_q", "encoder_k"): value for name, value in both.items()}
    file = tmp_path / "checkpoint_0199.pth.tar"
    torch.save({"epoch": 199, "state_dict": both | {"module.queue": torch.zeros(128, 7)}, "optimizer": {}}, file)
    (about,) = listed(capsys, str(file))
    assert (about["format"], about["architecture"]) == ("moco_v2", "torchvision/resnet18")
    assert about["spec"] == f"torchvision/resnet18@moco_v2:{file}"
    assert about["dropped"]["projection head"] == 4
    assert main(["models", str(file)]) == 0
    assert f"write          {about['spec']}" in capsys.readouterr().out
    (tmp_path / "notes.pth").write_text("no weights")
    with pytest.raises(Refusal, match="copy or download it again"):
        models.run(models.Config(pattern=str(tmp_path / "notes.pth")))


def test_a_run_and_a_backbone_with_weights_are_opened(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The same words describe what was trained here."""
    encoder = open_encoder("compress/resnet10_small_w8", weights="random")
    save_encoder(encoder, tmp_path / "run" / "student")
    for spec in (str(tmp_path / "run"), f"compress/resnet10_small_w8@{tmp_path / 'run/student/model.safetensors'}"):
        (about,) = listed(capsys, spec)
        assert about["width"] == 64
        assert about["use"] == "both"


def test_nothing_is_asked_of_the_network(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is no reason to connect; a machine without network must have it too."""
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert listed(capsys, "timm/resnet10t")[0]["trouble"] is None
    for spec in ("transformers/facebook/dinov2-small", "torchvision/resnet18@https://host.org/weights.pth"):
        with pytest.raises(Refusal, match=r"on this machine, got .* for which the network would be asked"):
            models.run(models.Config(pattern=spec))


@pytest.mark.parametrize("path", ["/nowhere/none.pth", "./none", "none.safetensors", "none.onnx", "none.onnx:rows"])
def test_a_path_where_nothing_lies_is_told_as_that(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in a path got the model with the most similar name, after all names were read."""
    monkeypatch.setattr(models, "_all_names", lambda: pytest.fail("looked among the models"))
    with pytest.raises(Refusal, match=f"got '{path}', where nothing lies: check the path"):
        models.run(models.Config(pattern=path))


def test_a_name_like_none_gets_no_suggestion() -> None:
    """`nosuchthing` is not a slip for any model."""
    with pytest.raises(Refusal, match=r"got 'nosuchthing', which matches none: write less of the name\.$"):
        models.run(models.Config(pattern="nosuchthing"))


def test_a_folder_of_transformers_is_told_its_prefix(tmp_path: Path) -> None:
    """It is neither a run nor broken: one word is missing."""
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(Refusal, match=f"a model of transformers in it: write transformers/{tmp_path}"):
        models.run(models.Config(pattern=str(tmp_path)))


def test_pixels_as_they_are_are_shown_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads a std of 0.003922 as nothing done."""
    (tmp_path / "taught.py").write_text("def encode(images): return images.flatten(2).float().mean(2)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    models.run(models.Config(pattern="python/taught:encode"))
    out = capsys.readouterr().out
    assert "pixels as they are" in out
    assert "std" not in out


def test_a_file_that_could_be_several_authors_is_answered_with_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Whoever asks what a file is gets no error: nothing is wrong with it."""
    import timm

    state = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    file = tmp_path / "vits_bare.pth"
    torch.save(state, file)
    (about,) = listed(capsys, str(file))
    assert about["spec"] is None
    assert {"dino", "mae", "timm"} <= about["candidates"].keys()
    assert about["candidates"]["dino"] == f"timm/vit_small_patch16_224@dino:{file}"
    assert main(["models", str(file)]) == 0
    assert f"write          {about['candidates']['dino']}" in capsys.readouterr().out


def test_help_answers_at_once() -> None:
    """Importing the model libraries takes seconds, which nobody waits for to read a page."""
    code = (
        "import sys; from compress_ssl import models; heavy = {'torch', 'timm', 'torchvision'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "compress_ssl.cli", "--help"], check=True, capture_output=True)
    assert time.monotonic() - start < 5, "half a second where nothing else runs"


def test_a_list_can_be_cut_short() -> None:
    """`| head` would end in a traceback."""
    command = f"{sys.executable} -m compress_ssl.cli models resnet10 --limit 4 | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_limit_is_a_count() -> None:
    """A slip would list nothing, in silence."""
    with pytest.raises(Refusal, match="--limit expected 0"):
        models.Config(limit=-1)
    assert torch.zeros(()).device.type == "cpu", "the meta device is left again"
