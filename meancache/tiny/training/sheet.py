"""Pictures of the embedded model: sheets of its videos, and the loss curves of its training."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from meancache.tiny.captions import Caption

_MARGIN, _GAP, _TILE, _CAPTION_WIDTH = 20, 6, 96, 268  # pixels
_PAPER, _INK, _FAINT = (250, 250, 248), (40, 40, 46), (130, 130, 136)


Video = npt.NDArray[np.float32]
"""(F, H, W, 3), in [0, 1]."""


def draw_samples(rows: Sequence[tuple[Caption, Video]], every: int, file: Path) -> None:
    """A PNG with a row for each (caption, video): every n-th frame."""
    labelled = []
    for caption, video in rows:
        shape, background = caption.text.split(" on ")
        labelled.append(((shape, f"on {background}"), video))
    draw_sheet(labelled, every, file)


def draw_sheet(rows: Sequence[tuple[tuple[str, str], Video]], every: int, file: Path) -> None:
    """A PNG with a row for each ((label, fainter label below it), video): every n-th frame."""
    columns = len(range(0, len(rows[0][1]), every))
    width = _MARGIN * 2 + _CAPTION_WIDTH + columns * (_TILE + _GAP) - _GAP
    height = _MARGIN * 2 + 24 + len(rows) * (_TILE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    words, small = ImageFont.load_default(16), ImageFont.load_default(13)
    for column in range(columns):
        x = _MARGIN + _CAPTION_WIDTH + column * (_TILE + _GAP) + _TILE // 2
        draw.text((x, _MARGIN), f"frame {column * every}", _FAINT, small, anchor="ma")
    for row, ((label, fainter), video) in enumerate(rows):
        y = _MARGIN + 24 + row * (_TILE + _GAP)
        middle = y + _TILE // 2
        draw.text((_MARGIN, middle - 12), label, _INK, words, anchor="lm")
        draw.text((_MARGIN, middle + 12), fainter, _FAINT, words, anchor="lm")
        for column, frame in enumerate(video[::every]):
            tile = Image.fromarray((frame * 255).round().astype(np.uint8))
            x = _MARGIN + _CAPTION_WIDTH + column * (_TILE + _GAP)
            sheet.paste(tile.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (x, y))
    sheet.save(file, optimize=True)


def draw_losses(curves: Path, file: Path) -> None:
    """A PNG of the loss curves in a CSV of phase, iteration, loss; one panel a phase."""
    # matplotlib is needed by whoever trains, not by whoever samples.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points: dict[str, list[tuple[int, float]]] = {}
    with curves.open(newline="") as source:
        for row in csv.DictReader(source):
            points.setdefault(row["phase"], []).append((int(row["iteration"]), float(row["loss"])))
    figure, panels = pyplot.subplots(
        1, len(points), figsize=(3.2 * len(points), 2.8), squeeze=False, layout="constrained"
    )
    for panel, (phase, curve) in zip(panels[0], points.items(), strict=True):
        panel.plot(*zip(*curve, strict=True), color="#2b6cb0")
        panel.set(title=phase, yscale="log", xlabel="iteration")
        panel.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("loss")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
