"""Every method on the embedded model, held-out pairs, one setting: the table of docs/fidelity.md.

    python -m meancache.tiny.training.table --shift 15 --output shift-15.json

`jobs.evaluate` measures the same on any model, a video at a time through its pipeline. Here what is
a schedule runs as one batch (`batch`), so that two cores, or one GPU, suffice for all methods; one
pair of each is checked against the pipeline. What is a hook runs in its pipeline, a pair at a time.

All methods see the same ten calibration runs but `searched`, which has 32; all are measured on the
same held-out captions and noise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from meancache import apply_mean_cache, remove_mean_cache, tiny
from meancache.baselines import calibrated, sweep
from meancache.baselines.baseline import Baseline
from meancache.baselines.calibration_data import CalibrationData, roll_out
from meancache.costs import least_squares_costs
from meancache.methods import candidate_paths, secant_schedules
from meancache.quality import Summary, flip, psnr, ssim
from meancache.schedule import EXECUTIONS, Edge, Schedule
from meancache.search import decibels, search
from meancache.solver import Steps, solve_paper
from meancache.tiny.captions import CALIBRATION, HELD_OUT, Caption
from meancache.tiny.training import batch
from meancache.tiny.training.batch import Batch, make_batch

BUDGETS = (6, 8, 10, 12, 15)
CALIBRATION_SEED, HELD_OUT_SEED = 1000, 5000
TRAJECTORIES, SEARCHED_ON, FITTED_ON = 10, 32, 20
SEARCH_VIDEOS = 200
# A hook that cannot go below this share of the compute is measured at its cheapest alone.
MOST_SHARE = 0.32


@dataclass(frozen=True)
class Setting:
    """Where everything is measured."""

    steps: int
    shift: float
    pairs: int
    perceptual: int

    def captions(self) -> list[Caption]:
        """The held-out captions, one a pair; some come twice, with other noise."""
        return [HELD_OUT[pair % len(HELD_OUT)] for pair in range(self.pairs)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m meancache.tiny.training.table")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shift", type=float, default=7.0)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--perceptual", type=int, default=12, help="pairs with SSIM and FLIP")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes for hooks and metrics")
    given = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(given.steps, given.shift, given.pairs, given.perceptual)
    began = time.time()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, context) as pool:
        rows = [*measured(setting, given.device, pool)]
    about = {
        "command": " ".join(["python -m meancache.tiny.training.table", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.time() - began),
        **vars(setting),
        "rows": rows,
    }
    given.output.write_text(json.dumps(about, indent=1) + "\n")
    print(text_table(rows))


def pipeline_at(shift: float, device: str = "cpu") -> Any:
    """The embedded pipeline with another shift of its noise levels."""
    pipeline = tiny.load()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config, shift=shift
    )
    return pipeline.to(device)


def measured(setting: Setting, device: str, pool: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """One row a method and budget, or a hook's setting."""
    pipeline = pipeline_at(setting.shift, device)
    with torch.no_grad():
        held_out = make_batch(pipeline, setting.captions(), HELD_OUT_SEED, setting.steps)
        full = batch.decode(pipeline, held_out.reference[-1])
    say("full runs")
    ours, runs = solved(pipeline, setting)
    say("fitted and searched")
    fitted = {one.budget: one for one in ours if one.method == "fitted"}
    others = calibrated(pipeline, runs, fitted)
    say("baselines calibrated")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "full.npy"
        np.save(file, np.stack(full))
        hooks = [*sweep(), *(one for one in others if isinstance(one, Baseline))]
        at_work = [pool.submit(hook_row, setting, hook, file) for hook in hooks]
        schedules = [*ours, *(one for one in others if isinstance(one, Schedule))]
        for schedule in schedules:
            with torch.no_grad():
                ends = roll_out(held_out.field, held_out.reference[0], schedule)
                check(pipeline, setting, schedule, ends[0])
                videos = batch.decode(pipeline, ends)
            at_work.append(pool.submit(scores, setting, _named(schedule), np.stack(videos), file))
        say("schedules run")
        for one in at_work:
            yield one.result()


def say(what: str) -> None:
    """Progress, for a terminal."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def solved(pipeline: Any, setting: Setting) -> tuple[list[Schedule], list[partial[Any]]]:
    """This project's schedules and the paper's, and the ten runs that baselines calibrate on."""
    runs = [
        partial(batch.run, pipeline, caption, CALIBRATION_SEED + i, setting.steps)
        for i, caption in enumerate(CALIBRATION[:SEARCHED_ON])
    ]
    with torch.no_grad():
        many = make_batch(pipeline, CALIBRATION[:SEARCHED_ON], CALIBRATION_SEED, setting.steps)
        few = make_batch(pipeline, CALIBRATION[:TRAJECTORIES], CALIBRATION_SEED, setting.steps)
        open_ended = Schedule.from_edges(
            many.field.grid.sigmas,
            [Edge(k, k + 1, weights={k: 1.0}) for k in range(setting.steps)],
        )
        data = CalibrationData(pipeline, runs[:TRAJECTORIES], dict.fromkeys(BUDGETS, open_ended))
        graph = data.statistics
        found = [paper(data, budget) for budget in BUDGETS]
        found += secant_schedules(graph, BUDGETS).values()
        paths = candidate_paths(graph, BUDGETS)
        for budget in BUDGETS:
            found.append(fitted(data, few, budget, paths[budget]))
            found.append(searched(data, many, budget, paths[budget]))
    return found, runs[:TRAJECTORIES]


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


def searched(data: CalibrationData, many: Batch, budget: int, paths: Sequence[Steps]) -> Schedule:
    """`fitted` on the steps that a search on 20 + 12 trajectories has found."""
    costs = least_squares_costs(data.statistics.gram(), data.grid.array(), 2)
    found = search(
        lambda tried: {
            path: batch.errors(many, batch.fit(many, path, FITTED_ON)[1]) for path in tried
        },
        costs,
        paths,
        SEARCHED_ON,
        FITTED_ON,
        SEARCH_VIDEOS * data.grid.num_inference_steps,
    )
    edges, _ = batch.fit(many, found.steps)
    videos = found.forwards / data.grid.num_inference_steps
    said = (
        f"{found.tried} paths tried in {videos:.0f} full videos, held-out calibration runs "
        f"{found.held_out - found.first_held_out:+.1f} dB"
    )
    return data.schedule("searched", budget, edges, "this project", said)


def check(pipeline: Any, setting: Setting, schedule: Schedule, end: torch.Tensor) -> None:
    """Refuses to go on where a batch's run is not the pipeline's own."""
    apply_mean_cache(pipeline.transformer, schedule)
    try:
        own = batch.run(pipeline, setting.captions()[0], HELD_OUT_SEED, setting.steps)
    finally:
        remove_mean_cache(pipeline.transformer)
    torch.testing.assert_close(end.cpu(), own.cpu().reshape(end.shape), atol=5e-3, rtol=1e-2)


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
    with torch.no_grad():
        ends = torch.stack([run(pair).squeeze(0) for pair in range(setting.pairs)])
        videos = batch.decode(pipeline, ends)
    return scores(setting, row, np.stack(videos), file)


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


def scores(
    setting: Setting, row: Mapping[str, Any], videos: np.ndarray, file: Path
) -> dict[str, Any]:
    """The row with what its videos are worth against the full runs in `file`."""
    pairs = list(zip(videos, np.load(file), strict=True))
    decibel = [psnr(video, full) for video, full in pairs]
    seen = pairs[: setting.perceptual]
    return {
        **row,
        "psnr": _summary(Summary.of(decibel)),
        "ssim": _summary(Summary.of([ssim(*pair) for pair in seen])),
        "flip": _summary(Summary.of([flip(*pair) for pair in seen], worst=max)),
        "psnrs": [round(each, 2) for each in decibel],
    }


def _summary(summary: Summary) -> dict[str, float]:
    return {name: round(value, 4) for name, value in vars(summary).items()}


def text_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """mean ± standard error / 10th percentile / worst, by method and budget."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["method"], row["share"])):
        if "psnr" not in row:
            continue
        p = row["psnr"]
        lines.append(
            f"{row['method']:>28} {100 * row['share']:5.1f}% {p['mean']:5.1f} ± "
            f"{p['standard_error']:.1f}, tenth {p['tail']:.1f}, worst {p['worst']:.1f}, SSIM "
            f"{row['ssim']['mean']:.4f}, FLIP {row['flip']['mean']:.4f}  {row['setting']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
