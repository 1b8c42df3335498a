"""All that continues a run exactly, in one file that is either whole or absent.

Nothing executable is stored or read: tensors, numbers, strings and lists (`weights_only`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import replacing

FORMAT = 1


class Stateful(Protocol):
    """Whatever has a state that a resumed run must find again."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def save(path: Path, parts: Mapping[str, Stateful | dict[str, Any]], standing: dict[str, Any]) -> None:
    """Write the state of every part (a dict is one that was taken already), the generators and where the run stands.

    Atomic: what was there before stays until the new file is whole.
    """
    state = {name: part if isinstance(part, dict) else part.state_dict() for name, part in parts.items()}
    whole = {"format": FORMAT, "parts": state, "standing": standing, "generators": _generators()}
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(whole, file)
        except RuntimeError as trouble:
            # torch's zip writer stumbles over a write that failed and hides why: a full disk must stay an OSError
            if isinstance(trouble.__context__, OSError):
                raise trouble.__context__ from None
            raise


def load(path: Path, parts: dict[str, Stateful]) -> dict[str, Any]:
    """Put every part back into its saved state and return where the run stood.

    Raises: Refusal if the file is missing, damaged or holds other parts than this run has.
    """
    if not path.is_file():
        raise Refusal(f"expected a checkpoint at {path}, got none: the run has nothing to resume, start it anew")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as trouble:
        # torch raises half a dozen kinds (zip, pickle, runtime, EOF) for a damaged file; all mean the same to a reader
        raise Refusal(f"expected a checkpoint in {path}, got a damaged file ({type(trouble).__name__}): "
                      "restore it from a backup or start the run anew") from trouble  # fmt: skip
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise Refusal(f"expected a checkpoint of format {FORMAT} in {path}, got another file: restore it from a backup "
                      "or start the run anew")  # fmt: skip
    if set(state["parts"]) != set(parts):
        raise Refusal(f"expected a checkpoint with {sorted(parts)}, got {sorted(state['parts'])} in {path}: "
                      "resume with the command that started the run")  # fmt: skip
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    _restore(state["generators"])
    return state["standing"]


def standing(path: Path) -> dict[str, Any]:
    """Where the run of a whole checkpoint stands; of its parts nothing is read."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["standing"]


def _generators() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def _restore(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
