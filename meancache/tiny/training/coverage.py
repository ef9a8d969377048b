"""Whether predicted PSNR holds: fits on disjoint calibration runs, each measured on held-out pairs.

    python -m meancache.tiny.training.coverage --fits 10 --output coverage.json

Each fit is `fitted` as `jobs.solve` makes it from ten trajectories; its prediction is the mean PSNR
of those under weights that have not seen their captions, with its 90% interval. Held-out captions
and noise are the same for all fits. Captions of calibration are fewer than a hundred, so they come
again with other noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meancache.baselines.calibration_data import roll_out
from meancache.methods import candidate_paths
from meancache.quality import mean_interval
from meancache.schedule import Schedule
from meancache.search import decibels
from meancache.tiny.captions import CALIBRATION
from meancache.tiny.training import batch
from meancache.tiny.training.batch import make_batch
from meancache.tiny.training.table import BUDGETS, HELD_OUT_SEED, Setting, made_by, pipeline_at, say

TRAJECTORIES = 10
SEED = 20_000


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m meancache.tiny.training.coverage")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--fits", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shift", type=float, default=7.0)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = predicted(
            Setting(given.steps, given.shift, BUDGETS, given.pairs, 0), given.fits, given.device
        )
    given.output.write_text(json.dumps({**made_by("coverage"), "rows": rows}, indent=1) + "\n")
    for budget in BUDGETS:
        mine = [row for row in rows if row["budget"] == budget]
        held = sum(row["low"] <= row["measured"] <= row["high"] for row in mine)
        errors = [row["measured"] - row["predicted"] for row in mine]
        print(
            f"B = {budget}: {held} of {len(mine)} intervals hold the held-out mean, measured minus "
            f"predicted {np.mean(errors):+.1f} ± {np.std(errors):.1f} dB, in-sample "
            f"{np.mean([row['in_sample'] - row['measured'] for row in mine]):+.1f} too high"
        )


def predicted(setting: Setting, fits: int, device: str) -> list[dict[str, Any]]:
    """A row a fit and budget: predicted mean and interval, and what was measured."""
    pipeline = pipeline_at(setting.shift, device)
    held_out = make_batch(pipeline, setting.captions(), HELD_OUT_SEED, setting.steps)
    full = batch.decode(pipeline, held_out.reference[-1])
    rows = []
    for fit in range(fits):
        first = fit * TRAJECTORIES
        captions = [CALIBRATION[i % len(CALIBRATION)] for i in range(first, first + TRAJECTORIES)]
        runs = make_batch(pipeline, captions, SEED + first, setting.steps)
        own = batch.decode(pipeline, runs.reference[-1])
        paths = candidate_paths(batch.statistics(runs), BUDGETS)
        for budget in BUDGETS:
            ends = {path: batch.fit(runs, path)[1] for path in paths[budget]}
            best = max(ends, key=lambda path: decibels(batch.errors(runs, ends[path])).mean())
            edges, left_out = batch.fit_held_out(runs, best)
            scores = batch.psnrs(pipeline, left_out, own)
            interval = mean_interval(scores, captions)
            assert interval is not None
            schedule = Schedule.from_edges(runs.field.grid.sigmas, edges)
            measured = roll_out(held_out.field, held_out.reference[0], schedule)
            rows.append(
                {
                    "fit": fit,
                    "budget": budget,
                    "predicted": float(np.mean(scores)),
                    "low": interval[0],
                    "high": interval[1],
                    "in_sample": float(np.mean(batch.psnrs(pipeline, ends[best], own))),
                    "measured": float(np.mean(batch.psnrs(pipeline, measured, full))),
                }
            )
        say(f"fit {fit + 1} of {fits}")
    return rows


if __name__ == "__main__":
    main()
