"""One run on disk: configuration, environment, metrics, skipped images, results; every write is atomic.

The folder holds

    config.yaml         the whole resolved configuration
    environment.json    command, versions, hardware, start
    metrics.jsonl       one JSON object a line, "kind": "train" or "validation"
    skipped.jsonl       images that could not be used: id, kind, detail
    checkpoints/        what continues the run exactly
    student/            the encoder that this run trained: safetensors and what rebuilds it
    results.json, pictures.json, report.html
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from compress_ssl.refusal import Refusal

_LEFT_OVER = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")  # a temporary file of `replacing` whose process was killed


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write the whole file or leave the old one: temporary file beside it, fsync, rename, fsync of the folder."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def is_left_over(name: str) -> bool:
    """Whether a file of this name is a temporary one of `replacing`, left by a process that was killed or is at it."""
    return _LEFT_OVER.fullmatch(name) is not None


class replacing:
    """`with replacing(path) as temporary:` write `temporary` by any means; it becomes `path` if the block ends well."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=self.path.suffix, dir=self.path.parent)
        os.close(handle)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp makes 0600; a run folder is shared like any other file
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with self.temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                self.temporary.replace(self.path)
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        finally:
            self.temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """A configuration as plain dictionaries, lists and scalars, the way YAML and JSON hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """`name: old → new` for every leaf at which two plain configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in list(old) + [key for key in new if key not in old]:
            found += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix}: {old} → {new}"]


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and accelerators of this machine."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "processor": model,
        "cores": cores,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "accelerators": devices,
    }


def environment() -> dict[str, Any]:
    """The exact command, the versions and the hardware: what someone needs to do this again."""
    program = Path(sys.argv[0]).name.replace("cli.py", "compress-ssl")  # python -m compress_ssl.cli
    names = ("compress-ssl", "torch", "torchvision", "timm", "lightning", "lightly", "numpy", "pillow", "scikit-learn")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": [program, *sys.argv[1:]],
        "command_line": shlex.join([program, *sys.argv[1:]]),
        "versions": versions,
        "hardware": hardware(),
        "system": f"{platform.system()} {platform.release()}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class RunFolder:
    """A run's folder, opened for writing by one process (rank 0)."""

    def __init__(self, path: Path):
        self.path = path
        self._skipped: dict[str, dict[str, str]] = {}
        for line in _lines(path / "skipped.jsonl"):
            self._skipped.setdefault(line["id"], line)

    @classmethod
    def open(cls, path: Path, config: Any, *, resume: bool) -> RunFolder:
        """Start a run in an empty or new folder (or where a start failed at once), or continue the one that is there.

        Raises: Refusal if the folder holds another run, if there is nothing to resume, or if the
        configuration is not the one the run was started with (the difference is in the message).
        """
        here = plain(config)
        file = path / "config.yaml"
        if resume:
            if not file.is_file():
                raise Refusal(f"--resume expected a run in {path}, got no config.yaml there: start it without --resume")
            if changed := changes(path, config):
                raise Refusal(
                    f"--resume expected the configuration that {path} was started with, got {'; '.join(changed)}: "
                    "use the old values, or another --out for a new run"
                )
            run = cls(path)
            run._mend()
            return run
        if path.exists() and not path.is_dir():
            raise Refusal(f"--out expected a folder, got the file {path}: name another place")
        if path.is_dir() and not nothing_computed(path):
            what = "another run" if file.is_file() else "other files"
            raise Refusal(
                f"--out expected an empty or new folder, got {path}, which holds {what}: "
                "name another folder, or continue that run with --resume"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as trouble:
            raise Refusal(f"--out expected a place for a new folder, got {path} ({trouble.strerror}): "
                          "name another place") from trouble  # fmt: skip
        write_atomically(file, yaml.safe_dump(here, sort_keys=False, allow_unicode=True))
        run = cls(path)
        run.write_json("environment.json", environment())
        return run

    def _mend(self) -> None:
        """Repair what a kill can leave behind: temporary files, a missing first file, a line cut off."""
        for folder in (self.path, self.path / "checkpoints", self.path / "student"):
            for inside in folder.glob(".*"):
                if is_left_over(inside.name):
                    inside.unlink()
        if not (self.path / "environment.json").exists():
            self.write_json("environment.json", environment())
        if (self.path / "skipped.jsonl").exists():
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self._skipped.values()]
            write_atomically(self.path / "skipped.jsonl", "".join(lines))

    def write_json(self, name: str, value: Any) -> None:
        write_atomically(self.path / name, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")

    def log(self, kind: str, **values: float | int) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return list(_lines(self.path / "metrics.jsonl"))

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that are about to be computed again (they come after the checkpoint)."""
        kept = [line for line in _lines(self.path / "metrics.jsonl") if line["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def skip(self, sample: str, kind: str, detail: str) -> bool:
        """List an image that cannot be used; True if it was not listed before."""
        if sample in self._skipped:
            return False
        self._skipped[sample] = {"id": sample, "kind": kind, "detail": detail}
        with (self.path / "skipped.jsonl").open("a") as file:
            file.write(json.dumps(self._skipped[sample], ensure_ascii=False) + "\n")
        return True

    def skipped_told(self) -> str:
        """A sentence about the images that could not be used, "" if there are none."""
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.skipped().items()))
        return f"images that could not be used, listed in {self.path / 'skipped.jsonl'}: {counts}" if counts else ""

    def skipped(self) -> Counter[str]:
        """Images that could not be used, counted by kind."""
        return Counter(line["kind"] for line in self._skipped.values())


def changes(path: Path, config: Any) -> list[str]:
    """`name: old → new` for every option at which the run in the folder `path` differs from this configuration.

    What must be the same to continue it is all but how the folder is written and that it is continued.
    """
    started = _completed(yaml.safe_load((path / "config.yaml").read_text()), config)
    return differences(_compared(started), _compared(plain(config)))


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    """What must be the same to continue a run: all but how the folder is written and that it is continued."""
    return {name: value for name, value in config.items() if name not in ("out", "resume")}


def _completed(old: Any, config: Any) -> Any:
    """A configuration that an older version wrote, with the options that it did not know at their defaults."""
    if not isinstance(old, dict):
        return old
    whole = dict(old)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in old:
            if dataclasses.is_dataclass(value):
                whole[field.name] = _completed(old[field.name], value)
        elif field.default is not dataclasses.MISSING:
            whole[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            whole[field.name] = plain(field.default_factory())
    return whole


def nothing_computed(path: Path) -> bool:
    """Whether a folder is empty, or was left by a start that failed before it had computed anything."""
    inside = {file.name for file in path.iterdir() if not is_left_over(file.name)}
    return not inside or (inside <= {"config.yaml", "environment.json"} and "config.yaml" in inside)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of a file of lines; a last line cut off by a kill is dropped."""
    if not path.exists():
        return
    for line in path.read_text().split("\n"):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return  # only the line that was being written when the process died can be incomplete
