"""Check plain values from JSON files against a schema.

    {"epoch": COUNT, "loss": NUMBER, "best": (None, [NUMBER]), "name": str}

A dict requires its keys; a key that ends with `?` is optional. Other keys are ignored, or have the schema of the key
`*`. A list takes any number of items of its one schema, and a tuple lists alternatives. A type takes its instances; a
string, None or a plain number takes only that value. Numbers are finite and bounded, so that results computed from them
are finite, too; `true` is not a number.

Written by hand because msgspec and pydantic need a class per file, cannot check a million integers by their extremes,
and word their errors for programmers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnlab.io.errors import CnnlabError

_NAMES: dict[Any, str] = {str: "a string", bool: "true or false", dict: "an object", list: "a list", None: "null"}


@dataclass(frozen=True)
class Number:
    """A number between two bounds, perhaps a whole one."""

    low: float = -1e100
    high: float = 1e100
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return kind if self.high == 1e100 else f"{kind} from {self.low:g} to {self.high:g}"


NUMBER = Number()
POSITIVE = Number(1e-100)
COUNT = Number(0, 2**53, whole=True)


def check(path: Path, value: Any, want: Any, remedy: str = "restore it from a copy") -> None:
    """Raise CnnlabError, naming the file and the place in it, if its `value` does not match the schema `want`."""
    if fault := validation_error(value, want):
        raise CnnlabError(f"{path} is damaged: {fault}; {remedy}")


def validation_error(value: Any, want: Any, place: str = "") -> str:
    """Return where and how `value` differs from the schema `want`; "" if it matches."""
    if isinstance(want, tuple):
        if any(not validation_error(value, one) for one in want):
            return ""
        return f"its {place} should be {' or '.join(dict.fromkeys(map(_name, want)))}"
    if isinstance(want, dict) and isinstance(value, dict):
        missing = [key for key in want if key != "*" and not key.endswith("?") and key not in value]
        if missing:
            inside = f" in its {place}" if place else ""
            return f"it lacks {', '.join(missing)}{inside}"
        pairs = [(key.removesuffix("?"), form) for key, form in want.items() if key != "*"]
        if "*" in want:
            pairs += [(key, want["*"]) for key in value.keys() - dict(pairs).keys()]
        errors = (
            validation_error(value[key], form, f"{place}.{key}" if place else key)
            for key, form in pairs
            if key in value
        )
        return next(filter(None, errors), "")
    if isinstance(want, list) and isinstance(value, list):
        one = want[0]
        if one is str and all(type(v) is str for v in value):  # there may be millions
            return ""
        if isinstance(one, Number) and value and all(type(v) is int for v in value):
            value = [min(value), max(value)]
        return next(filter(None, (validation_error(v, one, f"{place}[{i}]") for i, v in enumerate(value))), "")
    if isinstance(want, Number):
        fits = type(value) in ((int,) if want.whole else (int, float))
        fits = fits and want.low <= value <= want.high
    elif want is None or isinstance(want, str | int):
        fits = type(value) is type(want) and value == want
    else:
        fits = type(value) is want
    return "" if fits else f"its {place} should be {_name(want)}"


def _name(want: Any) -> str:
    if isinstance(want, Number):
        return str(want)
    if isinstance(want, str | int):
        return repr(want)
    if isinstance(want, dict | list):
        want = type(want)
    return _NAMES.get(want, "something else")
