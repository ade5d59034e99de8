"""Numbers as a reader wants them: fixed digits, true minus signs, units; `missing` where there is none."""

from __future__ import annotations

import math
import re
import time

MISSING = "missing"
# Controls but for tab and newline, zero-width signs, direction marks.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def number(value: float | None, digits: int = 1) -> str:
    """A number with fixed digits and a true minus, thousands apart; `missing` for None."""
    if value is None:
        return MISSING
    return f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, with a true minus; zero has none."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, digits: int = 1, sign: bool = False) -> str:
    """`0.7 to 2.1`; says so where the data do not determine it."""
    if low is None or high is None:
        return "not determined"
    show = signed if sign else number
    return f"{show(low, digits)} to {show(high, digits)}"


def share(part: float | None, whole: float | None = None, digits: int = 1) -> str:
    """A share in per cent, of a number in [0, 1] or of two counts; `missing` where one is."""
    if part is None or (whole is not None and whole == 0):
        return MISSING
    return f"{number(100 * part / (1 if whole is None else whole), digits)}\N{NO-BREAK SPACE}%"


def p_value(value: float | None) -> str:
    """A p-value with three digits, `< 0.001` below that; `missing` for None."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def visible(text: str) -> str:
    """Text with its invisible characters named, as in ⟨U+202E⟩: controls, and signs that reorder or hide other text."""
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def piece(text: str) -> str:
    """A token's text on one line, its white space shown by signs."""
    return visible(text).translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥"})


def given(value: float, sign: bool = False) -> str:
    """A published number with the digits that it was published with."""
    return f"{value:{'+' if sign else ''}.6g}".replace("-", "\N{MINUS SIGN}")


def size(value: float | None) -> str:
    """Bytes in the largest unit that leaves a number of at least one."""
    if value is None:
        return MISSING
    power = min(4, int(math.log(value, 1000))) if value >= 1 else 0
    return f"{number(value / 1000**power, 0 if power == 0 else 1)} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


def duration(seconds: float | None) -> str:
    """Seconds as `12 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def day(unix: float | None) -> str:
    """A time as `2025-01-31 12:00 UTC`."""
    return MISSING if unix is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix))


FILTERS = {
    "number": number,
    "signed": lambda value, digits=1: MISSING if value is None else signed(value, digits),
    "share": share,
    "given": given,
    "p_value": p_value,
    "piece": piece,
    "size": size,
    "duration": duration,
    "day": day,
}
