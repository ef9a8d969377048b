"""The whole story on the embedded model, on two CPU cores, in minutes.

Render one video by a schedule that ships with the project. Then make such schedules: calibrate on
some captions, solve as the paper does and with fitted weights, render others at a fifth of the
forwards with a gang of two xDiT ranks, compare with the full runs on the same noise, and show it
all on one page. Each part is the workflow that a person would run, by the command that the demo
prints.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.fleet.beginning import begin
from cluster.fleet.gangs import Gangs
from cluster.models.model import find_model
from cluster.ranks import rank_builder
from cluster.results.manifest import PARTS, read_part
from cluster.store import Store
from cluster.work.plan import plan_items
from cluster.work.prompts import read_prompts
from jobs._shared.configs import FleetConfig, ModelConfig
from jobs._shared.progress import Staffing, progress
from jobs._shared.roots import begun, open_output, refusing
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
# The render shows a gang of two, where there are as many GPUs or none. For videos so small, gangs
# of one rank are faster.
GANG_SIZE = 2
# Each fits two of the budgets, on a core.
GANGS = "2"
FIRST_KEY = "prompts/first.txt"
CALIBRATION_KEY = "prompts/calibration.txt"
RENDER_REPORT_KEY = "render.html"
HELD_OUT_KEY = "prompts/held-out.txt"


@dataclass(frozen=True)
class Config:
    """Where the demo goes."""

    output: str


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        page: where the report is; None where a step failed.
        failed: items of that step that failed for good.
    """

    page: str | None
    failed: int = 0


@dataclass(frozen=True)
class Step:
    """A workflow of another job, and the flags that a person would give to do the same.

    Attributes:
        job: 'render', ...
        flags: of its command line.
        config: of its workflow.
        run: runs it; returns how many items failed, or were found damaged.
    """

    job: str
    flags: Sequence[str]
    config: Any
    run: Callable[[Any], int]

    @property
    def command(self) -> str:
        """The command line."""
        return f"python -m jobs.{self.job} {shlex.join(self.flags)}"


def run(config: Config) -> Outcome:
    """Runs the jobs one after the other, and writes the report."""
    store, root = _open(config.output), config.output.rstrip("/")
    begin(Gangs(rank_builder(find_model(MODEL)), 1))
    from cluster.fleet import driver as fleet  # with Ray

    with begun():
        for key, captions in ((FIRST_KEY, HELD_OUT[:1]),
                              (CALIBRATION_KEY, spread(CALIBRATION, TRAJECTORIES)),
                              (HELD_OUT_KEY, spread(HELD_OUT, VIDEOS))):  # fmt: skip
            store.put(key, "".join(f"{caption.text}\n" for caption in captions).encode())
        todo = steps(root, GANG_SIZE if fleet.fits(GANG_SIZE) else 1)
        for number, step in enumerate(todo, start=1):
            print(f"\nstep {number} of {len(todo) + 1}\n$ {step.command}", flush=True)
            if failed := step.run(step.config):
                return Outcome(None, failed)
        print(f"\nstep {len(todo) + 1} of {len(todo) + 1}")
        page = compare(store, f"{root}/{HELD_OUT_KEY}")
        print(f"\n{page}")
        return Outcome(page)


@refusing()
def _open(output: str) -> Store:
    return open_output(output)


def steps(root: str, gang_size: int) -> list[Step]:
    """What other jobs do of the demo, in order."""
    model = ModelConfig(MODEL)
    first, calibration = f"{root}/{FIRST_KEY}", f"{root}/{CALIBRATION_KEY}"
    held_out, schedule = f"{root}/{HELD_OUT_KEY}", f"{root}/schedules/fitted-b{BUDGET}.json"
    graph, schedules = f"{root}/graph", f"{root}/schedules"
    budgets = ",".join(map(str, BUDGETS))
    return [
        Step(
            "render",
            ["--model", MODEL, "--prompts", first, "--budget", str(BUDGET),
             "--output", f"{root}/first"],
            render.Config(f"{root}/first", first, model, budget=BUDGET),
            lambda config: render.run(config).failed,
        ),
        Step(
            "calibrate",
            ["--model", MODEL, "--prompts", calibration, "--seeds", "1", "--output", root],
            calibrate.Config(root, calibration, model, seeds=1),
            lambda config: calibrate.run(config).failed,
        ),
        Step(
            "solve",
            ["--graph", graph, "--budgets", budgets, "--method", "paper", "--output", schedules],
            solve.Config(graph, schedules, BUDGETS, method="paper"),
            _solve,
        ),
        Step(
            "solve",
            ["--graph", graph, "--budgets", budgets, "--gangs", GANGS, "--output", schedules],
            solve.Config(graph, schedules, BUDGETS, fleet=FleetConfig(gangs=GANGS)),
            _solve,
        ),
        Step(
            "render",
            ["--model", MODEL, "--prompts", held_out, "--schedule", schedule,
             "--gang-size", str(gang_size), "--output", root],
            render.Config(root, held_out, model, schedule, fleet=FleetConfig(gang_size)),
            lambda config: render.run(config).failed,
        ),
        Step("verify", [root], verify.Config(root), lambda config: verify.run(config).problems),
    ]  # fmt: skip


def _solve(config: solve.Config) -> int:
    solve.run(config)  # which raises what fails
    return 0


def compare(store: Store, prompts: str) -> str:
    """Renders the held-out prompts in full too, and writes report.html; returns where it is."""
    schedules = {
        budget: Schedule.loads(store.get(f"schedules/fitted-b{budget}.json")) for budget in BUDGETS
    }
    model = find_model(MODEL)
    items = plan_items(read_prompts(prompts), model, model.defaults, schedules[BUDGET])
    print(f"comparing {len(items)} videos with their full runs, same noise", flush=True)
    from cluster.fleet import driver as fleet  # with Ray

    staffing, one = Staffing(), Gangs(rank_builder(model), 1)
    results = fleet.run(Comparison(schedules[BUDGET]), items, one, staffed=staffing.staffed)
    compared = progress(results, len(items), "pairs", also=staffing.__str__)
    pairs = sorted(compared, key=lambda pair: pair.item.index)
    if not store.exists(RENDER_REPORT_KEY):  # this page takes the place of the render's
        store.put(RENDER_REPORT_KEY, store.get("report.html"))
    keys = {
        row["item_id"]: row["key"] for key in store.list(PARTS) for row in read_part(store, key)
    }
    root = store.uri("report.html").removesuffix("/report.html")
    page = demo_page(root, pairs, keys, schedules, BUDGET)
    store.put("report.html", page.encode())
    print(headline(pairs))
    return store.uri("report.html")


def spread(items: Sequence[Caption], count: int) -> list[Caption]:
    """`count` of the captions, evenly spread over their order."""
    return [items[index * len(items) // count] for index in range(count)]
