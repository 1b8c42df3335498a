"""CLIP, OpenCLIP, SigLIP: the image tower and its projection, out of files that hold two towers.

The judge is the published computation written out. Towers of the base size have their blocks in turn from two, which
share their bytes in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl.encoder import Encoder, load_encoder, open_encoder, save_encoder
from compress_ssl.formats import open_format, read_as
from compress_ssl.refusal import Refusal

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
State = dict[str, Tensor]


class Drawn:
    """Random weights, the same in every test; values that float16 holds."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, *shape: int, spread: float = 0.1, centre: float = 0.0) -> Tensor:
        return (torch.randn(*shape, generator=self.generator) * spread + centre).half()

    def linear(self, name: str, out: int, inner: int) -> State:
        return {f"{name}.weight": self(out, inner, spread=inner**-0.5), f"{name}.bias": self(out)}

    def norm(self, name: str, width: int) -> State:
        return {f"{name}.weight": self(width, centre=1.0), f"{name}.bias": self(width)}


def text_tower(prefix: str = "") -> State:
    names = ("positional_embedding", "token_embedding.weight", "transformer.resblocks.0.ln_1.weight", "text_projection")
    return {f"{prefix}{name}": torch.ones(3, 5) for name in (*names, "ln_final.weight")}


def scalars() -> State:
    return {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}


def clip_vit(width: int, *, patch: int, depth: int, projection: int, grid: int = 2) -> State:
    draw, state = Drawn(), {}
    state["class_embedding"], state["positional_embedding"] = draw(width), draw(1 + grid * grid, width)
    state["proj"] = draw(width, projection, spread=width**-0.5)
    state["conv1.weight"] = draw(width, 3, patch, patch, spread=(3 * patch * patch) ** -0.5)
    state |= draw.norm("ln_pre", width) | draw.norm("ln_post", width)
    kinds = []
    for _ in range(2):
        attention = draw.linear("attn.out_proj", width, width)
        attention |= {"attn.in_proj_weight": draw(3 * width, width, spread=width**-0.5)}
        attention |= {"attn.in_proj_bias": draw(3 * width)} | draw.norm("ln_1", width) | draw.norm("ln_2", width)
        kinds.append(
            attention | draw.linear("mlp.c_fc", 4 * width, width) | draw.linear("mlp.c_proj", width, 4 * width)
        )
    for index in range(depth):
        state |= {f"transformer.resblocks.{index}.{name}": one for name, one in kinds[index % 2].items()}
    return {f"visual.{name}": one for name, one in state.items()}


def images_of(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


def normalised(size: int, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    return (images_of(size) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    width, outputs = q.shape[-1], []
    for one in range(heads):
        part = slice(one * width // heads, (one + 1) * width // heads)
        scores = q[..., part] @ k[..., part].mT / (width // heads) ** 0.5
        outputs.append(scores.softmax(dim=-1) @ v[..., part])
    return torch.cat(outputs, dim=-1)


def layer(w: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w: State, name: str, x: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=eps)


def part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): one.float() for name, one in state.items() if name.startswith(prefix)}


def encode_image(state: State, size: int, *, heads: int, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """CLIP's ViT: class token in front, norm before the first block, class token's last norm, projection."""
    tower = part(state, "visual.")
    kernel = tower["conv1.weight"]
    x = functional.conv2d(normalised(size), kernel, stride=kernel.shape[2]).flatten(2).mT
    x = torch.cat([tower["class_embedding"].expand(len(x), 1, -1), x], dim=1) + tower["positional_embedding"]
    x = norm(tower, "ln_pre", x, 1e-5)
    for index in range(1 + max(int(name.split(".")[2]) for name in tower if name.startswith("transformer."))):
        w = part(tower, f"transformer.resblocks.{index}.")
        y = functional.linear(norm(w, "ln_1", x, 1e-5), w["attn.in_proj_weight"], w["attn.in_proj_bias"])
        x = x + layer(w, "attn.out_proj", attend(*y.chunk(3, dim=-1), heads))
        x = x + layer(w, "mlp.c_proj", activation(layer(w, "mlp.c_fc", norm(w, "ln_2", x, 1e-5))))
    return norm(tower, "ln_post", x[:, 0], 1e-5) @ tower["proj"]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def clip_resnet(widths: tuple[int, ...], blocks: tuple[int, ...], projection: int, grid: int = 2) -> State:
    draw, state = Drawn(), {}

    def convolution(name: str, out: int, inner: int, kernel: int) -> State:
        return {f"{name}.weight": draw(out, inner, kernel, kernel, spread=(inner * kernel * kernel) ** -0.5)}

    def batch_norm(name: str, width: int) -> State:
        running = {f"{name}.running_mean": draw(width), f"{name}.running_var": draw(width, centre=1.0).abs() + 0.1}
        return draw.norm(name, width) | running | {f"{name}.num_batches_tracked": torch.tensor(5)}

    def block(name: str, inner: int, width: int, *, shortcut: bool) -> State:
        own = convolution(f"{name}.conv1", width, inner, 1) | batch_norm(f"{name}.bn1", width)
        own |= convolution(f"{name}.conv2", width, width, 3) | batch_norm(f"{name}.bn2", width)
        own |= convolution(f"{name}.conv3", 4 * width, width, 1) | batch_norm(f"{name}.bn3", 4 * width)
        if shortcut:
            own |= convolution(f"{name}.downsample.0", 4 * width, inner, 1)
            own |= batch_norm(f"{name}.downsample.1", 4 * width)
        return own

    first = widths[0]
    stem = ((first // 2, 3), (first // 2, first // 2), (first, first // 2))
    for index, (out, inner) in enumerate(stem, start=1):
        state |= convolution(f"conv{index}", out, inner, 3) | batch_norm(f"bn{index}", out)
    inner = first
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        for index in range(count):
            state |= block(f"layer{stage}.{index}", inner, width, shortcut=index == 0)
            inner = 4 * width
    state["attnpool.positional_embedding"] = draw(1 + grid * grid, inner)
    for letter in "qkv":
        state |= draw.linear(f"attnpool.{letter}_proj", inner, inner)
    state |= draw.linear("attnpool.c_proj", projection, inner)
    return {f"visual.{name}": one for name, one in state.items()}


def encode_image_by_resnet(state: State, size: int) -> Tensor:
    """Three convolutions as a stem, strides by averaging, attention pooling with the mean as its query."""
    tower = part(state, "visual.")

    def bn(name: str, x: Tensor) -> Tensor:
        w = part(tower, f"{name}.")
        return functional.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"])

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return functional.conv2d(x, tower[f"{name}.weight"], **options)

    x = normalised(size)
    x = bn("bn1", conv("conv1", x, stride=2, padding=1)).relu()
    x = bn("bn2", conv("conv2", x, padding=1)).relu()
    x = functional.avg_pool2d(bn("bn3", conv("conv3", x, padding=1)).relu(), 2)
    for stage in "1234":
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in tower:
            name, stride = f"layer{stage}.{index}", 2 if index == 0 and stage != "1" else 1
            y = bn(f"{name}.bn1", conv(f"{name}.conv1", x)).relu()
            y = bn(f"{name}.bn2", conv(f"{name}.conv2", y, padding=1)).relu()
            y = bn(f"{name}.bn3", conv(f"{name}.conv3", functional.avg_pool2d(y, stride)))
            if index == 0:
                x = bn(f"{name}.downsample.1", conv(f"{name}.downsample.0", functional.avg_pool2d(x, stride)))
            x, index = (x + y).relu(), index + 1
    x = x.flatten(2).mT
    w = part(tower, "attnpool.")
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + w["positional_embedding"]
    pooled = attend(layer(w, "q_proj", x[:, :1]), layer(w, "k_proj", x), layer(w, "v_proj", x), x.shape[-1] // 64)
    return layer(w, "c_proj", pooled[:, 0])


def siglip(width: int, *, patch: int, depth: int, grid: int = 2) -> State:
    """Hugging Face's names."""
    draw, state = Drawn(), {}
    state["embeddings.patch_embedding.weight"] = draw(width, 3, patch, patch, spread=(3 * patch * patch) ** -0.5)
    state["embeddings.patch_embedding.bias"] = draw(width)
    state["embeddings.position_embedding.weight"] = draw(grid * grid, width)
    kinds = []
    for _ in range(2):
        kind = draw.norm("layer_norm1", width) | draw.norm("layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            kind |= draw.linear(f"self_attn.{name}", width, width)
        kinds.append(kind | draw.linear("mlp.fc1", 4 * width, width) | draw.linear("mlp.fc2", width, 4 * width))
    for index in range(depth):
        state |= {f"encoder.layers.{index}.{name}": one for name, one in kinds[index % 2].items()}
    state |= draw.norm("post_layernorm", width) | {"head.probe": draw(1, 1, width)}
    state["head.attention.in_proj_weight"] = draw(3 * width, width, spread=width**-0.5)
    state["head.attention.in_proj_bias"] = draw(3 * width)
    state |= draw.linear("head.attention.out_proj", width, width) | draw.norm("head.layernorm", width)
    state |= draw.linear("head.mlp.fc1", 4 * width, width) | draw.linear("head.mlp.fc2", width, 4 * width)
    return {f"vision_model.{name}": one for name, one in state.items()}


def beside_siglip(prefix: str) -> State:
    return {f"{prefix}encoder.layers.0.mlp.fc1.weight": torch.ones(3), "logit_scale": torch.ones(1)} | {
        "logit_bias": torch.ones(1)
    }


def pooled_output(state: State, size: int, *, heads: int) -> Tensor:
    def gelu(x: Tensor) -> Tensor:
        return functional.gelu(x, approximate="tanh")

    tower = part(state, "vision_model.")
    kernel = tower["embeddings.patch_embedding.weight"]
    x = functional.conv2d(
        normalised(size, HALF, HALF), kernel, tower["embeddings.patch_embedding.bias"], stride=kernel.shape[2]
    )
    x = x.flatten(2).mT + tower["embeddings.position_embedding.weight"]
    for index in range(1 + max(int(name.split(".")[2]) for name in tower if name.startswith("encoder."))):
        w = part(tower, f"encoder.layers.{index}.")
        y = norm(w, "layer_norm1", x, 1e-6)
        q, k, v = (layer(w, f"self_attn.{name}_proj", y) for name in "qkv")
        x = x + layer(w, "self_attn.out_proj", attend(q, k, v, heads))
        x = x + layer(w, "mlp.fc2", gelu(layer(w, "mlp.fc1", norm(w, "layer_norm2", x, 1e-6))))
    x, w = norm(tower, "post_layernorm", x, 1e-6), part(tower, "head.")
    weights, biases = w["attention.in_proj_weight"].chunk(3), w["attention.in_proj_bias"].chunk(3)
    inputs = (w["probe"].expand(len(x), -1, -1), x, x)
    q, k, v = (functional.linear(*given) for given in zip(inputs, weights, biases, strict=True))
    y = layer(w, "attention.out_proj", attend(q, k, v, heads))
    return (y + layer(w, "mlp.fc2", gelu(layer(w, "mlp.fc1", norm(w, "layernorm", y, 1e-6)))))[:, 0]


def open_clips_names(state: State) -> State:
    """Hugging Face's SigLIP as open_clip saves it: timm's names behind `visual.trunk.`."""
    tower, named = part(state, "vision_model."), {}
    named["pos_embed"] = tower.pop("embeddings.position_embedding.weight")[None]
    named["attn_pool.latent"] = tower.pop("head.probe")
    for kind in ("weight", "bias"):
        q, k, v = tower.pop(f"head.attention.in_proj_{kind}").chunk(3)
        named[f"attn_pool.q.{kind}"], named[f"attn_pool.kv.{kind}"] = q, torch.cat([k, v])
    for name, one in tower.items():
        for before, after in (
            ("embeddings.patch_embedding", "patch_embed.proj"),
            ("encoder.layers", "blocks"),
            ("self_attn.out_proj", "attn.proj"),
            ("layer_norm", "norm"),
            ("post_layernorm", "norm"),
            ("head.attention.out_proj", "attn_pool.proj"),
            ("head.layernorm", "attn_pool.norm"),
            ("head.mlp", "attn_pool.mlp"),
        ):
            name = name.replace(before, after)
        if "q_proj" in name:
            stem = name.replace("blocks", "encoder.layers")
            one = torch.cat([tower[stem.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            name = name.replace("self_attn.q_proj", "attn.qkv")
        if "k_proj" not in name and "v_proj" not in name:
            named[name] = one
    return {f"visual.trunk.{name}": one for name, one in named.items()}


def trunk_of_timm(name: str, projection: int) -> tuple[nn.Module, State]:
    torch.manual_seed(7)
    trunk = timm.create_model(name, num_classes=0, **({"img_size": 32} if "vit" in name else {})).eval()
    for parameter in trunk.parameters():  # timm starts layer scales near zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    state = {f"visual.trunk.{name}": one for name, one in trunk.state_dict().items()}
    state["visual.head.proj.weight"] = torch.randn(projection, trunk.num_features) / trunk.num_features**0.5
    return trunk, state


def layouts() -> dict[str, Callable[[], Any]]:
    def vit() -> State:
        return clip_vit(256, patch=2, depth=1, projection=7)

    def whole(state: State) -> State:
        return {name: one.float() for name, one in state.items()} | {"logit_scale": torch.tensor(4.6)}

    small = {"vision_model": siglip(24, patch=2, depth=1)}
    return {
        "clip: released": lambda: vit() | text_tower() | scalars() | {"logit_scale": torch.tensor(4.6)},
        "clip: ResNet": lambda: clip_resnet((8, 8, 8, 16), (3, 4, 6, 3), 7) | text_tower() | scalars(),
        "open_clip: a training": lambda: {
            "epoch": 32,
            "name": "ViT-B-32",
            "state_dict": {f"module.{name}": one for name, one in (whole(vit()) | text_tower()).items()},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        },
        "open_clip: timm's ViT": lambda: trunk_of_timm("test_vit", 7)[1] | text_tower("text."),
        "open_clip: timm's ConvNeXt": lambda: trunk_of_timm("test_convnext", 7)[1] | text_tower("text."),
        "siglip: Hugging Face's": lambda: small["vision_model"] | beside_siglip("text_model."),
        "siglip: open_clip's": lambda: open_clips_names(small["vision_model"]) | beside_siglip("text."),
    }


def plain_layouts() -> dict[str, Callable[[], Any]]:
    def flat() -> State:
        state = clip_vit(256, patch=2, depth=1, projection=7)
        return {name: one.float() for name, one in state.items()} | text_tower()

    return {"clip: float32, without scalars": flat, "open_clip: flat": flat}


def opened(state: Any, format: str, name: str, folder: Path, size: int) -> Encoder:
    torch.save(state, folder / "weights.pth")
    assert (folder / "weights.pth").stat().st_size < 100e6
    return open_encoder(f"timm/{name}@{format}:{folder / 'weights.pth'}", weights="pretrained", size=size)


def close(encoder: nn.Module, expected: Tensor, size: int) -> None:
    with torch.no_grad():
        torch.testing.assert_close(encoder(images_of(size)), expected, rtol=1e-4, atol=1e-4)


def test_openais_vit_is_encode_image(tmp_path: Path) -> None:
    """Otherwise an index made by encode_image could not be searched with these embeddings."""
    state = clip_vit(768, patch=32, depth=12, projection=512)
    file = state | text_tower() | scalars() | {"logit_scale": torch.tensor(4.6)}
    encoder = opened(file, "clip", "vit_base_patch32_clip_quickgelu_224", tmp_path, 64)
    expected = encode_image(state, 64, heads=12, activation=quick_gelu)
    close(encoder, expected, 64)
    assert (encoder.embedding, encoder.width) == ("projected", 512)
    assert encoder.preprocessing.mean == MEAN
    assert encoder.preprocessing.interpolation == "bicubic"
    assert "text tower 5" in encoder.told
    gelu = encode_image(state, 64, heads=12, activation=functional.gelu)
    assert (gelu - expected).abs().max() > 1e-3, "the activation does not matter here"


def test_openais_vit_is_refused_by_a_backbone_with_gelu(tmp_path: Path) -> None:
    """Otherwise the same weights would be another function, a little worse, and nobody would know why."""
    state = clip_vit(768, patch=32, depth=12, projection=512, grid=7) | scalars()
    with pytest.raises(Refusal, match="write timm/vit_base_patch32_clip_quickgelu_224@clip:"):
        opened(state, "clip", "vit_base_patch32_clip_224", tmp_path, 224)


def test_openais_resnet_is_encode_image(tmp_path: Path) -> None:
    """Otherwise its attention pooling would be taken off as if it were a classifier."""
    state = clip_resnet((64, 128, 256, 512), (3, 4, 6, 3), 1024)
    encoder = opened(state | text_tower() | scalars(), "clip", "resnet50_clip", tmp_path, 64)
    close(encoder, encode_image_by_resnet(state, 64), 64)
    assert (encoder.embedding, encoder.width) == ("projected", 1024)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_open_clips_vit_keeps_the_files_projection(prefix: str, tmp_path: Path) -> None:
    """Otherwise the width of timm's default weights would be forced upon everybody's tower."""
    state = clip_vit(256, patch=16, depth=10, projection=333)
    whole = {name: one.float() for name, one in (state | text_tower()).items()}
    file: Any = {f"{prefix}{name}": one for name, one in whole.items()}
    encoder = opened({"state_dict": file} if prefix else file, "open_clip", "vit_xsmall_patch16_clip_224", tmp_path, 32)
    expected = encode_image(state, 32, heads=4, activation=functional.gelu)
    close(encoder, expected, 32)
    assert (encoder.embedding, encoder.width) == ("projected", 333)
    save_encoder(encoder, tmp_path / "run")
    close(load_encoder(tmp_path / "run"), expected, 32)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_open_clip_with_a_trunk_of_timm(name: str, tmp_path: Path) -> None:
    """Otherwise the projection, which lies outside of the trunk, would be lost, and the space be another."""
    trunk, state = trunk_of_timm(name, 333)
    encoder = opened(state | text_tower("text."), "open_clip", name, tmp_path, 32)
    with torch.no_grad():
        close(encoder, trunk(normalised(32)) @ state["visual.head.proj.weight"].T, 32)
    assert encoder.embedding == "projected"
    assert encoder.preprocessing.mean == MEAN


def test_open_clips_projection_of_two_layers_has_its_place() -> None:
    """Otherwise the largest ConvNeXts would be refused. Names and shapes alone: they have 200 million weights."""
    with torch.device("meta"):
        backbone = timm.create_model("convnext_large_mlp", num_classes=768)
        trunk = timm.create_model("convnext_large", num_classes=0).state_dict()
        state = {f"visual.trunk.{name}": one for name, one in trunk.items()}
        state |= {"visual.head.mlp.fc1.weight": torch.empty(1536, 1536), "visual.head.mlp.fc1.bias": torch.empty(1536)}
        state |= {"visual.head.mlp.fc2.weight": torch.empty(768, 1536)}
        found = read_as("open_clip", state)
        fitted = open_format("open_clip").fit(found, backbone)
    assert found.architecture == "timm/convnext_large_mlp"
    assert {name: one.shape for name, one in fitted.items()} == {
        name: one.shape for name, one in backbone.state_dict().items()
    }


def test_a_trunk_of_eva_has_its_projection_inside() -> None:
    """Otherwise EVA's towers would be refused for a projection that is there. Names and shapes alone."""
    with torch.device("meta"):
        backbone = timm.create_model("eva02_base_patch16_clip_224", num_classes=512)
        state = {f"visual.trunk.{name}": one for name, one in backbone.state_dict().items()}
        found = read_as("open_clip", state | text_tower("text."))
    assert found.arguments == {"projection": 512}
    fitted = open_format("open_clip").fit(found, backbone)
    assert {name: one.shape for name, one in fitted.items()} == {
        name: one.shape for name, one in backbone.state_dict().items()
    }


@pytest.mark.parametrize("tag", ["", "timm:"])
def test_timms_own_file_of_a_tower_keeps_its_projection(tag: str, tmp_path: Path) -> None:
    """Otherwise the hub's file and a local copy of it would give two embeddings."""
    torch.manual_seed(2)
    tower = timm.create_model("vit_xsmall_patch16_clip_224", num_classes=512, img_size=32).eval()
    torch.save(tower.state_dict(), tmp_path / "tower.pth")
    name = "timm/vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    encoder = open_encoder(f"{name}@{tag}{tmp_path / 'tower.pth'}", weights="pretrained", size=32)
    with torch.no_grad():
        close(encoder, tower(normalised(32)), 32)
    assert "dropped: " not in encoder.told


@pytest.mark.parametrize("layout", ["Hugging Face's", "open_clip's"])
def test_siglip_is_attention_pooled(layout: str, tmp_path: Path) -> None:
    """Otherwise the patches would be averaged, which is no space that text was trained in."""
    state = siglip(768, patch=32, depth=12)
    expected = pooled_output(state, 64, heads=12)
    if layout == "open_clip's":
        file = {name: one.half() for name, one in open_clips_names(state).items()} | beside_siglip("text.")
        shared = {f"visual.trunk.blocks.{i}.": f"visual.trunk.blocks.{i % 2}." for i in range(12)}
        for after, before in shared.items():  # one copy of what is equal, or the file has 200 MB
            for name in [name for name in file if name.startswith(after)]:
                file[name] = file[before + name.removeprefix(after)]
    else:
        file = state | beside_siglip("text_model.")
    encoder = opened(file, "siglip", "vit_base_patch32_siglip_256", tmp_path, 64)
    close(encoder, expected, 64)
    assert (encoder.embedding, encoder.preprocessing.crop) == ("attention", "squash")
    assert encoder.preprocessing.mean == HALF


def test_siglip_is_refused_by_a_clip_tower(tmp_path: Path) -> None:
    """Otherwise someone would read a list of two hundred names to learn that this is another architecture."""
    state = siglip(768, patch=32, depth=12, grid=8) | beside_siglip("text_model.")
    with pytest.raises(Refusal, match="write timm/vit_base_patch32_siglip_256@siglip:") as refusal:
        opened(state, "siglip", "vit_base_patch32_clip_224", tmp_path, 256)
    assert "\n" not in str(refusal.value)
