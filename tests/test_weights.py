"""A weights file becomes the backbone's state dict, or one sentence."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress_ssl.backbones.resnet_small import build
from compress_ssl.refusal import Refusal
from compress_ssl.weights import (
    backbone_part,
    fetch,
    fit_weights,
    pack_weights,
    read_checkpoint,
    read_weights,
    weights_digest,
)


def backbone(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build("resnet10_small_w3")


def weights() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone(1).state_dict().items()}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def load(state: dict[str, Tensor], into: nn.Module) -> None:
    fit_weights(into, backbone_part(state, into), source="file.pth")


def assert_same(loaded: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def momentum_contrast() -> dict[str, object]:
    """As MoCo's training leaves it: query and key encoder, a projector in the place of the classifier, the queue."""
    query = prefixed("module.encoder_q.", weights()) | {"module.encoder_q.fc.0.weight": torch.ones(5, 24)}
    key = prefixed("module.encoder_k.", dict(backbone(2).state_dict()))
    return {"epoch": 800, "arch": "resnet10", "state_dict": query | key | {"module.queue": torch.ones(5, 7)}}


LAYOUTS = {
    "bare": weights,
    "under state_dict": lambda: {"epoch": 3, "state_dict": weights()},
    "under model, from several processes": lambda: {"model": prefixed("module.", weights())},
    "under two nestings": lambda: {"model": {"state_dict": weights()}},
    "compiled": lambda: prefixed("_orig_mod.", weights()),
    "backbone beside a projector": lambda: (
        prefixed("backbone.", weights()) | {"projection_head.0.weight": torch.ones(2, 24)}
    ),
    "several prefixes": lambda: prefixed("module.model.backbone.", weights()),
    "with a classifier": lambda: weights() | {"fc.weight": torch.ones(7, 24), "fc.bias": torch.ones(7)},
    "momentum contrast": momentum_contrast,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_layouts_of_a_checkpoint_give_the_same_backbone(layout: str, tmp_path: Path) -> None:
    """Otherwise people would have to rewrite the files that others publish; and of two encoders take the wrong one."""
    torch.save(LAYOUTS[layout](), tmp_path / "file.pth")
    into = backbone(3)
    load(read_weights(tmp_path / "file.pth"), into)
    assert_same(into, weights())


def test_safetensors_and_both_of_torchs_formats_are_read(tmp_path: Path) -> None:
    """Otherwise old checkpoints, or the safe ones, would be called damaged."""
    save_file(weights(), tmp_path / "a.safetensors")
    torch.save(weights(), tmp_path / "b.pth")
    torch.save(weights(), tmp_path / "c.tar", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pth", "c.tar"):
        into = backbone(3)
        load(read_weights(tmp_path / name), into)
        assert_same(into, weights())


def test_half_precision_weights_are_widened() -> None:
    """Otherwise a file stored in float16 would leave a float16 layer in a float32 network."""
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights().items()}
    into = backbone(3)
    load(half, into)
    assert into.conv1.weight.dtype == torch.float32
    assert torch.equal(into.conv1.weight, half["conv1.weight"].float())


def test_step_counters_of_batch_norm_may_be_missing() -> None:
    """Otherwise every file older than torch 0.4.1 would be refused for a number that changes no embedding."""
    into = backbone(3)
    load({name: tensor for name, tensor in weights().items() if not name.endswith("num_batches_tracked")}, into)
    assert torch.equal(into.bn1.weight, weights()["bn1.weight"])


def test_what_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    """Otherwise a teacher would be half random, or the reader would not know which file was meant."""
    state = weights()
    for name in ("conv1.weight", "layer3.0.conv1.weight", "bn1.bias", "layer4.0.conv2.weight"):
        del state[name]
    state["layer9.weight"] = torch.ones(2)
    state["layer1.0.conv1.weight"] = torch.ones(3, 3, 5, 7)
    into = backbone(3)
    with pytest.raises(Refusal) as refusal:
        load(state, into)
    told = str(refusal.value)
    assert "in file.pth" in told
    assert "4 missing (conv1.weight, bn1.bias, layer3.0.conv1.weight, …)" in told
    assert "1 unexpected (layer9.weight)" in told
    assert "1 of another shape (layer1.0.conv1.weight 3×3×5×7 instead of 3×3×3×3)" in told
    assert "\n" not in told
    assert_same(into, dict(backbone(3).state_dict()))


def test_a_classifiers_name_excuses_no_tensor_that_the_backbone_has() -> None:
    """Otherwise AlexNet's f6 and f7, which are called `classifier`, could be left random."""
    torch.manual_seed(1)
    model = nn.Module()
    model.classifier = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    extra = state | {"classifier.4.weight": torch.ones(2, 7)}
    assert backbone_part(extra, model).keys() == state.keys()
    del extra["classifier.0.weight"]
    with pytest.raises(Refusal, match=r"1 missing \(classifier.0.weight\)"):
        fit_weights(model, backbone_part(extra, model), source="file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    """Otherwise a training that diverged would be noticed only as a teacher of NaN rows."""
    state = weights()
    state["layer2.0.bn1.weight"][1] = value
    with pytest.raises(Refusal, match=r"NaN or infinity in layer2\.0\.bn1\.weight"):
        load(state, backbone(3))


class Touch:
    """A pickle that, if it is executed, leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", ["torch", "torch, old", 2, 4])
def test_a_pickles_code_is_never_run(protocol: str | int, tmp_path: Path) -> None:
    """Otherwise a weights file from the network could do anything to its reader's machine."""
    trap, file = tmp_path / "executed", tmp_path / "file.pth"
    content = {"state_dict": weights(), "args": Touch(trap)}
    if isinstance(protocol, int):
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=protocol == "torch")
    with pytest.raises(Refusal) as refusal:
        read_weights(file)
    assert not trap.exists()
    assert "which we never do" in str(refusal.value)
    assert "weights_only=False" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    torch.load(file, weights_only=False) if isinstance(protocol, str) else pickle.loads(file.read_bytes())
    assert trap.exists(), "the trap itself does not work"


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    """Otherwise `torch.save(model)`, which is code too, would end in a traceback."""
    torch.save(nn.Linear(2, 3), tmp_path / "model.pth")
    with pytest.raises(Refusal, match=r"asks to run torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "model.pth")


class Net(nn.Linear):
    """A class of the user's own."""


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("model", [nn.Linear(2, 3), Net(2, 3)])
def test_the_advice_for_a_whole_pickled_model_works(model: nn.Module, new: bool, tmp_path: Path) -> None:
    """A module has no ['state_dict']: the line that was to help would end in a TypeError."""
    torch.save(model, tmp_path / "model.pth", _use_new_zipfile_serialization=new)
    advice = r"with torch\.save\(torch\.load\(FILE, weights_only=False\)\.state_dict\(\), NEW_FILE\)\.$"
    with pytest.raises(Refusal, match=advice):
        read_weights(tmp_path / "model.pth")
    torch.save(torch.load(tmp_path / "model.pth", weights_only=False).state_dict(), tmp_path / "new.pth")
    assert read_weights(tmp_path / "new.pth").keys() == {"weight", "bias"}


def test_a_number_of_torchs_is_no_reason(tmp_path: Path) -> None:
    """'cannot be read (101)' sends people to search for an error 101."""
    (tmp_path / "notes.pth").write_text("hello")
    with pytest.raises(Refusal, match=r"of 5 bytes that cannot be read: copy or download"):
        read_weights(tmp_path / "notes.pth")


@pytest.mark.parametrize("kind", ["torch", "torch, old", "safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 100, -9])
def test_a_damaged_file_is_refused(kind: str, kept: int, tmp_path: Path) -> None:
    """Otherwise an interrupted download would end in a traceback, or in a network that is half random."""
    file = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if kind == "safetensors":
        save_file(weights(), file)
    else:
        torch.save(weights(), file, _use_new_zipfile_serialization=kind == "torch")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(Refusal, match=r"file\.\w+' of [\d,]+ bytes that cannot be read.*again\.$"):
        read_weights(file)


def test_what_is_packed_comes_back_bit_by_bit_as_float32(tmp_path: Path) -> None:
    """Otherwise a delivered student would differ from the trained one; views and shared memory are common in states."""
    whole = torch.randn(3, 5, 7, dtype=torch.float64)
    state = {"view": whole[:, 1], "turned": whole.transpose(0, 2), "half": whole.half(), "count": torch.tensor(11)}
    (tmp_path / "a.safetensors").write_bytes(pack_weights(state))
    loaded = read_weights(tmp_path / "a.safetensors")
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor.float() if name != "count" else tensor)
        assert loaded[name].dtype == (torch.int64 if name == "count" else torch.float32)


@pytest.mark.parametrize("place", [-1, -1000, -40_000])
def test_a_flipped_bit_in_a_packed_file_is_noticed(place: int, tmp_path: Path) -> None:
    """Otherwise a failing disk would change embeddings a little, and nobody would know."""
    content = bytearray(pack_weights(weights()))
    content[place] ^= 0b100
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(Refusal, match="checksum does not match"):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_what_holds_no_state_dict_is_refused_and_named(tmp_path: Path) -> None:
    """Otherwise an optimizer's file, a web page or a TorchScript program would end in a traceback."""
    torch.save({"optimizer": {"lr": 0.1}, "epoch": 3}, tmp_path / "optimizer.pth")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)).save(tmp_path / "script.pt")
    told = {"optimizer.pth": "got optimizer, epoch", "tensor.pth": "got a Tensor", "page.pth": "cannot be read"}
    for name, part in (told | {"script.pt": "a TorchScript program", "none.pth": "which is not a file"}).items():
        with pytest.raises(Refusal) as refusal:
            read_weights(tmp_path / name)
        assert part in str(refusal.value)
    with pytest.raises(Refusal, match="which is not a file"):
        read_weights(tmp_path)


def test_the_digest_of_weights_sees_values_names_and_types():
    """Two encoders with one digest would share a table."""

    def digest(**changes) -> str:
        module = nn.Linear(3, 5)
        with torch.no_grad():
            module.weight.copy_(torch.arange(15.0).view(5, 3)), module.bias.fill_(changes.get("bias", 0.25))
        return weights_digest(module.to(changes.get("dtype", torch.float32)))

    assert digest() == digest()
    assert len({digest(), digest(bias=0.5), digest(dtype=torch.bfloat16)}) == 3


def test_weights_at_an_address_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each run would load them again, or take another author's checkpoint.pth for this one."""
    asked: list[str] = []

    def download(address: str, file: str, **_: object) -> None:
        asked.append(address)
        torch.save({"of": torch.tensor(len(asked))}, file)

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    first, second = (fetch(f"https://{host}.org/checkpoint.pth?x=1") for host in ("a", "b"))
    assert first != second
    assert fetch("https://a.org/checkpoint.pth?x=1") == first
    assert asked == ["https://a.org/checkpoint.pth?x=1", "https://b.org/checkpoint.pth?x=1"]
    assert read_weights(first)["of"] == 1

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(
        Refusal, match=r"expected to fetch weights from https://c\.org/c\.pth, got OSError \(no route\)"
    ):
        fetch("https://c.org/c.pth")


def test_options_of_a_library_that_is_not_there_are_read_without_it(tmp_path: Path) -> None:
    """Otherwise a Lightning run would be refused, or its reader need Lightning's old package for a few numbers."""
    source = "class AttributeDict(dict):\n    pass\n"
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    exec(source, module.__dict__)
    names = ("pytorch_lightning", "pytorch_lightning.utilities", "pytorch_lightning.utilities.parsing")
    kept = {name: sys.modules.get(name) for name in names}
    sys.modules.update(dict.fromkeys(names, module))
    try:
        module.AttributeDict.__module__ = names[-1]
        content = {"state_dict": weights(), "hyper_parameters": module.AttributeDict(rate=0.1, deep=[1, {"a": 2}])}
        torch.save(content, tmp_path / "run.ckpt")
    finally:
        for name, one in kept.items():
            sys.modules.pop(name) if one is None else sys.modules.update({name: one})
    read = read_checkpoint(tmp_path / "run.ckpt")
    assert read["hyper_parameters"] == {"rate": 0.1, "deep": [1, {"a": 2}]}
    assert read["state_dict"].keys() == weights().keys()
