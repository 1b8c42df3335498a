"""Numbers and names as a reader reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from markupsafe import Markup

THIN = "\u202f"  # narrow space between a number and its unit
PREFIXES = ("", "k", "M", "G", "T")


def finite(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}{THIN}%"


def of_ten(fraction: float) -> str:
    return f"{10 * fraction:.1f}"


def whole(number: float) -> str:
    """1234567 -> "1 234 567"."""
    return f"{number:,.0f}".replace(",", THIN)


def short(number: float, *, unit: str = "") -> str:
    """Three digits that count: 1234567 -> "1.23 M"; with unit "B", bytes."""
    power = 0
    while abs(number) >= 999.5 and power < len(PREFIXES) - 1:
        number, power = number / 1000, power + 1
    digits = f"{number:.3g}" if abs(number) < 999.5 else f"{number:.0f}"
    return f"{digits}{THIN}{PREFIXES[power]}{unit}".rstrip(THIN)


def times(ratio: float) -> str:
    """11.21 -> "11.2×", 15.03 -> "15×", 140.4 -> "140×"."""
    return (f"{ratio:.1f}".removesuffix(".0") if ratio < 20 else whole(ratio)) + "×"


def against(student: float | None, teacher: float | None, more: str, less: str) -> str:
    """Student beside teacher in words: "11.2× fewer", "1.3× more", "the same" (within 2 %), "" where one is missing."""
    if not student or not teacher:
        return ""
    ratio = teacher / student
    if 0.98 < ratio < 1.02:
        return "the same"
    return f"{times(ratio)} {less}" if ratio > 1 else f"{times(1 / ratio)} {more}"


def and_list(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def breakable(name: str) -> Markup:
    """A name that may go on in the next line after "/", "_", "-" and the like."""
    return Markup("<wbr>").join(re.findall(r"[^/_@·-]*[/_@·-]?", name))
