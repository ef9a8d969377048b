"""Schedules and baselines x held-out pairs, against the full run.

A pair's rows are committed as one small file, so a restarted job renders the pairs that are
missing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.fleet.beginning import begin
from cluster.fleet.gang import GangTaskError
from cluster.models.model import Model
from cluster.ranks import rank_builder
from cluster.results.attempts import close_round, open_round
from cluster.store import Store, StoreError
from cluster.work import plan
from cluster.work.plan import WorkItem, specification
from jobs._shared.configs import FleetConfig
from jobs._shared.images import keep_all
from jobs._shared.progress import Staffing, counted, progress
from jobs._shared.roots import to_look_at
from jobs.evaluate.config import Config
from jobs.evaluate.methods import Method, from_baselines, from_schedules
from jobs.evaluate.pairs import (
    ATTEMPTS,
    COUNTED_PAIRS,
    PAIRS,
    BaselineCalibration,
    Evaluation,
    pair_key,
)
from jobs.evaluate.request import CAPTIONED, SPEC_KEY, Comparison, prepare
from jobs.evaluate.results import margins, prediction_error, results
from jobs.evaluate.summary import text_table
from jobs.evaluate.table import from_parquet, schema_of, scoreboard, to_parquet
from meancache.baselines import Baseline
from meancache.calibration import Calibration
from meancache.quality import LpipsAbsentError, lpips_metric
from meancache.schedule import Schedule

__all__ = ["Config", "Outcome", "compare", "pair_key", "prepare", "run", "schedules_on_pairs"]

CALIBRATED = "evaluation/calibrated/"
TABLE_KEY = "evaluation.parquet"
REPORT_KEY = "report.html"


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        table: of `jobs.evaluate.table`; None where pairs failed, or of a dry run.
        failed: pairs, or the calibration of the baselines, that failed for good.
    """

    table: pa.Table | None
    failed: int = 0


def run(config: Config) -> Outcome:
    """Renders the missing pairs, and writes table and report."""
    return compare(prepare(config), config.dry_run)


def schedules_on_pairs(
    store: Store,
    pairs: list[WorkItem],
    schedules: Mapping[str, Schedule],
    model: Model,
    arguments: Mapping[str, Any],
    graph: Calibration,
    gangs: FleetConfig,
) -> Comparison:
    """A comparison of schedules in memory on pairs in memory, for `compare`.

    Args:
        store: where it goes.
        pairs: prompts and seeds, none of them calibrated on.
        schedules: by names that tell them apart.
        model: what renders them.
        arguments: of the pipeline's call.
        graph: what the schedules were solved from, for the page.
        gangs: the gangs that render.
    """
    spec = specification("evaluate", pairs, model, arguments)
    return Comparison(
        store=store,
        items=pairs,
        methods=from_schedules(schedules),
        calibration=None,
        graph=graph,
        fine=None,
        unusable=[],
        calls=model.calls(arguments),
        # The name of the key is part of the format.
        spec={**spec, "contenders": {name: one.id for name, one in schedules.items()}},
        gangs=gangs.recruit(rank_builder(model, arguments)),
        captioned=model.id == CAPTIONED,
    )


def compare(comparison: Comparison, dry_run: bool = False) -> Outcome:
    """Renders the missing pairs, and writes table and report.

    Args:
        comparison: of `prepare` or `schedules_on_pairs`.
        dry_run: say what would be done, and stop.
    """
    store, items = comparison.store, comparison.items
    done = set(store.list(PAIRS))
    missing = [item for item in items if pair_key(item) not in done]
    _announce(comparison, missing)
    if dry_run:
        return Outcome(None)
    if missing:
        begin(comparison.gangs)
    from cluster.fleet import driver as fleet  # with Ray, which a refusal does without

    plan.freeze(store, comparison.spec, SPEC_KEY)
    comparison.adapters.keep(store)
    if comparison.rows is not None:
        keep_all(store, comparison.rows)
    try:
        methods = comparison.methods + _calibrated(comparison, wanted=bool(missing))
    except GangTaskError as error:
        print(f"failed: calibration of the baselines: {error}", file=sys.stderr)
        return Outcome(None, 1)
    attempts = open_round(store, ATTEMPTS)
    work = Evaluation(attempts, methods, comparison.fine, comparison.captioned)
    staffing = Staffing()
    pairs = fleet.run(work, missing, comparison.gangs, work.lost, staffing.staffed, store)
    answers = progress(pairs, len(missing), "pairs", also=staffing.__str__)
    problems = [answer for answer in answers if answer]
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    if problems:
        close_round(attempts)
        print(f"{counted(len(problems), 'pair')} failed; the same command tries them again")
        return Outcome(None, len(problems))
    rows = (row for item in items for row in _pair(store, item).to_pylist())
    table = scoreboard(rows, schema_of(comparison.captioned))
    store.put(TABLE_KEY, to_parquet(table))
    from jobs.evaluate.page import evaluation_page  # with matplotlib

    schedules = [one.schedule for one in methods if one.schedule is not None]
    page = evaluation_page(table, schedules, comparison.graph, comparison.unusable)
    store.put(REPORT_KEY, page.encode())
    _conclude(comparison, table, schedules)
    return Outcome(table)


def _announce(comparison: Comparison, missing: Sequence[WorkItem]) -> None:
    steps = comparison.items[0].arguments["num_inference_steps"]
    each = steps + (0 if comparison.fine is None else comparison.fine.nfe)
    each += sum(steps if one.schedule is None else one.schedule.nfe for one in comparison.methods)
    free = any(one.schedule is None for one in comparison.methods)
    forwards = each * len(missing)
    if free:  # the first pairs run once more what does not know its own compute
        measured = sum(item.index < COUNTED_PAIRS for item in missing)
        unknown = sum(one.schedule is None for one in comparison.methods)
        forwards += measured * steps * (1 + unknown)
    methods = counted(len(comparison.methods), "method")
    done = len(comparison.items) - len(missing)
    print(
        f"evaluate: {counted(len(missing), 'pair')} to do, {done} already done; {methods} and the "
        f"full run, {'at most ' if free else ''}{forwards * comparison.calls} forwards"
    )
    if comparison.calibration is not None:
        runs = counted(len(comparison.calibration.trajectories), "trajectory")
        print(f"before them, baselines are calibrated on {runs} of the graph")


def _calibrated(comparison: Comparison, wanted: bool) -> list[Method]:
    """The baselines that are calibrated first; their schedules are committed, and stay.

    Args:
        comparison: the evaluation.
        wanted: whether videos are still to be rendered; the committed schedules are enough if not.

    Raises:
        GangTaskError: the calibration failed for good.
    """
    if comparison.calibration is None:
        return []
    store = comparison.store
    found: list[Baseline | Schedule] = []
    if wanted:
        print("calibrating baselines", file=sys.stderr)
        from cluster.fleet import driver as fleet

        one = replace(comparison.gangs, least=1, most=1)
        (found,) = fleet.run(BaselineCalibration(comparison.calibration), [None], one)
    for schedule in (one for one in found if isinstance(one, Schedule)):
        key = f"{CALIBRATED}{schedule.method}-b{schedule.budget}.json"
        # A resumed job goes on with the schedules that its first pairs ran.
        if not store.exists(key):
            store.put_new(key, schedule.dumps().encode())
    committed = {key: Schedule.loads(store.get(key)) for key in store.list(CALIBRATED)}
    ready = from_baselines(one for one in found if isinstance(one, Baseline))
    taken = {one.name for one in comparison.methods}
    return [one for one in (*ready, *from_schedules(committed)) if one.name not in taken]


def _pair(store: Store, item: WorkItem) -> pa.Table:
    key = pair_key(item)
    try:
        return from_parquet(store.get(key))
    except ValueError as error:
        raise StoreError(
            f"{store.uri(key)}: {error}; delete it to render the pair again"
        ) from error


def _conclude(comparison: Comparison, table: pa.Table, schedules: Sequence[Schedule]) -> None:
    """The result, for a terminal."""
    found = results(table)
    print(f"\n{text_table(found, schedules)}\n")
    if all(one.lpips is None for one in found):
        print(f"no LPIPS: {_lpips_absence()}")
    for method, reason in comparison.unusable:
        print(f"no {method}: {reason}")
    for margin in margins(found):
        print(margin)
    error = prediction_error(found, schedules)
    if error is not None:
        print(
            f"measured minus predicted PSNR, over the schedules that predict theirs: {error} dB, "
            f"lowest {error.worst:+.1f}"
        )
    if any(one.schedule is None for one in comparison.methods):
        print(f"the compute of methods that are not schedules was counted on {COUNTED_PAIRS} pairs")
    print(f"{counted(len(comparison.items), 'pair')}, {counted(len(found), 'method')}")
    print(f"report: {to_look_at(comparison.store, REPORT_KEY)}")


def _lpips_absence() -> str:
    try:
        lpips_metric()
    except LpipsAbsentError as error:
        return str(error)
    return "it is here, but was not on the machines that rendered the videos"
