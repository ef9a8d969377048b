"""Figure 8: fidelity for its cost, a line a method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.optimize import isotonic_regression

from jobs._shared.drawing import COLOURS, FONT, drawing, error_of, unit
from jobs.evaluate.figures.families import family
from jobs.evaluate.results import Result
from jobs.evaluate.table import FULL, PAPER
from meancache.quality import Summary

# Leading digits of the numbers on an axis, the coarsest first, and how many make an axis.
_ROUND = (
    ("1", "2", "5"),
    ("1", "1.5", "2", "3", "5", "7"),
    tuple(f"{tenths / 10:g}" for tenths in range(10, 100)),
    tuple(f"{hundredths / 100:g}" for hundredths in range(100, 1000)),
)
LEAST_TICKS = 3
_SHORT = {"pyramid-attention-broadcast": "pyramid-attention"}


@dataclass(frozen=True)
class Point:
    """A method on a chart: what it cost, and its fidelity in dB."""

    cost: float
    fidelity: Summary


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no cheaper or equally cheap one beats, by rising cost."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.fidelity.mean)):
        if not kept or point.fidelity.mean > kept[-1].fidelity.mean:
            kept.append(point)
    return kept


def fidelity(found: Sequence[Result], cost: str, measure: str = "psnr") -> str | None:
    """Figure 8: fidelity for cost, a line a method, with its standard errors.

    A method's settings that another of its settings beats at no more cost are left out, so each
    method shows its best face. Videos equal to the reference (infinite PSNR) have no place.

    Args:
        found: the results.
        cost: 'seconds' of the denoising loop, or 'share' of the full run's transformer FLOPs.
        measure: 'psnr', against the full run, or 'psnr_fine', against the fine solution; there
            the full run is shown too.

    Returns:
        None where nobody has both numbers.
    """
    fronts = {}
    for method in dict.fromkeys(one.method for one in found if one.method != FULL):
        points = front(_points((one for one in found if one.method == method), cost, measure))
        if points:
            fronts[method] = points
    if not fronts:
        return None
    words = {"seconds": "seconds in the denoising loop", "share": "share of the transformer's work"}
    goal = {"psnr": "the full run", "psnr_fine": "the fine solution"}[measure]
    label = f"PSNR against {goal} by {words[cost]}. " + " ".join(
        _spoken(method, fronts[method], cost) for method in fronts if family(method) != "cache"
    )
    with drawing(f"fidelity-{cost}-{measure}", 360, label, right=128) as (axes, done):
        costs = [point.cost for points in fronts.values() for point in points]
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.08, max(costs) * 1.08)
        for method, points in reversed(fronts.items()):  # ours last, so on top
            _curve(axes, method, points)
        if measure == "psnr_fine":
            _full_run(axes, found)
        axes.margins(y=0.04)
        axes.xaxis.set_major_locator(FixedLocator(ticks(*axes.get_xlim())))
        shown = (lambda x, _: f"{100 * x:.3g}%") if cost == "share" else (lambda x, _: f"{x:g} s")
        axes.xaxis.set_major_formatter(FuncFormatter(shown))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(words[cost])
        unit(axes, f"dB to {goal}")
        _direct_labels(axes, {method: points[-1] for method, points in fronts.items()})
        return done()


def ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis from `low` to `high`: several, and far enough apart.

    The coarsest round numbers of which three lie within, without those nearer to the one before
    than a seventh of the axis.
    """
    lowest, highest = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found: list[float] = []
    for digits in _ROUND:
        found = [
            float(f"{digit}e{power}")
            for power in range(lowest, highest + 1)
            for digit in digits
            if low <= float(f"{digit}e{power}") <= high
        ]
        if len(found) >= LEAST_TICKS:
            break
    apart, kept = (high / low) ** (1 / 7), found[:1]
    for value in found[1:]:
        if value >= kept[-1] * apart:
            kept.append(value)
    return kept


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending heights moved apart to at least `gap`, within [low, high], as little as possible.

    Less i * gap the heights need only ascend: their least-squares fit is an isotonic regression.
    """
    places = gap * np.arange(len(wanted))
    offsets = isotonic_regression(np.asarray(wanted) - places).x
    ceiling = high - gap * (len(wanted) - 1)
    return (np.minimum(np.maximum(offsets, low), ceiling) + places).tolist()


def _points(found: Iterable[Result], cost: str, measure: str) -> Iterator[Point]:
    for one in found:
        price, summary = getattr(one, cost), getattr(one, measure)
        if price and summary is not None and math.isfinite(summary.mean):
            yield Point(price, summary)


def _spoken(method: str, points: Sequence[Point], cost: str) -> str:
    """A curve in words, for those who do not see it."""
    said = (
        f"{point.fidelity.mean:.1f} dB at "
        + (f"{100 * point.cost:.0f}%" if cost == "share" else f"{point.cost:.2g} s")
        for point in points
    )
    return f"{method}: {', '.join(said)}."


def _curve(axes: Axes, method: str, points: Sequence[Point]) -> None:
    ours = method == "fitted"
    strong = ours or method == PAPER
    axes.errorbar(
        [point.cost for point in points],
        [point.fidelity.mean for point in points],
        [error_of(point.fidelity) for point in points],
        color=COLOURS[family(method)],
        linewidth=3 if ours else 2 if strong else 1.2,
        elinewidth=1.5 if strong else 0.8,
        marker="o",
        markersize=6 if ours else 4.5 if strong else 3,
        alpha=1 if strong else 0.8,
    )


def _full_run(axes: Axes, found: Sequence[Result]) -> None:
    for one in found:
        if one.method == FULL and one.psnr_fine is not None:
            height = one.psnr_fine.mean
            axes.axhline(height, color=COLOURS["ink"], linewidth=1.2, dashes=(4, 3))
            axes.annotate(
                f"full run: {height:.1f}",
                (0, height),
                (4, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
            )


def _direct_labels(axes: Axes, ends: Mapping[str, Point]) -> None:
    """Each curve's name right of the plot, at its end's height where there is room."""
    axes.autoscale_view()  # else the limits are settled only in the end
    at = {name: axes.transData.transform((p.cost, p.fidelity.mean)) for name, p in ends.items()}
    box = axes.get_window_extent()
    names = sorted(at, key=lambda name: float(at[name][1]))
    heights = spread([float(at[name][1]) for name in names], FONT + 2.5, box.y0, box.y1 + 14)
    for name, height in zip(names, heights, strict=True):
        strong = name in ("fitted", PAPER)
        axes.annotate(
            _SHORT.get(name, name[:21]),
            tuple(at[name]),
            (box.x1 + 14, height),
            xycoords="figure pixels",
            textcoords="figure pixels",
            va="center",
            color=COLOURS[family(name)],
            weight="bold" if strong else "normal",
            size=FONT if strong else FONT - 1.5,
            arrowprops={
                "arrowstyle": "-",
                "color": COLOURS[family(name)],
                "linewidth": 0.7,
                "alpha": 0.45,
                "shrinkA": 3,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
