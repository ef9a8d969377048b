"""What the HTML pages share: a Jinja environment each, and numbers as cells show them.

Pages are self-contained: nothing is fetched from anywhere.
"""

from __future__ import annotations

import math

import jinja2

from meancache.quality import Summary


def environment(room: str) -> jinja2.Environment:
    """An environment of the templates of a command's room and of those that pages share.

    Args:
        room: the command's name, such as 'render'.
    """
    loaders = [jinja2.PackageLoader(package) for package in (f"jobs.{room}", "jobs._shared")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined
    )


def plus_minus(summary: Summary | None, digits: int = 1, scale: float = 1.0) -> str:
    """'38.7 ± 0.6': the mean and its standard error; the mean alone where the error is unknown."""
    if summary is None:
        return "–"
    error = summary.standard_error * scale
    mean = number(summary.mean * scale, digits)
    return f"{mean} ± {error:.{digits}f}" if math.isfinite(error) else mean


def number(value: float | None, digits: int = 1) -> str:
    """A number for a cell; infinite where two videos are identical."""
    if value is None or math.isnan(value):
        return "–"
    text = "∞" if math.isinf(value) else f"{abs(value):.{digits}f}"
    return f"−{text}" if value < 0 and text.strip("0.") else text


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{number(100 * share, digits)}%"
