"""What a search of the computed steps does to the worst videos, and at what price, on `tiny`.

    python -m meancache.tiny.training.tail --shift 15 --budgets 10 --output tail-15.json

All methods run on the same held-out captions and noise: `fitted` as `jobs.solve` makes it, on ten
trajectories and on as many as the search has; `searched` with growing budgets of full videos,
whose weights are fitted on all trajectories in the end, as `jobs.solve --search` does; and both
refined by gradients. Differences are pair by pair.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meancache.baselines.calibration_data import roll_out
from meancache.baselines.refined import ITERATIONS, refine
from meancache.fitting import ORDER, RIDGE
from meancache.methods import candidate_paths
from meancache.propagation import Propagation
from meancache.quality import TAIL, Summary
from meancache.schedule import Schedule
from meancache.search import Found, Tried, decibels, search
from meancache.solver import Steps
from meancache.tiny.captions import CALIBRATION
from meancache.tiny.training import batch
from meancache.tiny.training.batch import Batch, make_batch
from meancache.tiny.training.table import (
    HELD_OUT_SEED,
    Setting,
    budgets,
    made_by,
    parser_of,
    pipeline_at,
    say,
    trial,
)

CALIBRATION_SEED = 1000
FEW, TRAJECTORIES, CHOSEN, FITTED = 10, 40, 32, 20
VIDEOS = (50, 100, 200, 400)
# Draws of the held-out pairs, for the error of a percentile.
DRAWS = 2000
# Ways to split the runs, to tell which score ranks paths best.
SPLITS = 200


def main() -> None:
    """The command line."""
    parser = parser_of("tail", (10,))
    parser.add_argument("--videos", type=budgets, default=VIDEOS, metavar="V,V,...")
    parser.add_argument("--seed", type=int, default=CALIBRATION_SEED, help="of the calibration")
    parser.add_argument(
        "--found", type=Path, metavar="FILE.json", help="steps of an earlier output; no search"
    )
    parser.add_argument("--no-gradients", action="store_true", help="leave refinement out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(given.steps, given.shift, given.budgets, given.pairs, max(given.videos))
    about = {**made_by("tail"), **vars(setting), "trajectories": TRAJECTORIES}
    rows: list[dict[str, Any]] = []
    ranked: list[str] = []
    known = {} if given.found is None else steps_found(given.found)
    for row in measured(setting, given.videos, given.seed, not given.no_gradients, ranked, known):
        rows.append(row)
        given.output.write_text(
            json.dumps({**about, "ranked": ranked, "rows": rows}, indent=1) + "\n"
        )
        print(line(row), flush=True)


def measured(
    setting: Setting,
    videos: Sequence[int],
    seed: int,
    gradients: bool,
    ranked: list[str],
    known: Mapping[int, Steps],
) -> Iterator[dict[str, Any]]:
    """A row a method and budget; without a search where its steps are known."""
    with torch.no_grad():
        pipeline, held_out, full, many = prepared(setting, seed)
        few, part, some = (many.first(pipeline, count, seed) for count in (FEW, CHOSEN, FITTED))
    before: dict[int, np.ndarray] = {}
    for schedule, cost in methods(setting, few, many, part, some, videos, gradients, ranked, known):
        with torch.no_grad():
            ends = roll_out(held_out.field, held_out.reference[0], schedule)
            scores = np.array(batch.psnrs(pipeline, ends, full))
        before.setdefault(schedule.budget, scores)
        yield {**row(schedule, scores, before[schedule.budget]), "full_videos": cost}


def prepared(setting: Setting, seed: int) -> tuple[Any, Batch, list[np.ndarray], Batch]:
    """The pipeline, the held-out runs with their videos in full, and the calibration runs."""
    pipeline = pipeline_at(setting.shift)
    captions = [CALIBRATION[i % len(CALIBRATION)] for i in range(TRAJECTORIES)]
    held_out = make_batch(pipeline, setting.captions(), HELD_OUT_SEED, setting.steps)
    full = batch.decode(pipeline, held_out.reference[-1])
    many = make_batch(pipeline, captions, seed, setting.steps)
    say("full runs")
    return pipeline, held_out, full, many


def methods(
    setting: Setting,
    few: Batch,
    many: Batch,
    part: Batch,
    some: Batch,
    videos: Sequence[int],
    gradients: bool,
    ranked: list[str],
    known: Mapping[int, Steps],
) -> Iterator[tuple[Schedule, float]]:
    """Schedules, the first of each budget today's, and what their steps cost to choose.

    Args:
        setting: the budgets.
        few: the first FEW runs.
        many: all runs.
        part: the first CHOSEN.
        some: the first FITTED, to refine on.
        videos: that a search may take.
        gradients: whether to refine by them.
        ranked: takes in what scores were worth to the search, in words.
        known: budget -> the steps that a search has found before.
    """
    for budget in setting.budgets:
        ten, cost = chosen(few, budget)
        yield named(few, "fitted", budget, ten, f"{FEW} trajectories"), cost
        if budget in known:
            yield named(many, "searched", budget, known[budget], "found before"), 0.0
            if gradients:
                start = named(many, "searched", budget, known[budget], "")
                yield refined(setting, some, start)
            continue
        steps, cost = chosen(many, budget)
        yield named(many, "fitted", budget, steps, f"{TRAJECTORIES} trajectories"), cost
        tried: dict[Steps, Sequence[float]] = {}
        found = searched(part, budget, max(videos) * setting.steps, tried)
        ranked.append(f"B = {budget}: {rankings([decibels(one) for one in tried.values()])}")
        say(ranked[-1])
        best: Steps | None = None
        for most in videos:
            spent, steps = [one for one in found.course if one[0] <= most * setting.steps][-1]
            if steps != best:
                best = steps
                yield (
                    named(many, "searched", budget, steps, f"{most} videos"),
                    spent / setting.steps,
                )
        if gradients:
            for name, runs, steps in (("fitted", few, ten), ("searched", some, best or ten)):
                start = named(few if runs is few else many, name, budget, steps, "")
                yield refined(setting, runs, start)


def steps_found(file: Path) -> dict[int, Steps]:
    """Budget -> the steps of the last search in an output of this command."""
    rows = json.loads(file.read_text())["rows"]
    return {row["budget"]: tuple(row["steps"]) for row in rows if row["method"] == "searched"}


def chosen(runs: Batch, budget: int) -> tuple[Steps, float]:
    """The candidate that comes closest on the runs, as `jobs.solve` chooses, and its cost."""
    with torch.no_grad():
        paths = candidate_paths(batch.statistics(runs), [budget])[budget]
        ends = {path: ends for path, ends, _ in batch.fits(runs, paths)}
    best = max(paths, key=lambda path: decibels(batch.errors(runs, ends[path])).mean())
    beginnings = {path[:length] for path in paths for length in range(1, budget + 1)}
    return best, len(beginnings) * len(runs) / runs.field.grid.num_inference_steps


def searched(runs: Batch, budget: int, forwards: int, tried: dict[Steps, Sequence[float]]) -> Found:
    """The search, with weights fitted on the first FITTED runs; notes in `tried` what paths had."""
    with torch.no_grad():
        known = batch.statistics(runs)
        grams = np.stack([item.gram for item in known.ordered()])
        propagation = Propagation(grams, runs.field.grid.array(), FITTED, ORDER, RIDGE)
        paths = candidate_paths(known, [budget])[budget]

        def noted(asked: Sequence[Steps]) -> Mapping[Steps, Tried]:
            fresh = trial(runs, FITTED, asked)
            tried.update({path: one.errors for path, one in fresh.items()})
            return fresh

        found = search(noted, propagation, paths, forwards)
    say(f"searched, B = {budget}: {found.tried} paths")
    return found


def named(runs: Batch, method: str, budget: int, steps: Steps, setting: str) -> Schedule:
    """The schedule of these steps with weights fitted on all of the runs."""
    with torch.no_grad():
        edges, _ = batch.fit(runs, steps)
    grid = runs.field.grid
    return Schedule(
        grid, tuple(edges), method=method, budget=budget, calibration={"setting": setting}
    )


def refined(setting: Setting, runs: Batch, start: Schedule) -> tuple[Schedule, float]:
    """The schedule refined by gradients on the runs; a backward counts as two forwards."""
    with runs.field.frozen():
        found = refine(runs.field, runs.reference[0], runs.reference[-1], start)
    said = {"setting": f"{start.method} on {len(runs)} trajectories"}
    cost = ITERATIONS * 3 * len(runs) * start.budget / setting.steps
    return replace(found, calibration=said), cost


def rankings(levels: Sequence[np.ndarray]) -> str:
    """How well scores on 20 of the runs rank paths by the worst tenth of the others, in words.

    Args:
        levels: for each path the PSNR of 32 runs, in dB up to a constant.
    """
    from scipy.stats import spearmanr

    every, random = np.array(levels), np.random.default_rng(0)
    scores: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "mean PSNR": lambda runs: runs.mean(axis=1),
        "10th percentile": lambda runs: np.percentile(runs, TAIL, axis=1),
        "mean RMS error": lambda runs: -np.log(np.mean(10 ** (-runs / 20), axis=1)),
    }
    found: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(SPLITS):
        order = random.permutation(every.shape[1])
        seen, unseen = every[:, order[:FITTED]], every[:, order[FITTED:]]
        tail = np.percentile(unseen, TAIL, axis=1)
        for name, rule in scores.items():
            found[name].append(spearmanr(rule(seen), tail).statistic)
    means = ", ".join(f"{name} {np.mean(each):.2f}" for name, each in found.items())
    return f"rank correlation with the 10th percentile of other runs, {len(every)} paths: {means}"


def row(schedule: Schedule, scores: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """What is kept of a schedule: scores, and what they gained over those before."""
    return {
        "method": schedule.method,
        "setting": schedule.calibration["setting"],
        "budget": schedule.budget,
        "nfe": schedule.nfe,
        "steps": list(schedule.computed_steps),
        **gains(scores, before),
        "psnrs": [round(float(each), 2) for each in scores],
    }


def gains(scores: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """Scores in short, and what they gained over those before, with errors.

    Args:
        scores: PSNR of the held-out pairs, in dB.
        before: of the same pairs, likewise.
    """
    gained = Summary.of((scores - before).tolist())
    draws = np.random.default_rng(0).integers(len(scores), size=(DRAWS, len(scores)))
    tails = [
        np.percentile(each[draws], TAIL, axis=1, method="inverted_cdf") for each in (scores, before)
    ]
    summary = Summary.of(scores.tolist())
    return {
        "psnr": {name: round(value, 3) for name, value in vars(summary).items()},
        "gained": round(gained.mean, 3),
        "gained_error": round(gained.standard_error, 3),
        "tail_gained": round(summary.tail - Summary.of(before.tolist()).tail, 3),
        "tail_gained_error": round(float(np.std(tails[0] - tails[1])), 3),
    }


def change(row: Mapping[str, Any]) -> str:
    """What `gains` found, in words."""
    p = row["psnr"]
    return (
        f"{p['mean']:.1f} ± {p['standard_error']:.1f}, tenth {p['tail']:.1f}, worst "
        f"{p['worst']:.1f}; gained {row['gained']:+.1f} ± {row['gained_error']:.1f}, tenth "
        f"{row['tail_gained']:+.1f} ± {row['tail_gained_error']:.1f}"
    )


def line(row: Mapping[str, Any]) -> str:
    """A row in words."""
    return (
        f"B = {row['budget']:2} {row['method']:>8}, {row['setting']:<27} {change(row)}; "
        f"{row['full_videos']:.0f} full videos"
    )


if __name__ == "__main__":
    main()
