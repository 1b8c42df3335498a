"""Backbones that are ONNX graphs, computed by onnxruntime: `FILE.onnx`, or `FILE.onnx:OUTPUT` where it has several.

The graph takes one input, images (B, 3, H, W): floating point, normalised here, or uint8, which are given as they are.
Its batch may be fixed: batches are then cut to it, the last one filled up with copies of its last image, whose rows are
dropped. So may its size. The rows it makes are (B, D), or (B, D, 1, 1).

What it expects of its images is said, in the names of `Preprocessing`, by the file's own metadata (the entry
`preprocessing`, a JSON object), or by FILE.json beside it (the object alone, or under that name), or by the
`preprocessor_config.json` in its folder; else ImageNet's mean and std are taken, and `told` says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress_ssl.backbones import AS_THEY_ARE, ONNX_FILE, publish
from compress_ssl.refusal import Refusal, nearest
from compress_ssl.transforms import Preprocessing

TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
HIDDEN = ("If", "Loop", "Scan", "Attention", "ConvTranspose", "Einsum")  # nodes whose work is not counted here
FIELDS = tuple(field.name for field in dataclasses.fields(Preprocessing))


def open_backbone(name: str, *, size: int | None) -> nn.Module:
    """Open a graph, on the CPU; on a GPU it runs where onnxruntime has a provider for it.

    Args:
        name: `FILE.onnx` or `FILE.onnx:OUTPUT`.
        size: side of the square input in pixels, where the graph leaves it open.
    Raises: Refusal if onnxruntime is missing, the file is none of its graphs, or it does not map images to rows.
    """
    onnx, _ = _libraries()
    found = ONNX_FILE.fullmatch(name)
    assert found is not None
    file, output = Path(found[1]), found[2]
    if not file.is_file():
        raise Refusal(f"expected an ONNX file, got {str(file)!r}, which is not a file: check the path.")
    try:
        graph = onnx.load(str(file), load_external_data=False)
        backbone = OnnxBackbone(file, outside=[file.parent / name for name in _external(graph)])
    except Exception as error:  # both libraries raise what their protobuf and their C++ raise
        raise Refusal(f"expected an ONNX graph in {str(file)!r}, got {type(error).__name__}: "
                      f"{(str(error).splitlines() or [''])[0]}: export it again.") from error  # fmt: skip
    backbone.take(_input(backbone.session, file), _output(backbone.session, file, output))
    preprocessing, told = _preprocessing(backbone, file, size)
    with torch.no_grad():
        try:
            rows = backbone(torch.zeros(1, 3, preprocessing.size, preprocessing.size))
        except Exception as error:
            raise Refusal(f"expected {str(file)!r} to take images of {preprocessing.size} pixels, got "
                          f"{(str(error).splitlines() or [''])[0]}: give the size it was made for, by FILE.json or "
                          "--size.") from error  # fmt: skip
    if rows.ndim != 2 or not rows.is_floating_point():
        raise Refusal(f"expected one row of floating-point numbers per image from {name!r}, got {tuple(rows.shape)} "
                      f"{rows.dtype}: export the model with its features pooled.")  # fmt: skip
    backbone.costs = _costs(onnx, graph, backbone.batch or 1, preprocessing.size)
    backbone.told = f"{file}: output {backbone.output}; preprocessing: {told}"
    embedding = f"output {backbone.output}"
    return publish(backbone, width=rows.shape[1], preprocessing=preprocessing, embedding=embedding)


class OnnxBackbone(nn.Module):
    """Normalised images (B, 3, H, W) float, or pixels 0-255 for a uint8 graph -> (B, D) float32 on their device.

    Attributes:
        costs: parameters (numbers in its weights) and multiply-adds of one image; None where the graph hides them.
        told: which output was taken, and where the preprocessing is from.
    """

    costs: dict[str, int | None]
    told: str
    file_sha256: Tensor

    def __init__(self, file: Path, *, outside: Iterable[Path]):
        super().__init__()
        self.file = file.resolve()
        self._sessions: dict[str, Any] = {}
        digest = hashlib.sha256()
        for one in (self.file, *outside):
            with one.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        # the state dict's only entry: by it a resumed run, or a table, knows the graph again
        self.register_buffer("file_sha256", torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8))

    def take(self, images: Any, output: str) -> None:
        """Which input and output of the graph are meant."""
        self.input, self.output, self.dtype = images.name, output, TYPES[images.type]
        self.batch, *_, self.height, self.width_of_images = [
            side if isinstance(side, int) else None for side in images.shape
        ]

    @property
    def session(self) -> Any:
        return self._session(torch.device("cpu"))

    def _session(self, device: torch.device) -> Any:
        """Of this process; a copy of the module, or one sent elsewhere, opens its own."""
        if str(device) not in self._sessions:
            _, onnxruntime = _libraries()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # its warnings are of nodes it computes on another device
            options.intra_op_num_threads = torch.get_num_threads()
            providers: list[Any] = ["CPUExecutionProvider"]
            if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                # each process on its own GPU: left out, it is the first one for all
                providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
            self._sessions[str(device)] = onnxruntime.InferenceSession(str(self.file), options, providers=providers)
        return self._sessions[str(device)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}}

    @torch.compiler.disable  # nothing in it is torch's to compile
    def forward(self, images: Tensor) -> Tensor:
        pixels = images.detach().cpu().contiguous()
        values = (pixels.round() if self.dtype is np.uint8 else pixels.float()).numpy().astype(self.dtype)
        session, step = self._session(images.device), self.batch or max(1, len(values))
        rows = []
        for start in range(0, max(1, len(values)), step):
            part = values[start : start + step]
            missing = step - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            (found,) = session.run([self.output], {self.input: full})
            rows.append(torch.from_numpy(np.asarray(found, np.float32))[: len(part)])
        joined = torch.cat(rows)
        return (joined.flatten(1) if joined.shape[2:].numel() == 1 else joined).to(images.device)


def _libraries() -> tuple[Any, Any]:
    try:
        onnx, onnxruntime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise Refusal(f"expected onnx and onnxruntime for an ONNX file, got {error}: pip install "
                      "'compress-ssl[onnx]'.") from error  # fmt: skip
    onnxruntime.disable_telemetry_events()
    return onnx, onnxruntime


def _external(graph: Any) -> list[str]:
    """Files beside it that hold tensors of it."""
    entries = [entry for tensor in graph.graph.initializer for entry in tensor.external_data]
    return list(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))


def _input(session: Any, file: Path) -> Any:
    images, *others = session.get_inputs()
    shape = "×".join(map(str, images.shape))
    if others:
        names = ", ".join(one.name for one in others)
        raise Refusal(f"expected one input, images, in {str(file)!r}, got {images.name} and {names}: export the image "
                      "encoder alone.")  # fmt: skip
    channels = images.shape[1] if len(images.shape) == 4 else 0
    if (channels not in (3, None) and not isinstance(channels, str)) or images.type not in TYPES:  # a name: left open
        raise Refusal(f"expected images (B, 3, H, W), floating point or uint8, as the input of {str(file)!r}, got "
                      f"{images.name} {shape} {images.type}: export it so.")  # fmt: skip
    return images


def _output(session: Any, file: Path, asked: str | None) -> str:
    names = [one.name for one in session.get_outputs()]
    if asked is not None:
        if asked not in names:
            raise Refusal(f"expected an output of {str(file)!r}, got {asked!r}: {nearest(asked, names)}")
        return asked
    if len(names) > 1:
        told = ", ".join(f"{one.name} {'×'.join(map(str, one.shape))}" for one in session.get_outputs())
        raise Refusal(f"expected one output in {str(file)!r}, got {told}: choose, as in {file}:{names[0]}.")
    return names[0]


def _preprocessing(backbone: OnnxBackbone, file: Path, size: int | None) -> tuple[Preprocessing, str]:
    """What it expects of its images, and where that is from."""
    values, source = _said(backbone.session, file)
    height, width = backbone.height, backbone.width_of_images
    if (height or width) != (width or height):
        raise Refusal(f"expected square images as the input of {str(file)!r}, got {height}×{width}: export it so.")
    made, wanted = height or width, size or values.get("size")
    if made is not None and wanted not in (None, made):
        raise Refusal(f"expected {made} pixels, for which {str(file)!r} was made, got {wanted}: leave the size out, or "
                      "export it for another.")  # fmt: skip
    values["size"] = made or wanted or 224
    told = source or f"ImageNet's, for neither the file nor {file.stem}.json beside it says another"
    if backbone.dtype is np.uint8:
        values |= AS_THEY_ARE  # whatever is said of mean and std, the graph does it
        told = source or "pixels as they are"
    try:
        return _checked(values), told
    except (TypeError, ValueError) as error:
        raise Refusal(f"expected the preprocessing in {source} as numbers and words that it takes, got {error}: "
                      "mend it.") from error  # fmt: skip


def _checked(values: dict[str, Any]) -> Preprocessing:
    """Raises: ValueError or TypeError that says what is wrong."""
    triples = {name: tuple(map(float, values[name])) for name in ("mean", "std") if name in values}
    for name, triple in triples.items():
        if len(triple) != 3 or not all(map(math.isfinite, triple)):
            raise ValueError(f"{name} {list(triple)}, not three numbers")
    if min(triples.get("std", (1,))) <= 0:
        raise ValueError(f"std {list(triples['std'])}, not above 0")
    found = Preprocessing(**values | triples)  # type: ignore[arg-type]
    if not isinstance(found.size, int) or found.size < 1:
        raise ValueError(f"size {found.size!r}, not a number of pixels")
    if not 0 < found.crop_fraction <= 1:
        raise ValueError(f"crop_fraction {found.crop_fraction}, not in (0, 1]")
    for field, allowed in (("interpolation", ("bilinear", "bicubic")), ("crop", ("center", "squash", "border"))):
        if getattr(found, field) not in allowed:
            raise ValueError(f"{field} {getattr(found, field)!r}, not one of {', '.join(allowed)}")
    return found


def _said(session: Any, file: Path) -> tuple[dict[str, Any], str]:
    """Fields of a Preprocessing, and where they stand; both empty if nowhere."""
    beside, hub = file.with_suffix(".json"), file.with_name("preprocessor_config.json")
    inside = session.get_modelmeta().custom_metadata_map.get("preprocessing")
    if inside is not None:
        return _fields(inside, f"the metadata of {file}"), "the file's own metadata"
    if beside.is_file():
        return _fields(beside.read_text(), str(beside)), str(beside)
    if hub.is_file():
        from compress_ssl.backbones import from_transformers

        found, flipped = from_transformers.processor_of(file.parent)
        if flipped:
            raise Refusal(f"expected an image processor that leaves channels red, green, blue, got {hub}, which turns "
                          f"them round (do_flip_channel_order): export the graph with the turn in it, and say the rest "
                          f"in {beside.name}.")  # fmt: skip
        return dataclasses.asdict(found), str(hub)
    return {}, ""


def _fields(text: str, source: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
        values = dict(values.get("preprocessing", values))
    except (ValueError, TypeError, AttributeError) as error:
        raise Refusal(f"expected a JSON object in {source}, got {error}: mend it.") from error
    unknown = [name for name in values if name not in FIELDS]
    if unknown:
        raise Refusal(f"expected {', '.join(FIELDS)} in {source}, got {unknown[0]}: {nearest(unknown[0], FIELDS)}")
    return values


def _costs(onnx: Any, graph: Any, batch: int, size: int) -> dict[str, int | None]:
    """Numbers in the graph's weights, and multiply-adds of one image as the shapes in it say.

    Counted are convolutions and matrix products, as torch's counter does for our own backbones.
    """
    shapes = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)  # what a graph reckons with, no weights
    counted = sum(math.prod(one.dims) for one in graph.graph.initializer if one.data_type not in shapes)
    return {"parameters": counted or None, "multiply_adds": _multiply_adds(onnx, graph, batch, size)}


def _multiply_adds(onnx: Any, graph: Any, batch: int, size: int) -> int | None:
    """None if the shape of a product cannot be told."""
    try:
        if graph.functions:
            graph = importlib.import_module("onnx.inliner").inline_local_functions(graph)
        for place, value in zip(graph.graph.input[0].type.tensor_type.shape.dim, (batch, 3, size, size), strict=True):
            place.dim_value = value
        del graph.graph.value_info[:]  # shapes of a batch that was left open
        inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    except Exception:  # a graph that onnx cannot read through is one whose work is not known
        return None
    shapes = {one.name: tuple(one.dims) for one in inferred.initializer}
    for one in (*inferred.input, *inferred.value_info, *inferred.output):
        sides = one.type.tensor_type.shape.dim
        if one.type.HasField("tensor_type") and all(side.HasField("dim_value") for side in sides):
            shapes[one.name] = tuple(side.dim_value for side in sides)
    try:
        return sum(_products(node, shapes) for node in inferred.node) // batch
    except KeyError:
        return None


def _products(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-adds of one node; raises KeyError if they are not known."""
    kind = node.op_type
    if kind in HIDDEN:
        raise KeyError(kind)
    if kind not in ("Conv", "ConvInteger", "QLinearConv", "MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"):
        return 0
    made, weight = shapes[node.output[0]], shapes[node.input[3 if kind.startswith("QLinear") else 1]]
    if "Conv" in kind:
        return math.prod(made) * math.prod(weight[1:])  # channels of a group, height, width
    across = kind == "Gemm" and any(entry.name == "transB" and entry.i for entry in node.attribute)
    return math.prod(made) * (weight[-1] if across or len(weight) == 1 else weight[-2])
