"""What we say to someone whose input cannot be used: expected, got, what to do.

A `Refusal` is a `ValueError` that was written for a reader. The command line prints its one sentence and
leaves with exit code 2; every other exception is our own mistake and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Refusal(ValueError):
    """Input that cannot be used, told in one sentence: what was expected, what came, what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a refusal: the known name closest to `name`, else all of them if they are few.

    >>> nearest("compres_1q", ["compress_1q", "compress_2q"])
    "did you mean 'compress_1q'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}."
