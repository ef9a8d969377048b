"""Reads and writes untrusted JSON: canonical bytes, limits, and values as messages repeat them."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping

# Characters of a value from outside that a message repeats.
SHOWN = 80
# Levels of nesting: a schedule's weights are at 4, and what reads or writes JSON recurses.
MAX_DEPTH = 16

_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8: equal values give equal bytes."""
    return _CANONICAL.encode(value).encode("utf-8")


def is_deep(data: object) -> bool:
    """Whether a value read from JSON has more than MAX_DEPTH levels of objects and lists."""
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for value in level
            if isinstance(value, Mapping | list | tuple)
            for child in (value.values() if isinstance(value, Mapping) else value)
        ]
    return bool(level)


def shown(value: object) -> str:
    """A value from outside as messages repeat it: printable characters alone, one short line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def is_whole_number(value: object) -> bool:
    """Whether a value from outside is an integer, and small enough to become a float."""
    return (
        isinstance(value, numbers.Integral)
        and not isinstance(value, bool)
        and abs(int(value)) < 2**63
    )


def is_number(value: object) -> bool:
    """Whether a value from outside is a real number that `float` takes."""
    return is_whole_number(value) or (
        isinstance(value, numbers.Real) and not isinstance(value, int)
    )
