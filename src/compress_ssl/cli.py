"""The command line: `compress-ssl VERB [CONFIG.yaml …] [--dotted.option value …]`.

Options are the fields of the verb's Config; files give defaults, flags override them. Nothing heavy is imported before
the verb is known: `compress-ssl --help` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

from compress_ssl import __version__
from compress_ssl.refusal import Refusal, nearest

VERBS = {
    "demo": "watch it work: digits, a teacher, students by 1q and 2q, a page; 3 minutes, no download",
    "pretrain": "train a teacher on your images by self-supervision",
    "embed": "an encoder over a data set -> a table of stored embeddings",
    "distill": "compress a teacher into a small student",
    "evaluate": "score teacher and students on the same images",
    "report": "one self-contained HTML page from run folders",
}
# field of a Config that is chosen by the name of a file, and the family it is a file of
FAMILIES = {"objective": "objectives", "method": "pretraining"}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; 0, or 2 for input that cannot be used, or 130 for an interruption."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except Refusal as refusal:
        return _say(str(refusal))
    except OSError as trouble:
        place = f" {trouble.filename}" if trouble.filename else ""
        if trouble.errno in (errno.ENOSPC, errno.EDQUOT):
            return _say(f"expected room on the disk, got none left while writing{place}: free some space, then use "
                        "--resume; what was saved before is whole")  # fmt: skip
        if trouble.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _say(f"expected permission, got {trouble.strerror!r} for{place}: choose another folder or change its rights")
        raise
    except KeyboardInterrupt:
        return _say("interrupted", code=130)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"compress-ssl {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise Refusal(f"expected a verb, got {verb!r}: {nearest(verb, VERBS)}")
    module = importlib.import_module(f"compress_ssl.{verb}")
    config = parse(module.Config, rest, f"compress-ssl {verb}")
    try:
        result = module.run(config)
    except Exception as trouble:
        if type(trouble).__name__ != "Interrupted":
            raise
        print(f"{trouble}\ncontinue with: compress-ssl {' '.join([verb, *(rest if '--resume' in rest else [*rest, '--resume'])])}",
              file=sys.stderr)  # fmt: skip
        return 130
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("RANK", "0")) == 0:
        if verb in ("distill", "evaluate"):
            from compress_ssl import report

            result = report.run(report.Config(runs=(str(result),)))
        print(result)
    return 0


def parse(kind: type, arguments: list[str], program: str) -> Any:
    """Flags and files -> a Config. Files come first on the line; a later one overrides an earlier one."""
    import tyro

    files = []
    while arguments and arguments[0].endswith((".yaml", ".yml")):
        files.append(arguments[0])
        arguments = arguments[1:]
    import dataclasses

    fields = {field.name: field for field in dataclasses.fields(kind)}
    arguments, chosen = _choose_families(arguments, fields)
    from compress_ssl.settings import build, read

    settings: dict[str, Any] = {}
    for file in files:
        settings = _merge(settings, read(file))
    for name, value in chosen.items():
        given = settings.get(name)
        if not isinstance(given, dict) or given.get("name") != value:
            settings[name] = {"name": value}
    default = build(kind, settings, FAMILIES)
    return tyro.cli(kind, args=arguments, default=default, prog=program, description=kind.__doc__)


def _choose_families(arguments: list[str], fields: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Take `--objective NAME` out of the flags: it decides which flags there are."""
    rest: list[str] = []
    chosen: dict[str, str] = {}
    place = 0
    while place < len(arguments):
        flag, equals, value = arguments[place].partition("=")
        name = flag.removeprefix("--").removesuffix(".name")
        if flag.startswith("--") and name in FAMILIES and name in fields:
            if not equals:
                place += 1
                if place == len(arguments):
                    raise Refusal(f"--{name} expected a name, got nothing: write one after it")
                value = arguments[place]
            chosen[name] = value
        else:
            rest.append(arguments[place])
        place += 1
    return rest, chosen


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _help() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return (
        "Compress a self-supervised vision encoder into a small one that keeps its neighbourhoods.\n\n"
        "usage: compress-ssl VERB [CONFIG.yaml …] [--option value …]\n\n"
        f"{lines}\n\ncompress-ssl VERB --help lists a verb's options. compress-ssl --version prints the version."
    )


def _say(sentence: str, code: int = 2) -> int:
    print(f"compress-ssl: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
