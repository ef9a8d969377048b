"""The evaluation's figures, each a pure function from numbers to one inline SVG.

Text stays text and every colour is a CSS variable of the page that holds the figure, so that one
drawing serves light and dark. Knows what a result, a graph and a schedule are; nothing of HTML.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jobs.evaluate.results import Result
from jobs.evaluate.table import FULL, PAPER
from jobs.refresh.drift import Drift
from meancache.calibration import Calibration
from meancache.quality import Summary
from meancache.schedule import Schedule
from meancache.velocity import average_velocity

# One unit is a CSS pixel on a page 440 wide: legible on a phone, two abreast on a desktop.
WIDTH = 440
FONT = 12.5
# Steps that the average velocity of Figure 2 looks ahead: the paper's longest span.
WINDOW = 5

# The page's variables, by the light theme's values: matplotlib draws with these, `_svg` puts the
# variables in their place. No two may be equal.
COLOURS = {
    "ink": "#1b1d22",
    "soft": "#676d78",
    "line": "#e3e4e8",
    "off": "#e3e6ec",
    "fitted": "#2f6fed",
    "paper": "#d9730d",
    "solver": "#0f8f73",
    "refined": "#9b51c9",
    "cache": "#8b919c",
}
_FAMILIES = {
    "fitted": "fitted",
    "secant": "fitted",
    PAPER: "paper",
    "euler": "solver",
    "unipc": "solver",
    "dpm-solver++": "solver",
    "optimal-stepsize": "solver",
    "refined": "refined",
}
_SHORT = {"pyramid-attention-broadcast": "pyramid-attention"}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": FONT,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.labelsize": FONT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 1,
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "butt",
}
_LEFT, _TOP, _BOTTOM = 40, 24, 40


@dataclass(frozen=True)
class Point:
    """A method on a chart: what it cost, and its fidelity in dB."""

    cost: float
    fidelity: Summary


@dataclass(frozen=True)
class Promise:
    """What a schedule was expected to reach, and what it did, in dB."""

    name: str
    method: str
    predicted: float
    measured: Summary


def family(method: str) -> str:
    """The name of a method's colour: who is ours, the paper's, a solver, a cache."""
    return _FAMILIES.get(method, "cache")


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
            the full run is drawn too.

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
    with _drawing(f"fidelity-{cost}-{measure}", 360, label, right=128) as (axes, done):
        costs = [point.cost for points in fronts.values() for point in points]
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.08, max(costs) * 1.08)
        for method, points in reversed(fronts.items()):  # ours last, so on top
            _curve(axes, method, points)
        if measure == "psnr_fine":
            _full_run(axes, found)
        axes.margins(y=0.04)
        if cost == "share":
            axes.xaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.3, 0.5, 1.0]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}%"))
        else:
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(words[cost])
        _say(axes, f"dB to {goal}")
        _direct_labels(axes, {method: points[-1] for method, points in fronts.items()})
        return done()


def computed_steps(schedules: Sequence[Schedule]) -> str | None:
    """Figure 6: which steps run the transformer, a row a schedule, noise on the left.

    Returns:
        None where there is no schedule.
    """
    if not schedules:
        return None
    row_height = 17
    ordered = sorted(schedules, key=lambda one: (one.method, one.budget))
    groups = [
        (method, list(rows)) for method, rows in itertools.groupby(ordered, lambda one: one.method)
    ]
    steps = max(one.num_inference_steps for one in schedules)
    height = _BOTTOM + row_height * (len(ordered) + 1.5 * len(groups))
    label = "Computed steps. " + " ".join(
        f"{one.method}, budget {one.budget}: {', '.join(map(str, one.computed_steps))}."
        for one in ordered
    )
    with _drawing("computed-steps", height, label, right=8, top=0) as (axes, done):
        axes.grid(visible=False)
        y = 0.0
        for method, rows in groups:
            y += 1.5
            colour = COLOURS[family(method)]
            axes.text(-0.5, y - 0.35, method, color=colour, weight="bold")
            for one in rows:
                cells = [(step - 0.5, 0.82) for step in range(one.num_inference_steps)]
                skipped = [cells[k] for k in range(len(cells)) if k not in one.computed_steps]
                axes.broken_barh(skipped, (y + 0.1, 0.8), facecolor=COLOURS["off"], linewidth=0)
                chosen = [cells[k] for k in one.computed_steps]
                axes.broken_barh(chosen, (y + 0.1, 0.8), facecolor=colour, linewidth=0)
                axes.text(-1.2, y + 0.5, str(one.budget), ha="right", va="center", size=FONT - 1)
                y += 1.0
        axes.set_xlim(-0.5, steps - 0.5)
        axes.set_ylim(y, 0.0)
        axes.set_yticks([])
        axes.set_xlabel("denoising step")
        return done()


def velocity_change(graph: Calibration) -> str:
    """Figure 2: how much the velocity, and the average velocity, change from step to step.

    From the mean Gram matrix G of the trajectories: for rows a, b over the steps, the relative
    change is sqrt((b - a) G (b - a)^T / a G a^T). Drawn along sigma, noise on the left: v_k at
    sigma_k, an average in the middle of what it averages, a change between its two ends.

    Raises:
        ValueError: the graph has no trajectory, or no more steps than the window.
    """
    steps = graph.grid.num_inference_steps
    if not graph.trajectories or steps <= WINDOW + 1:
        raise ValueError(
            f"a graph of {len(graph.trajectories)} trajectories of {steps} steps has no velocity "
            f"change to draw; it takes at least one of more than {WINDOW + 1} steps"
        )
    sigmas = graph.grid.array()
    gram = np.mean([one.gram for one in graph.trajectories.values()], axis=0)
    instant = relative_change(np.eye(steps), gram)
    ahead = [average_velocity(sigmas, k, k + WINDOW) for k in range(steps - WINDOW + 1)]
    average = relative_change(np.stack(ahead), gram)
    label = (
        f"Relative change from one step to the next: of the instantaneous velocity, "
        f"{100 * np.median(instant):.1f}% in the median and {100 * instant.max():.0f}% at most; of "
        f"the average velocity over {WINDOW} steps, {100 * np.median(average):.1f}% and "
        f"{100 * average.max():.0f}%."
    )
    with _drawing("velocity-change", 270, label, right=16) as (axes, done):
        middles = (sigmas[:-WINDOW] + sigmas[WINDOW:]) / 2
        for values, places, colour, name, width in (
            (instant, sigmas[:-1], COLOURS["paper"], "instantaneous v", 1.6),
            (average, middles, COLOURS["fitted"], f"average u over {WINDOW} steps", 2.6),
        ):
            between = (places[:-1] + places[1:]) / 2
            axes.plot(between, 100 * values, color=colour, linewidth=width, label=name)
        _key(axes)
        axes.set_xlim(1.02, -0.02)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}%"))
        axes.set_xlabel("sigma: from noise to video")
        _say(axes, "change a step")
        return done()


def cost_drift(found: Drift) -> str:
    """What skipping the step after each step costs now, on the spread of earlier runs."""
    steps = np.arange(len(found.latest))
    lines = np.concatenate([found.latest, found.usual])
    # A spread that few trajectories tell of reaches far beyond the picture.
    low, high = lines.min() / 2, lines.max() * 2
    label = f"Cost of skipping a step. {found}"
    with _drawing("cost-drift", 300, label, right=16) as (axes, done):
        band = np.clip([found.low, found.high], low, high)
        axes.fill_between(steps, *band, facecolor=COLOURS["off"], linewidth=0)
        axes.plot(steps, found.usual, color=COLOURS["soft"], linewidth=1.4, label="earlier runs")
        axes.plot(steps, found.latest, color=COLOURS["fitted"], linewidth=2.4, label="this run")
        moved = found.moved
        axes.scatter(moved, found.latest[moved], s=26, color=COLOURS["paper"], zorder=3)
        _key(axes)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:.1g}"))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("denoising step")
        _say(axes, "cost")
        return done()


def predictions(promises: Sequence[Promise]) -> str | None:
    """Predicted against measured fidelity, a point a schedule; on the diagonal they agree.

    Returns:
        None where there is no promise.
    """
    if not promises:
        return None
    label = "Predicted and measured PSNR. " + " ".join(
        f"{one.name}: {one.predicted:.1f} dB predicted, {one.measured.mean:.1f} measured."
        for one in promises
    )
    with _drawing("predictions", 280, label, right=56) as (axes, done):
        ends = [value for one in promises for value in (one.predicted, one.measured.mean)]
        room = 0.18 * (max(ends) - min(ends)) + 3  # for the names
        span = (min(ends) - room, max(ends) + room / 2)
        axes.plot(span, span, color=COLOURS["soft"], linewidth=1, dashes=(3, 3))
        for one in promises:
            at = (one.predicted, one.measured.mean)
            colour = COLOURS[family(one.method)]
            axes.errorbar(*at, _error(one.measured), color=colour, marker="o", markersize=6)
            # Away from the diagonal.
            below = one.measured.mean < one.predicted
            axes.annotate(
                one.name,
                at,
                (8, -3) if below else (-8, 3),
                textcoords="offset points",
                ha="left" if below else "right",
                va="top" if below else "bottom",
                size=FONT - 1,
            )
        axes.set_xlim(span)
        axes.set_ylim(span)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, prune="lower"))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, prune="lower"))
        axes.set_xlabel("predicted on the calibration trajectories, dB")
        _say(axes, "measured on these pairs, dB")
        return done()


def tails(samples: Mapping[int, Mapping[str, Sequence[float]]]) -> str | None:
    """Every pair's fidelity by budget: the tail is what a mean hides.

    Args:
        samples: budget -> method -> PSNR in dB of each pair.

    Returns:
        None where there is no sample.
    """
    methods = list(dict.fromkeys(name for columns in samples.values() for name in columns))
    if not methods:
        return None
    label = "PSNR of every pair. " + " ".join(
        f"Budget {budget}, {name}: worst {min(values):.1f}, mean {np.mean(values):.1f} dB."
        for budget, columns in sorted(samples.items())
        for name, values in columns.items()
    )
    with _drawing("tails", 340, label, right=8) as (axes, done):
        for place, (_, columns) in enumerate(sorted(samples.items())):
            for name, values in columns.items():
                x = place + 0.46 * (methods.index(name) - (len(methods) - 1) / 2)
                colour = COLOURS[family(name)]
                # The golden ratio spreads neighbours apart, and the same way every time.
                jitter = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.26
                ranked = np.sort(np.asarray(values))
                axes.scatter(x + jitter, ranked, s=9, color=colour, alpha=0.5, linewidths=0)
                mean = float(np.mean(ranked))
                axes.plot([x - 0.17, x + 0.17], [mean, mean], color=colour, linewidth=2.5)
                axes.annotate(
                    f"{ranked[0]:.0f}",
                    (x, ranked[0]),
                    (0, -6),
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    size=FONT - 2,
                    color=colour,
                )
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.02, y=0.09)
        axes.set_xticks(range(len(samples)), [str(budget) for budget in sorted(samples)])
        axes.set_xlabel("budget, forwards")
        _say(axes, "dB")
        for name in methods:
            axes.plot([], [], color=COLOURS[family(name)], label=name)
        _key(axes)
        return done()


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending heights moved apart to at least `gap`, within [low, high], as little as possible.

    Less i * gap the heights need only ascend: the least-squares fit that ascends is found by
    pooling neighbours that do not (isotonic regression).
    """
    pools: list[tuple[float, int]] = []
    for place, height in enumerate(wanted):
        mean, count = height - place * gap, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    offsets = [mean for mean, count in pools for _ in range(count)]
    ceiling = high - gap * (len(offsets) - 1)
    return [min(max(offset, low), ceiling) + place * gap for place, offset in enumerate(offsets)]


def relative_change(rows: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Of each row's velocity to the next one's: (n, T), (T, T) -> (n - 1,)."""
    difference = np.diff(rows, axis=0)
    # Rounding may leave a hair below zero where nothing changes.
    changed = np.einsum("ni,ij,nj->n", difference, gram, difference).clip(min=0.0)
    size = np.einsum("ni,ij,nj->n", rows[:-1], gram, rows[:-1])
    return np.sqrt(changed / size)


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
        [_error(point.fidelity) for point in points],
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


def _error(summary: Summary) -> float:
    """Of one sample nothing is known of the error: no bar."""
    return summary.standard_error if math.isfinite(summary.standard_error) else 0.0


def _direct_labels(axes: Axes, ends: Mapping[str, Point]) -> None:
    """Each curve's name right of the plot, at its end's height where there is room."""
    axes.autoscale_view()  # else the limits are settled only when it is drawn
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


def _say(axes: Axes, what: str) -> None:
    """The y axis's unit, upright above it: nobody should have to tilt their head."""
    axes.annotate(
        what,
        (0, 1),
        (-_LEFT + 6, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        color=COLOURS["soft"],
    )


def _key(axes: Axes) -> None:
    """The names of the lines in their colours, above the plot on the right."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
        labelcolor="linecolor",
        handlelength=0,
        handletextpad=0,
        columnspacing=1.2,
        borderaxespad=0.3,
    )


@contextmanager
def _drawing(
    name: str, height: float, label: str, right: float, top: float = _TOP
) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes in the house's style, and what turns them into SVG."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        axes = figure.add_axes(
            (
                _LEFT / WIDTH,
                _BOTTOM / height,
                (WIDTH - _LEFT - right) / WIDTH,
                (height - _BOTTOM - top) / height,
            )
        )
        axes.spines[:].set_visible(False)
        yield axes, lambda: _svg(figure, label)


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element of a page: its fonts and colours are the page's.

    Ids of reused shapes are hashes salted with the figure's name, so they do not meet those of
    another figure on the page; the other ids say nothing and go.
    """
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True)
    drawn = sink.getvalue()
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r' id="[A-Za-z]+[\w.]*_\d+"', "", body)
    body = re.sub(r'(style="font:[^;"<]*?[\d.]+px) [^;"<]*', r"\1 system-ui, sans-serif", body)
    for role, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{role})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    width, height = figure.get_size_inches() * 72
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" stroke-linejoin="round" '
        f'aria-label="{html.escape(label)}">{body.strip()}'
    )
