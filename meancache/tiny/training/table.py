"""Every method on the embedded model, held-out pairs, one setting: the table of docs/fidelity.md.

    python -m meancache.tiny.training.table --shift 15 --output shift-15.json

`jobs.evaluate` measures the same on any model, a video at a time through its pipeline. Here what is
a schedule runs as one batch (`batch`), so that two cores, or one GPU, suffice for all methods; one
pair of each is checked against the pipeline. What is a hook runs in its pipeline, a pair at a time.

All methods see the same ten calibration runs but `searched`, which has 32; all are measured on the
same held-out captions and noise. `method_tables` prints what is found.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from meancache import apply_mean_cache, remove_mean_cache, tiny
from meancache.baselines import sweep
from meancache.baselines.baseline import Baseline
from meancache.baselines.calibration_data import CalibrationData, roll_out
from meancache.baselines.table import HOOKS, METHODS
from meancache.fitting import ORDER, RIDGE
from meancache.methods import candidate_paths, secant_schedules
from meancache.propagation import Propagation
from meancache.quality import Summary, flip, psnr, ssim
from meancache.schedule import EXECUTIONS, Edge, Schedule
from meancache.search import Tried, decibels, search
from meancache.solver import Steps, solve_paper
from meancache.tiny.captions import CALIBRATION, HELD_OUT, Caption
from meancache.tiny.training import batch
from meancache.tiny.training.batch import Batch, make_batch
from meancache.tiny.training.method_tables import sections

PACKAGE = "python -m meancache.tiny.training"
BUDGETS = (6, 8, 10, 12, 15)
CALIBRATION_SEED, HELD_OUT_SEED = 1000, 5000
TRAJECTORIES, SEARCHED_ON, FITTED_ON = 10, 32, 20
# A hook that cannot go below this share of the compute is measured at its cheapest alone.
MOST_SHARE = 0.32
# Runs of a video of which the fastest is timed.
REPEATS = 3


@dataclass(frozen=True)
class Setting:
    """Where everything is measured."""

    steps: int
    shift: float
    budgets: tuple[int, ...]
    pairs: int
    search: int

    def captions(self) -> list[Caption]:
        """The held-out captions, one a pair; some come twice, with other noise."""
        return [HELD_OUT[pair % len(HELD_OUT)] for pair in range(self.pairs)]


def main() -> None:
    """The command line."""
    parser = parser_of("table", BUDGETS)
    parser.add_argument("--search", type=int, default=200, metavar="VIDEOS")
    parser.add_argument("--schedules-only", action="store_true", help="leave hooks out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes for hooks and metrics")
    given = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(given.steps, given.shift, given.budgets, given.pairs, given.search)
    about = {**made_by("table"), **vars(setting)}
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, context) as pool:
        for row in measured(setting, given.device, pool, hooks=not given.schedules_only):
            rows.append(row)
            given.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(sections({**about, "rows": rows}))


def parser_of(name: str, default: tuple[int, ...]) -> argparse.ArgumentParser:
    """The flags of a command of this package that measures schedules of some budgets."""
    parser = argparse.ArgumentParser(prog=f"{PACKAGE}.{name}")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shift", type=float, default=7.0)
    parser.add_argument("--budgets", type=budgets, default=default, metavar="B,B,...")
    parser.add_argument("--pairs", type=int, default=48)
    return parser


def made_by(name: str) -> dict[str, Any]:
    """The command of this package that runs, as it was given, and the date."""
    command = " ".join([f"{PACKAGE}.{name}", *sys.argv[1:]])
    return {"command": command, "date": time.strftime("%Y-%m-%d")}


def budgets(text: str) -> tuple[int, ...]:
    """'6,10' as numbers."""
    return tuple(sorted(int(number) for number in text.split(",")))


def pipeline_at(shift: float, device: str = "cpu") -> Any:
    """The embedded pipeline with another shift of its noise levels."""
    pipeline = tiny.load()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config, shift=shift
    )
    return pipeline.to(device)


def measured(
    setting: Setting, device: str, pool: ProcessPoolExecutor, hooks: bool
) -> Iterator[dict[str, Any]]:
    """One row a method and budget, or a hook's setting, as they come."""
    pipeline = pipeline_at(setting.shift, device)
    with torch.no_grad():
        held_out = make_batch(pipeline, setting.captions(), HELD_OUT_SEED, setting.steps)
        full = batch.decode(pipeline, held_out.reference[-1])
    say("full runs")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "full.npy"
        np.save(file, np.stack(full))
        at_work: list[Future[dict[str, Any]]] = []
        for one in methods(pipeline, setting, hooks):
            if isinstance(one, Schedule):
                with torch.no_grad():
                    ends = roll_out(held_out.field, held_out.reference[0], one)
                    seconds, own = own_run(pipeline, setting, one)
                    check(ends[0], own)
                    videos = np.stack(batch.decode(pipeline, ends))
                named = {**_named(one), "seconds": seconds}
                at_work.append(pool.submit(scores, named, videos, file))
                say(f"{one.method}, B = {one.budget}")
            elif hooks:
                at_work.append(pool.submit(hook_row, setting, one, file))
            while at_work and at_work[0].done():
                yield at_work.pop(0).result()
        for work in at_work:
            yield work.result()


def methods(pipeline: Any, setting: Setting, hooks: bool) -> Iterator[Schedule | Baseline]:
    """Schedules and hooks, each as soon as it is calibrated; what costs most comes last."""
    runs = [
        partial(batch.run, pipeline, caption, CALIBRATION_SEED + i, setting.steps)
        for i, caption in enumerate(CALIBRATION[:TRAJECTORIES])
    ]
    few = make_batch(pipeline, CALIBRATION[:TRAJECTORIES], CALIBRATION_SEED, setting.steps)
    every = Schedule.from_edges(
        few.field.grid.sigmas, [Edge(k, k + 1, weights={k: 1.0}) for k in range(setting.steps)]
    )
    data = CalibrationData(pipeline, runs, dict.fromkeys(setting.budgets, every))
    paths = candidate_paths(data.statistics, setting.budgets)
    with torch.no_grad():
        for budget in setting.budgets:
            data.schedules[budget] = fitted(data, few, budget, paths[budget])
            yield data.schedules[budget]
            yield paper(data, budget)
        yield from secant_schedules(data.statistics, setting.budgets).values()
    if hooks:
        yield from sweep()
    with data.field.frozen():
        for method in METHODS:
            if hooks or method not in HOOKS:
                yield from method(data)
    with torch.no_grad():
        many = make_batch(pipeline, CALIBRATION[:SEARCHED_ON], CALIBRATION_SEED, setting.steps)
        for budget in setting.budgets:
            yield searched(data, many, budget, paths[budget], setting.search)


def say(what: str) -> None:
    """Progress, for a terminal."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def paper(data: CalibrationData, budget: int) -> Schedule:
    """The paper's method with the rule and gamma that suit the calibration runs best."""
    costs = data.statistics.costs()
    return data.best(
        data.schedule(
            "paper",
            budget,
            [Edge(*edge) for edge in solve_paper(costs, [budget], gamma)[budget]],
            "written from arXiv:2601.19961",
            f"{execution}, gamma {gamma:g}",
            execution,
        )
        for execution in EXECUTIONS
        for gamma in (1.0, 2.0, 3.0, 4.0, 5.0)
    )


def fitted(data: CalibrationData, few: Batch, budget: int, paths: Sequence[Steps]) -> Schedule:
    """`fitted` as `jobs.solve` makes it: the candidate that comes closest on the runs."""
    fits = {path: batch.fit(few, path) for path in paths}
    best = max(paths, key=lambda path: decibels(batch.errors(few, fits[path][1])).mean())
    return data.schedule("fitted", budget, fits[best][0], "this project", "10 trajectories")


def searched(
    data: CalibrationData, many: Batch, budget: int, paths: Sequence[Steps], videos: int
) -> Schedule:
    """`fitted` on the steps that a search on 20 + 12 trajectories has found."""
    grams = np.stack([item.gram for item in batch.statistics(many).ordered()])
    found = search(
        partial(trial, many, FITTED_ON),
        Propagation(grams, data.grid.array(), FITTED_ON, ORDER, RIDGE),
        paths,
        videos * data.grid.num_inference_steps,
    )
    edges, _ = batch.fit(many, found.steps)
    spent = found.forwards / data.grid.num_inference_steps
    said = f"{found.tried} paths tried in {spent:.0f} full videos"
    return data.schedule("searched", budget, edges, "this project", said)


def trial(runs: Batch, fitted_on: int, paths: Sequence[Steps]) -> dict[Steps, Tried]:
    """What the paths come to on the runs, with weights fitted on the first `fitted_on`."""
    return {
        path: Tried(batch.errors(runs, ends), responses)
        for path, ends, responses in batch.fits(runs, paths, fitted_on)
    }


def own_run(pipeline: Any, setting: Setting, schedule: Schedule) -> tuple[float, torch.Tensor]:
    """What `timed` finds of the first held-out pair, in the pipeline and by the schedule."""
    apply_mean_cache(pipeline.transformer, schedule)
    try:
        return timed(
            partial(batch.run, pipeline, setting.captions()[0], HELD_OUT_SEED, setting.steps)
        )
    finally:
        remove_mean_cache(pipeline.transformer)


def check(end: torch.Tensor, own: torch.Tensor) -> None:
    """Refuses to go on where a batch's run is not the pipeline's own."""
    torch.testing.assert_close(end.cpu(), own.cpu().reshape(end.shape), atol=5e-3, rtol=1e-2)


def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """The seconds of the fastest of some runs of a video up to its latents, and these."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        latents = run()
        taken.append(time.perf_counter() - started)
    return round(min(taken), 4), latents


def hook_row(setting: Setting, hook: Baseline, file: Path) -> dict[str, Any]:
    """A hook's row; without scores where it cannot go below MOST_SHARE."""
    torch.set_num_threads(1)
    pipeline, captions = pipeline_at(setting.shift), setting.captions()

    def run(pair: int) -> torch.Tensor:
        with hook.applied(pipeline) as overrides:
            steps = overrides.get("num_inference_steps", setting.steps)
            return batch.run(pipeline, captions[pair], HELD_OUT_SEED + pair, steps)

    plain = partial(batch.run, pipeline, captions[0], HELD_OUT_SEED, setting.steps)
    share = _flops(partial(run, 0)) / _flops(plain)
    row = {
        "method": hook.method,
        "setting": hook.setting,
        "source": hook.source,
        "budget": None,
        "nfe": None,
        "share": round(share, 4),
    }
    if share > MOST_SHARE:
        return row
    row["seconds"] = timed(partial(run, 0))[0]
    with torch.no_grad():
        ends = torch.stack([run(pair).squeeze(0) for pair in range(setting.pairs)])
        videos = batch.decode(pipeline, ends)
    return scores(row, np.stack(videos), file)


def _flops(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _named(schedule: Schedule) -> dict[str, Any]:
    return {
        "method": schedule.method,
        "setting": schedule.calibration.get("setting"),
        "source": schedule.calibration.get("source"),
        "budget": schedule.budget,
        "nfe": schedule.nfe,
        "share": schedule.nfe / schedule.num_inference_steps,
        "steps": list(schedule.computed_steps),
    }


def scores(row: Mapping[str, Any], videos: np.ndarray, file: Path) -> dict[str, Any]:
    """The row with what its videos are worth against the full runs in `file`."""
    pairs = list(zip(videos, np.load(file), strict=True))
    decibel = [psnr(video, full) for video, full in pairs]
    return {
        **row,
        "psnr": _summary(Summary.of(decibel)),
        "ssim": _summary(Summary.of([ssim(*pair) for pair in pairs])),
        "flip": _summary(Summary.of([flip(*pair) for pair in pairs], worst=max)),
        "psnrs": [round(each, 2) for each in decibel],
    }


def _summary(summary: Summary) -> dict[str, float]:
    return {name: round(value, 4) for name, value in vars(summary).items()}


if __name__ == "__main__":
    main()
