"""The demo's page: one self-contained HTML file, nothing fetched from anywhere."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from jobs._shared import pages
from jobs._shared.pictures import animation, film_strip, heat_map
from jobs.demo.comparison import Pair
from meancache.quality import Summary
from meancache.schedule import Schedule
from meancache.tiny.captions import Caption
from meancache.tiny.scorer import score

FRAME_MS = 125


def headline(pairs: Sequence[Pair]) -> str:
    """The result in one line, for the terminal."""
    decibels = Summary.of([pair.psnr for pair in pairs])
    return (
        f"{pairs[0].nfe} forwards instead of {pairs[0].item.arguments['num_inference_steps']}: "
        f"PSNR {decibels} dB against the full run (worst {decibels.worst:.1f}), "
        f"{_seconds(pairs, 'fast_s'):.2f} s a video instead of {_seconds(pairs, 'full_s'):.2f} s"
    )


def demo_page(
    root: str,
    pairs: Sequence[Pair],
    keys: Mapping[str, str],
    schedules: Mapping[int, Schedule],
    budget: int,
) -> str:
    """The page as HTML text.

    Args:
        root: of the demo, for the commands.
        pairs: full and accelerated videos of the held-out prompts.
        keys: item id -> where its accelerated video lies in the root.
        schedules: budget -> schedule, all of one graph.
        budget: the one that the pairs were rendered with.
    """
    full_s, fast_s = _seconds(pairs, "full_s"), _seconds(pairs, "fast_s")
    environment = pages.environment("demo")
    return environment.get_template("demo.html").render(
        budget=budget,
        steps=schedules[budget].num_inference_steps,
        schedule=schedules[budget],
        psnr=Summary.of([pair.psnr for pair in pairs]),
        ssim=Summary.of([pair.ssim for pair in pairs]),
        full_s=full_s,
        fast_s=fast_s,
        speedup=full_s / fast_s,
        facts_full=_facts([pair.full for pair in pairs], pairs),
        facts_fast=_facts([pair.fast for pair in pairs], pairs),
        strips=[
            (chosen, schedule, set(schedule.computed_steps))
            for chosen, schedule in sorted(schedules.items())
        ],
        cards=[
            {
                "pair": pair,
                "full_moving": animation(pair.full, FRAME_MS),
                "fast_moving": animation(pair.fast, FRAME_MS),
                "full": film_strip(pair.full),
                "fast": film_strip(pair.fast),
                "difference": film_strip(heat_map(pair.fast, pair.full)),
                "key": keys.get(pair.item.id),
            }
            for pair in pairs
        ],
        root=root,
        quoted=shlex.quote(root),
    )


def _seconds(pairs: Sequence[Pair], name: str) -> float:
    """The median of the pairs."""
    return float(np.median([getattr(pair, name) for pair in pairs]))


def _facts(videos: Sequence[np.ndarray], pairs: Sequence[Pair]) -> float:
    """Share of the captions' four facts that the videos show."""
    shown = []
    for frames, pair in zip(videos, pairs, strict=True):
        marks = score(frames, Caption.parse(pair.item.prompt))
        shown += [marks.colour, marks.shape, marks.direction, marks.background]
    return fmean(shown)
