"""ResNets as their authors publish them: one network, computed here by hand, in everybody's layout."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.encoder import Encoder, load_encoder, open_encoder, save_encoder
from compress_ssl.refusal import Refusal

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SWAV = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)  # so in the authors' code, training and evaluation
CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BASIC, BOTTLENECK = (2, 2, 2, 2), (3, 4, 6, 3)
State = dict[str, Tensor]


def network(blocks: tuple[int, ...] = BASIC, stem: int = 64, *, kernel: int = 7, seed: int = 1) -> State:
    """A ResNet's tensors under torchvision's names: basic blocks of (2, 2, 2, 2), bottlenecks of (3, 4, 6, 3)."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def convolution(name: str, norm: str, out: int, into: int, size: int) -> None:
        state[f"{name}.weight"] = (
            torch.randn(out, into, size, size, generator=generator) * (2 / (into * size**2)) ** 0.5
        )
        state[f"{norm}.weight"] = torch.rand(out, generator=generator) * 0.5 + 0.5
        state[f"{norm}.bias"] = torch.randn(out, generator=generator) * 0.1
        state[f"{norm}.running_mean"] = torch.randn(out, generator=generator) * 0.1
        state[f"{norm}.running_var"] = torch.rand(out, generator=generator) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(11)

    deep = blocks == BOTTLENECK
    convolution("conv1", "bn1", stem, 3, kernel)
    into = stem
    for stage, count in enumerate(blocks):
        width = stem * 2**stage
        out = 4 * width if deep else width
        for block in range(count):
            start = f"layer{stage + 1}.{block}"
            shapes = (
                [(width, into, 1), (width, width, 3), (out, width, 1)] if deep else [(width, into, 3), (out, width, 3)]
            )
            for part, shape in enumerate(shapes, 1):
                convolution(f"{start}.conv{part}", f"{start}.bn{part}", *shape)
            if block == 0 and (into != out or stage > 0):
                convolution(f"{start}.downsample.0", f"{start}.downsample.1", out, into, 1)
            into = out
    return state


def features(state: State, images: Tensor, *, stem_padding: int = 3, pool: str = "both", same: bool = False) -> Tensor:
    """Pooled features of the network, layer after layer from its tensors.

    Args:
        images: (B, 3, H, W) float, normalised.
        pool: max-pool of the stem padded on "both" sides, "after" the last pixel, or "none" at all.
        same: strided convolutions padded one pixel less before than after.
    """

    def convolve(maps: Tensor, name: str, norm: str, stride: int, padding: int) -> Tensor:
        if same and stride == 2 and padding:
            maps, padding = functional.pad(maps, (padding - 1, padding, padding - 1, padding)), 0
        maps = functional.conv2d(maps, state[f"{name}.weight"], stride=stride, padding=padding)
        statistics = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return functional.batch_norm(maps, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-5)

    kernel = state["conv1.weight"].shape[2]
    maps = convolve(images, "conv1", "bn1", 2 if kernel == 7 else 1, stem_padding).relu()
    if pool == "both":
        maps = functional.max_pool2d(maps, 3, 2, padding=1)
    elif pool == "after":
        maps = functional.max_pool2d(functional.pad(maps, (0, 1, 0, 1), value=-1e9), 3, 2)
    for start in dict.fromkeys(name[:8] for name in state if name.startswith("layer")):
        stride = 2 if start[7] == "0" and start[5] != "1" else 1
        deep = f"{start}.conv3.weight" in state
        inner = convolve(maps, f"{start}.conv1", f"{start}.bn1", 1 if deep else stride, 0 if deep else 1).relu()
        inner = convolve(inner, f"{start}.conv2", f"{start}.bn2", stride if deep else 1, 1)
        if deep:
            inner = convolve(inner.relu(), f"{start}.conv3", f"{start}.bn3", 1, 0)
        if f"{start}.downsample.0.weight" in state:
            maps = convolve(maps, f"{start}.downsample.0", f"{start}.downsample.1", stride, 0)
        maps = (maps + inner).relu()
    return maps.mean((2, 3))


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def layers(name: str, *shapes: tuple[int, ...]) -> State:
    """Tensors of a head: `name` with {} for each layer's number."""
    state = {}
    for number, shape in enumerate(shapes):
        state[name.format(number) + ".weight"] = torch.ones(*shape)
    return state


def optimizer() -> dict[str, Any]:
    moments = {0: {"momentum_buffer": torch.ones(3)}, 1: {"momentum_buffer": torch.ones(5)}}
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}


def numbered(state: State) -> State:
    """As nn.Sequential(*list(resnet.children())[:-1]) calls them: 0, 1, (ReLU, max-pool,) 4, 5, 6, 7."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {re.sub(r"^\w+", lambda found: numbers[found[0]], name): one for name, one in state.items()}


def tensorflow_names(state: State) -> State:
    """TensorFlow counts its layers as they are computed: stem, then each stage's shortcut before its first block."""
    starts = dict.fromkeys(name[:8] for name in state if name.startswith("layer"))
    order = [("conv1", "bn1")]
    for start in starts:
        if f"{start}.downsample.0.weight" in state:
            order.append((f"{start}.downsample.0", f"{start}.downsample.1"))
        order += [(f"{start}.conv{part}", f"{start}.bn{part}") for part in (1, 2, 3)]
    renamed = {}
    for number, (convolution, norm) in enumerate(order):
        count = f"_{number}" if number else ""
        renamed[f"conv2d{count}.weight"] = state[f"{convolution}.weight"]
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            renamed[f"batch_normalization{count}.{name}"] = state[f"{norm}.{name}"]
    return renamed


def moco(state: State, *, head: tuple[str, ...]) -> dict[str, Any]:
    inside = under("module.encoder_q.", state | {f"fc.{name}": torch.ones(5, 7) for name in head})
    inside |= under("module.encoder_k.", network(seed=2) | {f"fc.{name}": torch.ones(5, 7) for name in head})
    inside |= {"module.queue": torch.ones(5, 11), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": inside, "optimizer": optimizer()}


def swav(state: State) -> dict[str, Any]:
    heads = layers("projection_head.{}", (5, 7), (5,), (5,), (3, 5)) | {"prototypes.weight": torch.ones(11, 3)}
    return under("module.", state | heads)


def deepcluster(state: State) -> dict[str, Any]:
    heads = layers("projection_head.{}", (5, 7)) | layers("prototypes.prototypes{}", (11, 3), (13, 3))
    return {
        "epoch": 3,
        "state_dict": under("module.", state | heads),
        "optimizer": optimizer(),
        "amp": {"loss_scaler0": {}},
    }


def barlow(state: State) -> dict[str, Any]:
    inside = under("backbone.", state) | layers("projector.{}", (5, 7), (5,)) | {"bn.running_mean": torch.ones(5)}
    return {"epoch": 1000, "model": under("module.", inside), "optimizer": optimizer()}


def vicreg(state: State) -> dict[str, Any]:
    inside = under("backbone.", state) | layers("projector.{}", (5, 7)) | {"projector.0.bias": torch.ones(5)}
    return {"epoch": 1000, "model": under("module.", inside), "optimizer": optimizer()}


def byol(state: State) -> dict[str, Any]:
    inside = under("encoder_q.", state | layers("fc.{}", (5, 7), (5,))) | under("encoder_k.", network(seed=2))
    return inside | {"predict_q.0.weight": torch.ones(5, 7), "predict_q.3.weight": torch.ones(7, 5)}


def byol_reproduced(state: State) -> dict[str, Any]:
    online = under("encoder.", numbered(state)) | {"projetion.net.0.weight": torch.ones(5, 7)}
    target = under("encoder.", numbered(network(seed=2)))
    return {
        "online_network_state_dict": online,
        "target_network_state_dict": target,
        "optimizer_state_dict": optimizer(),
    }


def lightning(state: State, **beside: Any) -> dict[str, Any]:
    """As Lightning saves a run."""
    options = argparse.Namespace(learning_rate=0.1, out=Path("runs"))
    return {
        "epoch": 199,
        "global_step": 39000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer()],
        "lr_schedulers": [{"last_epoch": 199}],
        "hyper_parameters": {"options": options},
        **beside,
    }


def lightly(state: State) -> dict[str, Any]:
    inside = under("backbone.", numbered(state)) | under("backbone_momentum.", numbered(network(seed=2)))
    heads = layers("projection_head.layers.{}", (5, 7)) | layers("projection_head_momentum.layers.{}", (5, 7))
    return lightning(inside | heads | {"criterion.memory_bank.bank": torch.ones(5, 11)})


def lightly_dino(state: State) -> dict[str, Any]:
    inside = under("teacher_backbone.", state) | under("student_backbone.", network(seed=2))
    heads = layers("student_head.layers.{}", (5, 7)) | layers("teacher_head.layers.{}", (5, 7))
    return lightning(inside | heads | {"criterion.center": torch.ones(1, 5)})


def solo(state: State) -> dict[str, Any]:
    inside = under("backbone.", state) | {"classifier.weight": torch.ones(7, 3), "classifier.bias": torch.ones(7)}
    inside |= (
        under("momentum_backbone.", network(seed=2)) | layers("projector.{}", (5, 7)) | {"queue": torch.ones(2, 5, 7)}
    )
    return lightning(inside | layers("momentum_projector.{}", (5, 7)) | layers("predictor.{}", (5, 7)))


def student(state: State) -> dict[str, Any]:
    """As the paper's authors saved theirs; `fc` is a 1q student's layer into the teacher's space."""
    inside = under("module.", state | {"fc.weight": torch.ones(5, 7), "fc.bias": torch.ones(5)})
    return {"opt": argparse.Namespace(epochs=130), "model": inside, "optimizer": optimizer(), "epoch": 130}


def classifier(state: State) -> State:
    return state | {"fc.weight": torch.ones(1000, 7), "fc.bias": torch.ones(1000)}


def small(
    make: Callable[..., Any], blocks: tuple[int, ...] = BASIC, stem: int = 2, **options: Any
) -> Callable[[], Any]:
    return lambda: make(network(blocks, stem), **options)


def layouts() -> dict[str, Callable[[], Any]]:
    return {
        "moco_v1: training": small(moco, head=("weight", "bias")),
        "moco_v2: training": small(moco, head=("0.weight", "0.bias", "2.weight", "2.bias")),
        "simclr: converted, wide": lambda: {"state_dict": classifier(network(BOTTLENECK, 66))},
        "simclr: as CompRess converted it": lambda: {
            "state_dict": tensorflow_names(network(BOTTLENECK, 2)) | {"fc.weight": torch.ones(1000, 7)}
        },
        "swav: released": small(swav),
        "swav: DeepCluster-v2, training": small(deepcluster, BOTTLENECK),
        "byol: converted": small(byol, BOTTLENECK),
        "byol: reproduced": small(byol_reproduced),
        "barlow_twins: training": small(barlow, BOTTLENECK),
        "vicreg: training": small(vicreg, BOTTLENECK),
        "torchvision: classifier": small(classifier),
        "torchvision: several processes": small(lambda state: {"state_dict": under("module.", classifier(state))}),
        "lightly: MoCo": small(lightly),
        "lightly: DINO": small(lightly_dino),
        "solo_learn: MoCo v2+": small(solo),
        "compress: ResNet": small(student),
    }


def plain_layouts() -> dict[str, Callable[[], Any]]:
    return {
        "simclr: converted, ×1": lambda: {"state_dict": classifier(network(BOTTLENECK, 2))},
        "swav: the backbone alone": small(lambda state: under("module.", state)),
        "byol: converted, the backbone alone": small(classifier, BOTTLENECK, stem=64),
        "barlow_twins: the backbone alone": small(dict, BOTTLENECK),
        "vicreg: the backbone alone": small(dict, BOTTLENECK),
        "compress: without options": small(lambda state: {"model": under("module.", state)}),
    }


def pixels(side: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def normalised(images: Tensor, mean_std: tuple[tuple[float, ...], ...]) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in mean_std)
    return (images / 255 - mean) / std


# format -> who computes it here, the checkpoint around the network, the network, what the authors normalise with,
# and how the original pads
ORIGINALS: dict[str, tuple[str, Callable[..., Any], dict[str, Any], Any, dict[str, Any]]] = {
    "moco_v1": ("torchvision/resnet18", lambda state: moco(state, head=("weight", "bias")), {}, IMAGENET, {}),
    "moco_v2": ("torchvision/resnet18", lambda state: moco(state, head=("0.weight", "2.weight")), {}, IMAGENET, {}),
    "simclr": (
        "torchvision/resnet50",
        lambda state: {"state_dict": classifier(state)},
        {"blocks": BOTTLENECK},
        NONE,
        {},
    ),
    "swav": ("torchvision/resnet18", swav, {}, SWAV, {}),
    "barlow_twins": ("timm/resnet18", barlow, {}, IMAGENET, {}),
    "vicreg": ("torchvision/resnet18", vicreg, {}, IMAGENET, {}),
    "byol": ("torchvision/resnet18", byol_reproduced, {}, IMAGENET, {}),
    "lightly": ("torchvision/resnet18", lightly, {}, IMAGENET, {}),
    "torchvision": ("torchvision/resnet18", classifier, {}, IMAGENET, {}),
    "compress": ("torchvision/resnet18", student, {}, IMAGENET, {}),
    "solo_learn": (
        "compress/resnet18_small_p2",
        solo,
        {"kernel": 3},
        CIFAR,
        {"stem_padding": 2, "pool": "none"},
    ),
}


def opened(spec: str, content: Any, folder: Path, *, size: int | None = 64) -> Encoder:
    """The encoder of a checkpoint, by way of a file; FILE in the spec stands for it."""
    torch.save(content, folder / "file.pth")
    return open_encoder(spec.replace("FILE", str(folder / "file.pth")), weights="pretrained", size=size)


def assert_features(encoder: Encoder, expected: Callable[[Tensor], Tensor], mean_std: Any, side: int = 64) -> None:
    images = pixels(side)
    with torch.no_grad():
        rows, original = encoder(images), expected(normalised(images, mean_std))
    torch.testing.assert_close(rows, original, rtol=1e-3, atol=1e-4 * float(original.abs().max()))


@pytest.mark.parametrize("format", ORIGINALS)
def test_a_published_checkpoint_gives_its_authors_features(format: str, tmp_path: Path) -> None:
    """Otherwise a teacher would be another network than the one that was published, a little or altogether."""
    backbone, layout, options, mean_std, padding = ORIGINALS[format]
    state = network(**options)
    encoder = opened(f"{backbone}@{format}:FILE", layout(state), tmp_path)
    assert_features(encoder, lambda images: features(state, images, **padding), mean_std)
    assert encoder.embedding == "pooled"
    save_encoder(encoder, tmp_path / "saved")
    (tmp_path / "file.pth").unlink()
    again = load_encoder(tmp_path / "saved")
    assert (again.preprocessing, again.embedding) == (encoder.preprocessing, "pooled")
    assert_features(again, lambda images: features(state, images, **padding), mean_std)


def test_of_byols_converted_networks_the_online_one_is_taken(tmp_path: Path) -> None:
    """Otherwise a file of both could not be opened, or would be the slow copy."""
    state = network()
    encoder = opened("torchvision/resnet18@FILE", byol(state), tmp_path)
    assert_features(encoder, lambda images: features(state, images), IMAGENET)
    assert "key encoder" in encoder.told


@pytest.mark.parametrize(
    ("backbone", "padding"),
    [
        ("compress/resnet50_w1", {}),
        ("compress/resnet50_w1_tf", {"pool": "after"}),
        ("compress/resnet50_w1_same", {"pool": "after", "same": True}),
        ("torchvision/resnet50", {}),
    ],
)
def test_a_bottleneck_network_pads_as_its_name_says(backbone: str, padding: dict[str, Any], tmp_path: Path) -> None:
    """Otherwise weights from TensorFlow or JAX would see each picture shifted by a pixel."""
    state = network(BOTTLENECK)
    encoder = opened(f"{backbone}@simclr:FILE", {"state_dict": tensorflow_names(state)}, tmp_path)
    assert_features(encoder, lambda images: features(state, images, **padding), NONE)
    assert ("_tf pads it as TensorFlow does" in encoder.told) == ("_tf" not in backbone)


@pytest.mark.parametrize(("format", "layout"), [("simclr", classifier), ("swav", swav)])
def test_a_wide_network_is_computed_and_guessed(format: str, layout: Callable[..., Any], tmp_path: Path) -> None:
    """Otherwise ×2 and ×4, the paper's best teachers, could not be opened; SwAV's and SimCLR's are the same network."""
    state = network(BOTTLENECK, 128)
    content = {"state_dict": layout(state)}
    encoder = opened("compress/resnet50_w2@FILE", content, tmp_path, size=32)
    assert encoder.width == 4096
    assert_features(encoder, lambda images: features(state, images), NONE if format == "simclr" else SWAV, side=32)
    with pytest.raises(Refusal, match=rf"compress/resnet50_w2; .* as in compress/resnet50_w2@{format}:"):
        open_encoder(str(tmp_path / "file.pth"), weights="pretrained")


def test_the_lowest_pixel_of_a_padded_pooling_is_never_taken() -> None:
    """Otherwise the border of each map would be a padded zero where all that lies there is negative."""
    from compress_ssl.backbones.resnet_wide import PoolAfter

    maps = -torch.rand(1, 2, 6, 7) - 1
    pooled = PoolAfter()(maps)
    assert pooled.shape == (1, 2, 3, 4)
    assert pooled.max() < -1
    assert pooled[0, 0, 2, 0] == maps[0, 0, 4:6, 0:2].max()


def test_what_was_taken_and_dropped_is_told_in_one_line(tmp_path: Path) -> None:
    """Otherwise nobody would notice that the momentum encoder was taken, or a head."""
    content = moco(network(), head=("0.weight", "0.bias", "2.weight", "2.bias"))
    encoder = opened("torchvision/resnet18@FILE", content, tmp_path)
    told = "weights: MoCo v2, 120 tensors from file.pth; dropped: projection head 4, key encoder 124, queue 2, "
    assert encoder.told == told + "optimizer state 2"
    assert encoder.preprocessing.size == 64


def test_a_bare_network_that_could_be_of_others_is_told(tmp_path: Path) -> None:
    """Otherwise a file of authors who normalise otherwise would be read as anybody's, unnoticed."""
    content = {"state_dict": classifier(network(BOTTLENECK))}
    encoder = opened("torchvision/resnet50@FILE", content, tmp_path)
    assert encoder.told.endswith("; write @simclr: if it is SimCLR (TensorFlow)'s, whose mean and std are others")


@pytest.mark.parametrize("backbone", ["compress/resnet18_small", "torchvision/resnet34", "timm/vit_tiny_patch16_224"])
def test_the_wrong_backbone_is_refused_with_the_right_one(backbone: str, tmp_path: Path) -> None:
    """Otherwise the user of a recognised file would have to find out what it is from a list of tensors."""
    content = moco(network(), head=("0.weight", "2.weight"))
    with pytest.raises(Refusal) as refusal:
        opened(f"{backbone}@FILE", content, tmp_path, size=None)
    told = str(refusal.value)
    assert f"the weights of {backbone}" in told
    assert f"write torchvision/resnet18@moco_v2:{tmp_path / 'file.pth'}" in told
    assert "\n" not in told


def test_a_tensor_that_nobody_can_explain_is_refused(tmp_path: Path) -> None:
    """Otherwise a part of a network that we do not know would be left out of its embedding, in silence."""
    content = moco(network(), head=("0.weight", "2.weight"))
    content["state_dict"]["module.encoder_q.gate.weight"] = torch.ones(3)
    with pytest.raises(Refusal, match=r"1 unexpected \(gate\.weight\)"):
        opened("torchvision/resnet18@moco_v2:FILE", content, tmp_path)


@pytest.mark.parametrize(("classes", "mean"), [(10, (0.4914, 0.4822, 0.4465)), (100, (0.5071, 0.4865, 0.4409))])
def test_solo_learns_cifar_is_told_by_its_classes(classes: int, mean: tuple[float, ...], tmp_path: Path) -> None:
    """Otherwise a run on CIFAR-100 would see its pictures in CIFAR-10's colours."""
    content = solo(network(kernel=3))
    content["state_dict"]["classifier.weight"] = torch.ones(classes, 3)
    encoder = opened("compress/resnet18_small_p2@FILE", content, tmp_path, size=None)
    assert encoder.preprocessing.mean == mean


def test_solo_learns_small_stem_is_not_taken_for_the_usual_one(tmp_path: Path) -> None:
    """Otherwise its weights, which fit, would see pictures padded by one pixel instead of two."""
    with pytest.raises(Refusal, match=r"name compress/resnet18_small_p2\.|write compress/resnet18_small_p2@solo_learn"):
        opened("compress/resnet18_small@FILE", solo(network(kernel=3)), tmp_path, size=None)


def test_lightlys_own_small_network_is_refused(tmp_path: Path) -> None:
    """Otherwise a network without its first ReLU would be loaded into one that has it."""
    state = {
        "0.weight": torch.ones(4, 3, 3, 3),
        "2.0.conv1.weight": torch.ones(4, 4, 3, 3),
        "3.0.shortcut.0.weight": torch.ones(8, 4, 1, 1),
    }
    content = {"state_dict": under("backbone.", state) | {"projection_head.layers.0.weight": torch.ones(2, 2)}}
    with pytest.raises(Refusal, match="no ReLU after its first norm"):
        opened("compress/resnet18_small@lightly:FILE", content, tmp_path, size=None)


def test_options_beside_the_weights_are_read_without_running_them(tmp_path: Path) -> None:
    """Otherwise nearly every training checkpoint would be refused for its command line; or its code be run."""
    import collections

    import numpy as np

    content = student(network())
    content |= {"best": np.float64(0.5), "table": np.zeros((3, 5)), "seen": collections.defaultdict(list, {"a": [1]})}
    encoder = opened("torchvision/resnet18@FILE", content, tmp_path)
    assert encoder.told.startswith("weights: CompRess student, 120 tensors")
    assert "projector 2, optimizer state 2" in encoder.told
