"""Numbers as flags give them, for argparse's `type`."""

from __future__ import annotations

import argparse
import math


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number")
    return number


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def share(text: str) -> float:
    """A part of a whole, above 0 and up to 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return number


def not_negative(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return number


def budgets(text: str) -> tuple[int, ...]:
    """'8,10,12' as numbers, ascending, each once."""
    try:
        return tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"budgets {text!r} must be numbers such as 8,10,12"
        ) from None
