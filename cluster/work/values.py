"""Values of a prompts file: what counts as a text, a whole number, a number and an id.

pandas and DuckDB turn columns of integers with a gap into floats and decimals. Such a value is
taken where it is exactly whole and small enough that the float cannot have lost a digit.
"""

from __future__ import annotations

import math
import re
import uuid
from decimal import Decimal
from typing import Any

from meancache.errors import InputError
from meancache.json_values import shown

MAX_PROMPT_ID = 256
# From here on a float64 does not hold every integer: one that was read may have been another.
EXACT_FLOAT = 2**53

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


class PromptsError(InputError):
    """A prompts file cannot be used; the message names the rows and the rule."""


def text(name: str, value: Any) -> str:
    """The value as it is. Raises PromptsError where it is no text that UTF-8 and people can read.

    NUL is refused: it is what UTF-16 without a mark looks like, and C programs cut text there.
    """
    if not isinstance(value, str):
        raise PromptsError(f"{name} must be text, not {type(value).__name__}")
    if _SURROGATE.search(value):
        raise PromptsError(f"{name} holds a lone surrogate, which is no text; remove it")
    if "\0" in value:
        raise PromptsError(f"{name} holds a NUL character; remove it")
    return value


def prompt_id(value: Any) -> str:
    """An id as text: that of an integer is its digits, that of a UUID its usual form."""
    if isinstance(value, uuid.UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        value = str(value)
    elif isinstance(value, float | Decimal):
        value = str(whole("prompt_id", value))
    value = text("prompt_id", value)
    if not 1 <= len(value) <= MAX_PROMPT_ID:
        raise PromptsError(f"prompt_id has {len(value)} characters, not 1 to {MAX_PROMPT_ID}")
    return value


def whole(name: str, value: Any) -> int:
    """The integer that a value is: 7, 7.0, a decimal 7.00, or one of these in digits."""
    found = value
    if isinstance(value, str):
        found = _digits(value)
    if type(found) is int:
        return found
    if not isinstance(found, float | Decimal) or not math.isfinite(found):
        raise PromptsError(f"{name} {shown(value)} must be a whole number")
    if not -EXACT_FLOAT < found < EXACT_FLOAT:
        raise PromptsError(
            f"{name} {shown(value)} is a float too large to be exact; write it as an integer"
        )
    if found != int(found):
        raise PromptsError(f"{name} {shown(value)} must be a whole number")
    return int(found)


def _digits(value: str) -> int | Decimal | None:
    """The number that a text says, or None."""
    digits = value.strip(" ")
    # Python also reads 1_000 and Arabic digits as numbers; a person may not.
    if not _NUMBER.fullmatch(digits):
        return None
    try:
        return int(digits) if _INTEGER.fullmatch(digits) else Decimal(digits)
    except (ValueError, ArithmeticError):  # more digits than Python reads
        return None


def number(name: str, value: Any) -> float:
    """The finite number that a value is, or that its text says."""
    try:
        if isinstance(value, str):
            if not _NUMBER.fullmatch(value.strip(" ")):
                raise ValueError
        elif isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise ValueError
        found = float(value)
        if found - found != 0:  # NaN or infinite
            raise ValueError
    except (ValueError, ArithmeticError):
        raise PromptsError(f"{name} {shown(value)} must be a number") from None
    return found
