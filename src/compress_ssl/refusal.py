"""What we say to someone whose input cannot be used: expected, got, what to do.

A `Refusal` is a `ValueError` that was written for a reader. The command line prints its one sentence and
leaves with exit code 2; every other exception is our own mistake and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


class Refusal(ValueError):
    """Input that cannot be used, told in one sentence: what was expected, what came, what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a refusal: the known name closest to `name`, else all of them if they are few.

    >>> nearest("compres_1q", ["compress_1q", "compress_2q"])
    "did you mean 'compress_1q'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}."


@contextlib.contextmanager
def about(key: str) -> Iterator[None]:
    """What is refused inside is about the key of a file, and says so; flags that it names become keys.

    >>> with about("objectives.crd"):
    ...     raise Refusal("--objective.head-width expected at least 1, got 0: the authors' is 128")
    Traceback (most recent call last):
        ...
    compress_ssl.refusal.Refusal: objectives.crd: objective.head_width expected at least 1, got 0: the authors' is 128
    """
    try:
        yield
    except Refusal as refusal:
        raise Refusal(f"{key}: {as_keys(str(refusal)).removeprefix(f'{key}: ').removeprefix(f'{key} ')}") from None


def as_keys(sentence: str) -> str:
    """The sentence with the flags in it as the keys that a file has for them; a command between backticks stays.

    >>> as_keys("--batch-size expected 1 or more, got 0: see `compress-ssl distill --help`")
    'batch_size expected 1 or more, got 0: see `compress-ssl distill --help`'
    """

    def told(found: re.Match[str]) -> str:
        return found[0] if found[1] is None else found[1].replace("-", "_")

    return re.sub(r"`[^`]*`|(?<!\S)--([a-z][\w.-]*\w)", told, sentence)
