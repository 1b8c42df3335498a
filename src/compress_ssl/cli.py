"""The command line: `compress-ssl VERB [CONFIG.yaml …] [--dotted.option value …]`.

Options are the fields of the verb's Config; files give defaults, flags override them. Nothing heavy is imported before
the verb is known: `compress-ssl --help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import io
import os
import re
import shlex
import sys
import types
import typing
from typing import Any

from compress_ssl import __version__
from compress_ssl.refusal import Refusal, nearest

VERBS = {
    "demo": "watch it work: digits, a teacher, students by 1q and 2q, a page; 3 minutes, no download",
    "pretrain": "train a teacher on your images by self-supervision",
    "models": "what can be teacher or student, with sizes and licences; what a checkpoint file is",
    "doctor": "look at data, teacher and student before spending hours: speeds, faults, advice",
    "shrink": "a data set -> a copy of small images, read several times as quickly",
    "embed": "an encoder over a data set -> a table of stored embeddings",
    "distill": "compress a teacher into a small student",
    "evaluate": "score teacher and students on the same images",
    "voc": "score an encoder on PASCAL VOC: which classes are in a picture, or where",
    "benchmark": "objectives × students × seeds from one file -> one table, resumed and shared out",
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
            return _say(f"expected room on the disk, got none left while writing{place}: free some space, then run it "
                        "again, a training with --resume; what was saved before is whole")  # fmt: skip
        if trouble.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _say(
                f"expected permission, got {trouble.strerror!r} for{place}: choose another folder or change its rights"
            )
        if trouble.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP):
            return _say(f"expected a path that can be used, got {trouble.strerror!r} for{place}: choose another")
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
        again = shlex.join(["compress-ssl", verb, *rest, *([] if "--resume" in rest else ["--resume"])])
        can_resume = hasattr(config, "resume")  # the demo starts over instead
        print(f"{trouble}\ncontinue with: {again}" if can_resume else str(trouble), file=sys.stderr)
        return 130
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("RANK", "0")) == 0:
        if verb in ("distill", "evaluate"):
            from compress_ssl import report

            result = report.run(report.Config(runs=(str(result),)))
        if result is not None:
            print(result)
    return 0


def parse(kind: type, arguments: list[str], program: str) -> Any:
    """Flags and files -> a Config. Files come first on the line; a later one overrides an earlier one, flags all files.

    Raises: Refusal if an option is unknown, missing, or has a value that it cannot take; SystemExit after --help.
    """
    import dataclasses
    import inspect

    import tyro

    from compress_ssl.settings import build, choose, gather, options

    files = []
    while arguments and arguments[0].endswith((".yaml", ".yml")):
        files.append(arguments[0])
        arguments = arguments[1:]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    arguments, chosen = _choose_families(arguments, fields)
    families = {name: folder for name, folder in FAMILIES.items() if name in fields}
    settings = gather(kind, files, families)
    for name, value in chosen.items():
        settings[name] = {**choose(settings.get(name), value), "name": value}
    default = build(kind, settings, families)

    asked = {"-h", "--help"} & set(arguments) or any(
        word.startswith("--tyro-") for word in arguments
    )  # shell completion
    known = options(kind, default)
    chosen_by = [f"--{family}" for family in families]  # taken out of the flags before
    given = {} if asked else _given(arguments, known, program, also=chosen_by)
    arguments = arguments if asked else _with_nones(arguments, known)
    missing = [
        name for name in known if "." not in name and name not in given and getattr(default, name, 0) is tyro.MISSING
    ]
    if missing and not asked:
        flags = ", ".join(map(_flag, missing))
        raise Refusal(
            f"expected {flags}, got nothing for {'it' if len(missing) == 1 else 'them'}: see {program} --help"
        )
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            config, rest = tyro.cli(
                kind,
                args=arguments,
                default=default,
                prog=program,
                description=inspect.getdoc(kind),
                return_unknown_args=True,
            )
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except SystemExit as end:
        if not end.code:
            raise
        raise _refused(told.getvalue(), given, known, program) from None
    if rest:
        files_first = any(word.endswith((".yaml", ".yml")) for word in rest)
        advice = "name files before the options" if files_first else f"see {program} --help"
        raise Refusal(f"expected options and their values, got {shlex.join(rest)} too: {advice}")
    return config


def _given(arguments: list[str], known: dict[str, Any], program: str, *, also: list[str]) -> dict[str, list[str]]:
    """Option -> the words that follow it.

    Args:
        also: flags that there are beside the options.
    Raises: Refusal if there is no such option.
    """
    given: dict[str, list[str]] = {}
    words: list[str] = []
    for argument in arguments:
        if not argument.startswith("--"):
            words.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        name = flag[2:].replace("-", "_")
        positive = re.sub(r"(^|\.)no_", r"\1", name)  # --no-strict
        if name not in known and known.get(positive) is not bool:
            close = _nearest(flag, [*also, *map(_flag, known)])
            advice = f"did you mean {close!r}?" if close else f"see {program} --help"
            raise Refusal(f"expected an option of {program}, got {flag}: {advice}")
        if name in given and _takes_several(known[name]):
            raise Refusal(f"expected {flag} once, got it twice, of which one would be lost: write its values one after "
                          f"the other, {flag} A B")  # fmt: skip
        words = given[name if name in known else positive] = [value] if equals else []
    return given


def _nearest(flag: str, flags: list[str]) -> str | None:
    """The flag that was meant: the same in a group or out of it, one that begins so, or one spelt much alike."""
    last = flag[2:].rpartition(".")[2]
    whole = [one for one in flags if one.endswith(f".{flag[2:]}") or one == f"--{last}"]
    whole += sorted((one for one in flags if one.startswith(flag)), key=len)
    if whole:
        return whole[0]
    spelt = {one[2:]: one for one in flags}
    if len(flag) > len("--lr"):  # two letters are much like any four
        spelt = {one.rpartition(".")[2]: one for one in reversed(flags)} | spelt
    close = difflib.get_close_matches(flag[2:], spelt, n=1, cutoff=0.6)
    return spelt[close[0]] if close else None


def _takes_several(kind: Any) -> bool:
    return any(typing.get_origin(one) is tuple for one in (kind, *typing.get_args(kind)))


def _with_nones(arguments: list[str], known: dict[str, Any]) -> list[str]:
    """`none` as tyro spells it, where an option takes it; a folder may well be called none."""
    written, option = [], ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            option = flag[2:].replace("-", "_")
        takes_none = types.NoneType in typing.get_args(known.get(option))
        if takes_none and argument == "none":
            argument = "None"
        elif takes_none and equals and value == "none":
            argument = f"{flag}=None"
        written.append(argument)
    return written


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _refused(told: str, given: dict[str, list[str]], known: dict[str, Any], program: str) -> Refusal:
    """What tyro has against the values, in one sentence: by our own judgement, else in tyro's words without its box."""
    from compress_ssl.settings import fit_words

    for option, words in given.items():
        if known[option] is not bool:
            try:
                fit_words(words, known[option], _flag(option))
            except Refusal as refusal:
                return refusal
    blocks: list[list[str]] = [[]]  # between the rules of its box, which is drawn in ASCII where it must be
    for line in told.splitlines():
        text = line.strip(" │|╭╮╰╯─")  # a dash may begin an option that a line was broken before
        if text.strip("-+") and not line.startswith("╭"):
            blocks[-1].append(text)
        elif blocks[-1]:
            blocks.append([])
    sentence = " ".join(blocks[0 if "╭" in told else 1])
    own = re.search(
        r"(--\S+ (\S+ )?)?expected .*", sentence
    )  # a refusal of a Config's own, which tyro has put in a box
    if own:
        return Refusal(own[0])
    return Refusal(f"expected values that the options take, got: {sentence}: see {program} --help")


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
