"""A weights file -> the state dict of one of our backbones, strictly: every tensor accounted for, nothing executed.

Reads `.safetensors` and whatever `torch.save` wrote, the latter without ever running a pickle's code: of what training
scripts save beside the tensors, options and numbers are read as such, anything else is refused. Published layouts are
known in `formats/`; a file of none of them is a plain state dict, whose usual nestings and prefixes are taken off. What
then differs from the backbone is refused with the list of differences.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from compress_ssl.refusal import Refusal

NESTINGS = ("state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder_q.")
HEADS = ("fc", "head", "heads", "classifier")
CHECKSUM = "sha256_of_tensors"  # key in the header of the files we write
MODULES = ("torch.nn.", "torchvision.models.", "timm.models.", "timm.layers.")  # whose classes are modules
SHOWN = 3  # keys of each sort that a refusal lists


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_checkpoint(file: Path) -> Any:
    """A file as it was saved, nesting and all, tensors on the CPU; whatever lies in it, usually a mapping.

    Raises: Refusal if the file is missing, damaged, no weights file, or a pickle that would have to run code.
    """
    if not file.is_file():
        raise Refusal(f"expected a weights file, got {str(file)!r}, which is not a file: check the path after the '@'.")
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)


def fetch(address: str) -> Path:
    """The file at an address that the user wrote, in torch.hub's folder; fetched once.

    Its name there begins with a digest of the address: many different files are called checkpoint.pth.
    Raises: Refusal if it cannot be had.
    """
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    file = Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}-{Path(urlsplit(address).path).name or 'weights'}"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file), progress=sys.stderr.isatty())
        except OSError as error:
            raise Refusal(
                f"expected to fetch weights from {address}, got {type(error).__name__} ({error}): connect to the "
                "network, or copy the file here and write its path."
            ) from error
    return file


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a plain weights file, names and dtypes as stored; see `read_checkpoint` and `plain_state`."""
    return plain_state(read_checkpoint(file), source=str(file))


def plain_state(content: Any, *, source: str) -> dict[str, Tensor]:
    """The state dict in a file that is of no published format: outer nestings taken off.

    Raises: Refusal if there is none.
    """
    while isinstance(content, Mapping):
        inner = next((content[key] for key in NESTINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        found = _some(map(str, content)) or "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise Refusal(
            f"expected a state dict (names and tensors) in {source!r}, got {found}: "
            "save the model's state_dict() and give that file."
        )
    return tensors


def backbone_part(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file that belong to the backbone, under the backbone's own names.

    Prefixes come off, outermost first, until at least one name is the backbone's; what does not carry the prefix (a
    momentum encoder, a queue, a projector) stays behind. A head on top is left out by its name, but never a tensor
    that the backbone itself has.
    """
    own = backbone.state_dict().keys()
    part = dict(state)
    while not part.keys() & own:
        prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in part)), None)
        if prefix is None:
            break
        part = {name.removeprefix(prefix): tensor for name, tensor in part.items() if name.startswith(prefix)}
    heads = tuple(f"{head}." for head in (*HEADS, *getattr(backbone, "head_names", ())))
    return {name: tensor for name, tensor in part.items() if name in own or not name.startswith(heads)}


def fit_weights(backbone: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `state` into the backbone, cast to its dtype; all or nothing.

    Batch norm's step counters may be absent, as they are in older files: they do not change an embedding.

    Args:
        source: what the weights are called in an error, usually the file.
    Raises: Refusal that lists missing, unexpected and wrongly shaped names; or those that hold NaN or infinity.
    """
    own = backbone.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {_shape(state[name])} instead of {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(wrong.values()):
        told = ", ".join(f"{len(names)} {sort} ({_some(names)})" for sort, names in wrong.items() if names)
        raise Refusal(
            f"expected the {len(own)} tensors of this backbone in {source}, got {told}: "
            "name the backbone that the weights were made for, or give the weights of this one."
        )
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise Refusal(f"expected finite weights in {source}, got NaN or infinity in {_some(broken)}: use another file.")
    own.update(state)  # `own` carries the versions of its modules, without which some refuse to load
    backbone.load_state_dict(own)


def pack_weights(state: Mapping[str, Tensor]) -> bytes:
    """The bytes of a `.safetensors` file that `read_weights` reads back; floating tensors as float32.

    The header holds a checksum of names, shapes and values, so that a flipped bit is noticed as well as a missing end.
    """
    packed = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().clone().contiguous()
        for name, tensor in state.items()
    }
    # one entry: the format keeps several in no order, and the same weights would be other bytes each time
    return safetensors.save(packed, metadata={CHECKSUM: _checksum(packed)})


def _checksum(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(file: Path) -> object:
    try:
        with safe_open(file, framework="pt") as stored:
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
            expected = (stored.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if expected is not None and expected != _checksum(state):
        raise _damaged(file, ValueError("its checksum does not match"))
    return state


def _read_torch(file: Path) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns about foreign pickle protocols and TorchScript before it refuses them; we say it once
            warnings.simplefilter("ignore", UserWarning)
            with torch.serialization.safe_globals(_harmless()):
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL:? ([\w.]+)", str(error))
        if named is None and not _is_pickle(file):
            raise _damaged(file, error) from error
        what = f"a pickle that asks to run {named[1]}" if named else "a pickle that is more than tensors"
        whole = named is not None and (named[1].startswith(MODULES) or _is_the_whole(file, named[1]))
        part = ".state_dict(), NEW_FILE)." if whole else (
            "['state_dict'], NEW_FILE), leaving out the ['state_dict'] if it has none."
        )  # fmt: skip
        raise Refusal(
            f"expected tensors only in {str(file)!r}, got {what}, which we never do: if you trust the file, convert it "
            f"once with torch.save(torch.load(FILE, weights_only=False){part}"
        ) from error
    except Exception as error:  # on damaged bytes torch raises nearly anything: OSError, IndexError, KeyError, ...
        if "TorchScript" in str(error):
            raise Refusal(
                f"expected a state dict in {str(file)!r}, got a TorchScript program: "
                "convert it once with torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
            ) from error
        raise _damaged(file, error) from error


class Options:
    """Stands in for what training scripts save beside the weights: made as an empty dict, whatever it was.

    Allowed by the name of the class that was saved, which is never imported: nothing of it runs.
    """

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()  # the one kind of mapping, beside dict, that torch lets a pickle fill


# classes of options by the names that pickles give them; a file may hold them on a machine that lacks the library
OPTIONS = (
    "argparse.Namespace",
    "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "easydict.EasyDict",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
)


def _harmless() -> list[Any]:
    """What a checkpoint may hold beside tensors: plain containers, numpy's numbers, and options by name."""
    scalar: Any = np.float64(0).__reduce__()[0]
    made: Any = np.zeros(1).__reduce__()[0]
    types = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")}
    numbers = [
        (one, f"numpy.{package}.multiarray.{name}")
        for package in ("core", "_core")
        for one, name in ((scalar, "scalar"), (made, "_reconstruct"))
    ]
    plain = [
        (kind, f"{module}.{kind.__name__}")
        for kind in (dict, list, set, tuple, int, float, bool, str)
        for module in ("builtins", "__builtin__")
    ]
    options = [(type(name.rpartition(".")[2], (Options,), {}), name) for name in OPTIONS]
    return [np.ndarray, np.dtype, *types, *numbers, *plain, *options]


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == b"\x80"


def _is_the_whole(file: Path, name: str) -> bool:
    """Whether what was saved is an object of that class, as `torch.save(model)` does, and not a dict that holds one.

    By the first of the pickle's instructions, which are read and not followed.
    """
    plain = {"PROTO", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "FRAME"}
    with contextlib.suppress(ValueError, OSError, KeyError, StopIteration), file.open("rb") as opened_file:
        stream: IO[bytes] = opened_file
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as opened:
                inner = next(one for one in opened.namelist() if one.endswith("data.pkl"))
                stream = io.BytesIO(opened.read(inner))
        else:
            for _ in range(3):  # magic number, version and machine of torch's older files
                collections.deque(pickletools.genops(stream), maxlen=0)
        first, value, _ = next(one for one in pickletools.genops(stream) if one[0].name not in plain)
        # torch's older files say "module" before a module's class
        return value == "module" or (first.name == "GLOBAL" and str(value).replace(" ", ".") == name)
    return False


def _damaged(file: Path, error: Exception) -> Refusal:
    # torch's own words on a pickle are a page of advice to switch the safety off
    reason = "" if isinstance(error, pickle.UnpicklingError) else str(error).strip().split("\n")[0].split(". ")[0]
    if not re.search(r"[A-Za-z]{2}", reason):  # of a KeyError torch's number alone
        reason = ""
    size = file.stat().st_size
    return Refusal(
        f"expected a whole .safetensors or torch.save file, got {str(file)!r} of {size:,} bytes that cannot be read"
        f"{f' ({reason})' if reason else ''}: copy or download it again."
    )


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:SHOWN]) + (", …" if len(shown) > SHOWN else "")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
