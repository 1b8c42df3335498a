"""Layers of an encoder: a linear probe on each of them, all from one pass over the images.

Source: Zhang et al., Colorful Image Colorization, ECCV 2016 (a linear classifier on each of AlexNet's layers, whose
maps are pooled to about 9000 numbers, so that none wins by its size); Abbasi Koohpayegani et al., CompRess, NeurIPS
2020, the table of AlexNet by layer.

Names. AlexNet, ours and torchvision's: `c1` ... `c5`, the maps after each convolution's ReLU, before any pooling, and
`f6`, `f7`, the rows after theirs. Residual networks of ours, torchvision and timm: `layer1` ... `layer4`, the output of
each stage. Others have none.

Pooling. A map of C channels is averaged over a grid of S × S cells (adaptive average pooling) with S the integer next
to √(9216 / C), but no finer than the map: 12, 10, 8, 7, 6, 5, 4, 3, 2 for 64, 96, 128, 192, 256, 384, 512, 1024, 2048
channels, hence 9216, 9600, 8192, 9408, 9216, 9600, 8192, 9216, 8192 numbers. Rows of f6 and f7 are taken whole.

The probe is evaluations/linear_probe's, of its protocol "stored": unit rows, standardised. Differs from the source:
there, SGD on random crops of rows that have their own lengths.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table as RichTable
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl import evaluations
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import Encoder
from compress_ssl.evaluations import labelled_rows
from compress_ssl.metrics import accuracy
from compress_ssl.refusal import Refusal
from compress_ssl.unit_rows import SHORTEST

NUMBERS = 9216  # about so many of a map
STAGE = re.compile(r"layer[1-9]")


def layers_of(encoder: Encoder) -> dict[str, nn.Module]:
    """Name -> the module whose output that layer is, in the order of the forward pass; {} where none has a name."""
    from torchvision.models import AlexNet

    backbone = encoder.backbone
    if isinstance(backbone, AlexNet):
        maps = [part for part in backbone.features if isinstance(part, nn.ReLU)]
        rows = [part for part in backbone.classifier if isinstance(part, nn.ReLU)]
        return {f"{'c' if number <= len(maps) else 'f'}{number}": part for number, part in enumerate(maps + rows, 1)}
    return {name: part for name, part in backbone.named_children() if STAGE.fullmatch(name)}


def refuse_unknown_layers(encoder: Encoder, asked: Sequence[str]) -> None:
    """Refusal, with the layers that there are, unless the encoder has all that are asked for."""
    known = layers_of(encoder)
    missing = [name for name in asked if name not in known]
    if missing and known:
        raise Refusal(f"--layers expected layers of {encoder.spec}, which are {', '.join(known)}, got "
                      f"{', '.join(missing)}: name some of those, or score this model without --layers")  # fmt: skip
    if missing:
        raise Refusal("--layers expected models with named layers (AlexNet: c1 … c5, f6, f7; residual networks: "
                      f"layer1 … layer4), got {encoder.spec}, which has none: score it without --layers")  # fmt: skip
    if len(set(asked)) < len(asked):
        raise Refusal(f"--layers expected every layer once, got {' '.join(asked)}: leave out what is there twice")


def pooled(output: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C · S · S) float32, S as at the top of this file; (B, D) stays as it is. Always a copy."""
    if output.ndim == 2:
        return output.float().clone()
    _, channels, height, width = output.shape
    side = max(1, round((NUMBERS / channels) ** 0.5))
    grid = min(side, height), min(side, width)
    return functional.adaptive_avg_pool2d(output.float(), grid).flatten(1)


class Recorder:
    """Pixels -> what the encoder says; what its layers said on the way is kept in files, as unit rows in float16.

    Use it in a `with` statement and call it with the images batch by batch, in order.
    """

    def __init__(self, encoder: Encoder, layers: Sequence[str], folder: Path) -> None:
        self._encoder = encoder
        self._files = {name: folder / f"{place}.rows" for place, name in enumerate(layers)}
        self._found: dict[str, Tensor] = {}
        self._bad: dict[str, int] = {}  # layer -> the first image whose row has no length
        self._count = 0
        self._hooks: list[Any] = []
        folder.mkdir(parents=True)

    def __enter__(self) -> Recorder:
        modules = layers_of(self._encoder)
        for name in self._files:
            self._hooks.append(modules[name].register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._found[name] = pooled(output)  # at once: the next module may write into the output

        return hook

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        rows = self._encoder(images)
        for name, file in self._files.items():
            found = self._found.pop(name)
            lengths = found.norm(dim=1, keepdim=True)
            bad = ~(torch.isfinite(lengths) & (lengths > SHORTEST)).squeeze(1)
            if name not in self._bad and bad.any():
                self._bad[name] = self._count + int(bad.int().argmax())
            with file.open("ab") as target:
                target.write((found / lengths).half().cpu().numpy().tobytes())
        self._count += len(images)
        return rows

    def rows(self, layer: str, images: Embeddings) -> Embeddings:
        """Unit rows of one layer, in float32; labels and ids are those of `images`, which were recorded.

        Raises: Refusal naming the first image whose row is zero, infinite or NaN.
        """
        if layer in self._bad:
            raise Refusal(f"expected a finite map that is not zero everywhere, got another of layer {layer} of "
                          f"{self._encoder.spec} for image {images.ids[self._bad[layer]]}: check the encoder's "
                          "weights, or leave this layer out")  # fmt: skip
        found = np.fromfile(self._files[layer], dtype=np.float16).reshape(len(images.ids), -1).astype(np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)  # float16 moved the lengths by 1e-4
        return Embeddings(rows=found, labels=images.labels, ids=images.ids)


def probe_layers(
    encoder: Encoder,
    layers: Sequence[str],
    splits: Splits,
    *,
    embed: Callable[[Callable[[Tensor], Tensor], ImageSet, str], Embeddings],
    folder: Path,
    probe: Any,
    device: str,
) -> tuple[Embeddings, Embeddings, dict[str, dict[str, float]]]:
    """Embed both splits once, and fit a linear probe on each layer.

    Args:
        embed: encode, images, "train" or "test" -> rows of `encode`, which is called batch by batch in order.
        folder: where rows of layers may lie for the time being: 18 kB an image and layer. One layer at a time is held
            in memory, 74 kB a training image.
        probe: evaluations/linear_probe's Config, of which `weight_decay` and `to_the_end` are read.
    Returns: the encoder's own rows of train and test; layer -> {"width": of its rows, "linear_probe": accuracy}.
    """
    assert splits.test is not None
    fit: Any = cast(Any, evaluations.find("linear_transfer")).fit
    with tempfile.TemporaryDirectory(prefix=".layers.", dir=folder) as room:
        own, recorded = {}, {}
        for split, images in (("train", splits.train), ("test", splits.test)):
            with Recorder(encoder, layers, Path(room) / split) as recorder:
                own[split] = embed(recorder, images, split)
            recorded[split] = recorder
        found = {}
        for layer in layers:
            rows = {split: labelled_rows(recorded[split].rows(layer, own[split])) for split in own}
            layer_probe = fit(
                rows["train"], weight_decay=probe.weight_decay, to_the_end=probe.to_the_end, device=device
            )
            predicted = layer_probe(rows["test"])
            found[layer] = {
                "width": rows["train"].rows.shape[1],
                "linear_probe": accuracy(predicted, rows["test"].labels),
            }
    return own["train"], own["test"], found


def layers_table(probed: dict[str, dict[str, dict[str, float]]]) -> RichTable:
    """The table that a terminal shows: model by layer."""
    layers = list(dict.fromkeys(layer for found in probed.values() for layer in found))
    table = RichTable(header_style="bold", title="linear probe by layer", title_justify="left", title_style="bold")
    table.add_column("model", no_wrap=True)
    for layer in layers:
        table.add_column(layer, justify="right")
    for model, found in probed.items():
        table.add_row(escape(model), *(f"{100 * found[layer]['linear_probe']:.1f}" for layer in layers))
    return table
