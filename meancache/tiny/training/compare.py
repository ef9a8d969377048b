"""One held-out video in full, by schedules, and by as few Euler steps: a picture of all of them.

    python -m meancache.tiny.training.compare SCHEDULE.json ... --output FILE.png [--caption 0]

All start from the same noise. Below each is its difference from the full run: black is identical.
Prints how close each comes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.quality import psnr
from meancache.tiny import load
from meancache.tiny.captions import HELD_OUT
from meancache.tiny.training.measure import REFERENCE_STEPS, generate
from meancache.tiny.training.sheet import Video, draw_sheet

SEED = 0

# The difference that is shown brightest, as a share of the range.
MOST_DIFFERENCE = 1 / 16


def heat_map(video: Video, reference: Video) -> Video:
    """How far pixels are from the reference's, the mean over channels: black is identical."""
    import matplotlib

    error = np.abs(video - reference).mean(axis=-1) / MOST_DIFFERENCE
    shown: Video = matplotlib.colormaps["inferno"](error.clip(0.0, 1.0))[..., :3]
    return shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m meancache.tiny.training.compare",
        description="Renders a held-out caption in full, by each schedule, and by Euler steps of "
        "the first one's budget, from the same noise.",
    )
    parser.add_argument("schedules", type=Path, nargs="+", metavar="SCHEDULE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    parser.add_argument(
        "--caption",
        type=int,
        default=0,
        choices=range(len(HELD_OUT)),
        metavar=f"0..{len(HELD_OUT) - 1}",
        help="which of the held-out captions, default 0",
    )
    arguments = parser.parse_args()
    caption = HELD_OUT[arguments.caption]
    schedules = [Schedule.load(file) for file in arguments.schedules]
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    reference = generate(pipe, caption, SEED)
    videos = []
    for schedule in schedules:
        apply_mean_cache(pipe, schedule)
        videos.append((schedule.nfe, f"method {schedule.method}", generate(pipe, caption, SEED)))
        remove_mean_cache(pipe)
    fewer = schedules[0].nfe
    videos.append((fewer, "Euler steps", generate(pipe, caption, SEED, fewer)))
    rows = [((f"{REFERENCE_STEPS} forwards", "the full run"), reference)]
    print(caption.text)
    print(f"  {REFERENCE_STEPS} forwards, the full run")
    for nfe, name, video in videos:
        label = f"{nfe} forwards", f"{name}: {psnr(video, reference):.1f} dB"
        print("  " + ", ".join(label))
        rows += [(label, video), (("", "difference"), heat_map(video, reference))]
    draw_sheet(rows, every=2, file=arguments.output)


if __name__ == "__main__":
    main()
