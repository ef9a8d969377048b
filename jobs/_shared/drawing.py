"""How figures of pages are drawn: axes in one style, and what makes an inline SVG of them.

Text stays text and every colour is a CSS variable of the page that holds the figure, so that one
drawing serves light and dark.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meancache.quality import Summary

# One unit is a CSS pixel on a page 440 wide: legible on a phone, two abreast on a desktop.
WIDTH = 440
FONT = 12.5
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
LEFT, TOP, BOTTOM = 40, 24, 40


def unit(axes: Axes, what: str) -> None:
    """The y axis's unit, upright above it: nobody should have to tilt their head."""
    axes.annotate(
        what,
        (0, 1),
        (-LEFT + 6, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        color=COLOURS["soft"],
    )


def key(axes: Axes) -> None:
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


def error_of(summary: Summary) -> float:
    """A single sample has no known error, so it gets no bar."""
    return summary.standard_error if math.isfinite(summary.standard_error) else 0.0


@contextmanager
def drawing(
    name: str, height: float, label: str, right: float, top: float = TOP
) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes in the house's style, and what turns them into SVG."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        axes = figure.add_axes(
            (
                LEFT / WIDTH,
                BOTTOM / height,
                (WIDTH - LEFT - right) / WIDTH,
                (height - BOTTOM - top) / height,
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
