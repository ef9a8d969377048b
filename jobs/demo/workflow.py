"""python -m jobs.demo: the whole story on the embedded model, on two CPU cores, in minutes.

Draw one video by a schedule that ships with the project. Then make such schedules: calibrate on
some captions, solve as the paper does and with fitted weights, render others at a fifth of the
forwards with a gang of two xDiT ranks, compare with the full runs on the same noise, and show it
all on one page. Each part is the job that a person would run, with the arguments that the demo
prints.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.fleet import driver as fleet
from cluster.models.model import find_model
from cluster.ranks import rank_builder
from cluster.store import Store
from cluster.work.plan import plan_items
from cluster.work.prompts import read_prompts
from jobs._shared import cli as _cli
from jobs._shared.progress import progress
from jobs.calibrate import workflow as calibrate
from jobs.demo.comparison import Comparison
from jobs.demo.page import demo_page, headline
from jobs.render import workflow as render
from jobs.solve import workflow as solve
from jobs.verify import workflow as verify
from meancache.schedule import Schedule
from meancache.tiny.captions import CALIBRATION, HELD_OUT, Caption

MODEL = "tiny"
TRAJECTORIES = 12
VIDEOS = 8
BUDGETS = (8, 10, 12, 15)
BUDGET = 10
# Of the render, to show one, where there are as many GPUs or none. For videos so small, gangs of
# one rank are faster.
GANG_SIZE = 2
# Each fits two of the budgets, on a core.
GANGS = "2"
FIRST_KEY = "prompts/first.txt"
CALIBRATION_KEY = "prompts/calibration.txt"
HELD_OUT_KEY = "prompts/held-out.txt"


@dataclass(frozen=True)
class Prepared:
    """Where the demo goes."""

    store: Store
    root: str


def prepare(options: argparse.Namespace) -> Prepared:
    """Checks that the output can be written to."""
    store = _cli.open_output(options)
    return Prepared(store, options.output.rstrip("/"))


def perform(prepared: Prepared) -> int:
    """Runs the jobs one after the other, and writes the report."""
    store, root = prepared.store, prepared.root
    for key, captions in ((FIRST_KEY, HELD_OUT[:1]),
                          (CALIBRATION_KEY, spread(CALIBRATION, TRAJECTORIES)),
                          (HELD_OUT_KEY, spread(HELD_OUT, VIDEOS))):  # fmt: skip
        store.put(key, "".join(f"{caption.text}\n" for caption in captions).encode())
    prompts = f"{root}/{HELD_OUT_KEY}"
    schedule_file = f"{root}/schedules/fitted-b{BUDGET}.json"
    budgets = ",".join(map(str, BUDGETS))
    gang_size = GANG_SIZE if fleet.fits(GANG_SIZE) else 1
    steps: list[tuple[Callable[[Sequence[str]], int], list[str]]] = [
        (render.main, ["--model", MODEL, "--prompts", f"{root}/{FIRST_KEY}", "--budget",
                       str(BUDGET), "--output", f"{root}/first"]),
        (calibrate.main, ["--model", MODEL, "--prompts", f"{root}/{CALIBRATION_KEY}",
                          "--seeds", "1", "--output", root]),
        (solve.main, ["--graph", f"{root}/graph", "--budgets", budgets, "--method", "paper",
                      "--output", f"{root}/schedules"]),
        (solve.main, ["--graph", f"{root}/graph", "--budgets", budgets, "--gangs", GANGS,
                      "--output", f"{root}/schedules"]),
        (render.main, ["--model", MODEL, "--prompts", prompts, "--schedule", schedule_file,
                       "--gang-size", str(gang_size), "--output", root]),
        (verify.main, [root]),
    ]  # fmt: skip
    for job, arguments in steps:
        command = job.__module__.removesuffix(".workflow")
        print(f"\n$ python -m {command} {shlex.join(arguments)}", flush=True)
        code = job(arguments)
        if code != 0:
            return code
    page = compare(store, prompts)
    print(f"\n{page}")
    return 0


def compare(store: Store, prompts: str) -> str:
    """Renders the held-out prompts in full too, and writes report.html; returns where it is."""
    schedules = {
        budget: Schedule.loads(store.get(f"schedules/fitted-b{budget}.json")) for budget in BUDGETS
    }
    model = find_model(MODEL)
    items = plan_items(read_prompts(prompts), model, model.defaults, schedules[BUDGET])
    print(f"\ncomparing {len(items)} videos with their full runs, same noise", flush=True)
    gangs = fleet.Gangs(rank_builder(model), 1)
    results = fleet.run(Comparison(schedules[BUDGET]), items, gangs)
    pairs = sorted(progress(results, len(items), "pairs"), key=lambda pair: pair.item.index)
    store.put("report.html", demo_page(pairs, schedules, BUDGET).encode())
    print(headline(pairs))
    return store.uri("report.html")


def spread(items: Sequence[Caption], count: int) -> list[Caption]:
    """`count` of the captions, evenly spread over their order."""
    return [items[index * len(items) // count] for index in range(count)]


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.demo",
        "Shows all of it on the embedded model: draws a first video by a schedule that ships with\n"
        "the project, then makes its own: calibrates, solves, renders held-out prompts at\n"
        f"{BUDGET} of 50 forwards on a gang of {GANG_SIZE} ranks, verifies, compares with the\n"
        "full runs, and ends with the path of a report. Takes a few minutes on two cores.",
        "python -m jobs.demo --output out",
    )
    _cli.add_output(result, "where everything goes")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)
