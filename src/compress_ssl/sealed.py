"""JSON files that tell when a single bit of them has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from compress_ssl.run_folder import write_atomically


class Damaged(ValueError):
    """A file is not what was written; the message says how, without the file's name."""


def seal_of(value: dict[str, Any]) -> str:
    """sha256 (hex) of the object as JSON."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write the object atomically, as JSON, its seal as the last key."""
    write_atomically(path, _sealed(value))


def read_sealed(path: Path) -> tuple[dict[str, Any], str]:
    """What was written, and its seal.

    Raises: Damaged if any bit differs from what `write_sealed` wrote; OSError if there is no such file.
    """
    try:
        text = path.read_bytes().decode()
        value = json.loads(text)
    except (ValueError, RecursionError) as trouble:
        raise Damaged(f"text that is no JSON ({trouble})") from trouble
    if not isinstance(value, dict):
        raise Damaged(f"a {type(value).__name__} instead of an object")
    seal = value.pop("sha256", None)
    try:
        same = _sealed(value) == text  # the whole text, so that no bit of it goes unnoticed
    except UnicodeEncodeError:  # half of a character, which JSON can spell and we never write
        same = False
    if not same:
        raise Damaged("bytes that do not match their checksum")
    return value, str(seal)


def _sealed(value: dict[str, Any]) -> str:
    return json.dumps({**value, "sha256": seal_of(value)}, ensure_ascii=False) + "\n"
