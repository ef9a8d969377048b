"""Calibrate, solve, compare on held-out prompts, promote what is better.

A run adds its trajectories to those of the runs before, fits a candidate for each budget, renders
held-out prompts with it and with the schedule that is current, and promotes it only if it is better
by more than the standard error. Every part is committed as it is made: the same command resumes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from cluster.results import calibration_registry
from cluster.results.audit import Audit, read_audits
from cluster.results.manifest import now
from cluster.results.registry import PromotedMeanwhileError, Promotion, setting_of
from cluster.store import AlreadyExists, open_store
from cluster.work import plan
from jobs._shared.predictions import prediction
from jobs._shared.progress import counted
from jobs._shared.prompts import plain
from jobs._shared.roots import begun, to_look_at
from jobs.calibrate import workflow as calibrate
from jobs.evaluate import workflow as evaluate
from jobs.refresh import audits, drift
from jobs.refresh.config import Config
from jobs.refresh.decision import Decision, Trial, judge
from jobs.refresh.history import OUTCOME_KEY, date_of
from jobs.refresh.request import RefreshRun, Rollback, prepare
from jobs.solve import workflow as solve
from meancache.calibration import Calibration
from meancache.carrying import LEVELS_BELOW
from meancache.json_values import canonical_json
from meancache.schedule import Schedule

__all__ = ["Config", "Outcome", "prepare", "run"]

MERGED_KEY = "merged.parquet"
# The names of these keys are part of the format.
CURRENT_KEY = "opponents.json"
CANDIDATES = "candidates/"
HELD_OUT = "held-out"
REPORT_KEY = "report.html"

Opponents = Mapping[int, tuple[Promotion | None, Schedule | None]]


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        promoted: budgets whose candidate was promoted, or whose previous schedule was restored.
        failed: trajectories or pairs that failed for good.
        overtaken: whether somebody else promoted while this rolled back.
    """

    promoted: tuple[int, ...] = ()
    failed: int = 0
    overtaken: bool = False


def run(config: Config) -> Outcome:
    """Refreshes, or rolls back."""
    prepared = prepare(config)
    if isinstance(prepared, Rollback):
        return _roll_back(prepared, config.dry_run)
    if prepared.store.exists(OUTCOME_KEY):
        for succession in prepared.successions.values():
            succession.publish()
        date = date_of(prepared.name)
        print(f"refresh: the run of {date} is over; the next has a date of its own")
        decisions = json.loads(prepared.store.get(OUTCOME_KEY))["decisions"]
        _say(decisions)
        print(f"report: {to_look_at(prepared.store, REPORT_KEY)}")
        return _outcome(decisions)
    _announce(prepared)
    if config.dry_run:
        return Outcome()
    with begun():
        return _refresh(prepared)


def _refresh(here: RefreshRun) -> Outcome:
    """What is left of the run, in the order in which each part is committed."""
    config = here.config
    plan.freeze(here.store, here.spec)
    here.runs.begin()
    calibrated = calibrate.run(
        calibrate.Config(
            output=here.runs.uri(here.name),
            prompts=here.prompts,
            model=config.model,
            seeds=config.seeds,
            fleet=config.fleet,
        )
    )
    if calibrated.graph is None:
        return Outcome(failed=calibrated.failed)
    graph = _graph(here, calibrated.graph)
    candidates = _candidates(here, graph)
    opponents = _opponents(here)
    evaluated = _evaluate(here, graph, candidates, opponents)
    if evaluated.table is None:
        return Outcome(failed=evaluated.failed)
    decisions = []
    for budget, (promotion, opponent) in opponents.items():
        trial = judge(evaluated.table, candidates[budget], opponent)
        decisions.append(_decide(here, budget, trial, promotion))
    return _finish(here, graph, decisions)


def _graph(here: RefreshRun, own: Calibration) -> Calibration:
    """The run's trajectories and those of the window, none of a prompt that it holds out.

    Committed once: a resumed run goes on with the graph that its candidates came from.
    """
    if not here.store.exists(MERGED_KEY):
        names = here.runs.window(here.name, here.config.window)
        graphs = [replace(own, trajectories={}), *map(here.runs.graph, names)]
        if len({one.below for one in graphs}) > 1:  # some are of an older version
            graphs = [one.plain() for one in graphs]
        graph = reduce(Calibration.merge, graphs)
        kept_back = {plain(item.prompt) for item in here.held_out}
        kept = {
            key: statistics
            for key, statistics in graph.trajectories.items()
            if plain(statistics.prompt) not in kept_back
        }
        with suppress(AlreadyExists):  # by another driver, a moment ago
            here.store.put_new(MERGED_KEY, replace(graph, trajectories=kept).statistics_parquet())
    return Calibration.from_parquet(here.store.get(MERGED_KEY))


def _candidates(here: RefreshRun, graph: Calibration) -> dict[int, Schedule]:
    """A fitted schedule for each budget; those that are there already stay."""
    keys = {budget: f"{CANDIDATES}{budget}.json" for budget in here.successions}
    missing = {budget for budget, key in keys.items() if not here.store.exists(key)}
    if missing:
        fleet = here.config.fleet
        search = here.config.search
        for schedule in solve.fitted(graph, here.model, list(keys), fleet, missing, search):
            with suppress(AlreadyExists):
                here.store.put_new(keys[schedule.budget], schedule.dumps().encode())
    found = {budget: Schedule.loads(here.store.get(key)) for budget, key in keys.items()}
    for schedule in found.values():
        print(f"candidate: {schedule.strip()} {schedule.nfe} forwards{prediction(schedule)}")
    return found


def _opponents(here: RefreshRun) -> Opponents:
    """What each candidate is to replace, frozen: a resumed run has rendered its videos already."""
    successions = here.successions
    if not here.store.exists(CURRENT_KEY):
        last = {budget: succession.current() for budget, succession in successions.items()}
        numbers = {str(budget): one and one.number for budget, one in last.items()}
        with suppress(AlreadyExists):
            here.store.put_new(CURRENT_KEY, canonical_json(numbers))
    frozen = json.loads(here.store.get(CURRENT_KEY))
    found: dict[int, tuple[Promotion | None, Schedule | None]] = {}
    for budget, succession in successions.items():
        number = frozen[str(budget)]
        if number is None:
            found[budget] = (None, None)
        else:
            promotion = succession.promotion(number)
            found[budget] = (promotion, succession.schedule(promotion.schedule_id))
    return found


def _evaluate(
    here: RefreshRun,
    graph: Calibration,
    candidates: Mapping[int, Schedule],
    opponents: Opponents,
) -> evaluate.Outcome:
    """Candidates and what they are to replace, on the same pairs."""
    schedules = {f"candidate-b{budget}": one for budget, one in candidates.items()}
    for budget, (_, opponent) in opponents.items():
        if opponent is not None:
            schedules[f"current-b{budget}"] = opponent
    return evaluate.compare(
        evaluate.schedules_on_pairs(
            store=open_store(here.store.uri(HELD_OUT)),
            pairs=here.held_out,
            schedules=schedules,
            model=here.model,
            arguments=here.arguments,
            graph=graph,
            gangs=here.config.fleet,
        )
    )


def _decide(here: RefreshRun, budget: int, trial: Trial, after: Promotion | None) -> Decision:
    """Promotes a candidate that is better, unless another was promoted meanwhile."""
    succession = here.successions[budget]
    promoted, reason = trial.is_better, trial.reason
    if promoted:
        try:
            succession.promote(trial.candidate, trial.metrics, after)
        except PromotedMeanwhileError as error:
            promoted = False
            reason = f"{error}, with which it was not compared; the next run will compare"
    succession.publish()
    return Decision(trial, promoted, reason, succession.history())


def _finish(here: RefreshRun, graph: Calibration, decisions: Sequence[Decision]) -> Outcome:
    """Looks back, writes the report, and ends the run."""
    from jobs.refresh.page import refresh_page  # with matplotlib

    earlier, differs = here.runs.before(here.name, drift.RUNS)
    moved = drift.drift(here.runs.graph(here.name), earlier, differs)
    trends = audits.trends(_audits(here), _promised(decisions))
    for store, folder in (
        (here.store, ""),
        (here.root, f"{here.runs.folder}{here.name}/"),  # the latest run's, where people look first
    ):
        page = refresh_page(
            date_of(here.name),
            here.runs.setting,
            graph,
            decisions,
            moved,
            trends,
            f"{folder}{HELD_OUT}/{REPORT_KEY}",
            here.root.uri(REPORT_KEY).removesuffix(f"/{REPORT_KEY}"),
        )
        store.put(REPORT_KEY, page.encode())
    said = [decision.to_json() for decision in decisions]
    outcome = {
        "decisions": said,
        "drift": None if moved is None else {"steps": moved.moved, "says": str(moved)},
        "audits": [str(trend) for trend in trends],
        "finished_at": now(),
    }
    _promote_calibration(here, graph, said)
    with suppress(AlreadyExists):  # another driver of this run was first
        here.store.put_new(OUTCOME_KEY, canonical_json(outcome))
    print()
    _say(said)
    print("drift: unknown until a second run" if moved is None else moved)
    for trend in trends:
        print(trend)
    print(f"report: {to_look_at(here.root, REPORT_KEY)}")
    return _outcome(said)


def _promote_calibration(here: RefreshRun, graph: Calibration, decided: Sequence[Any]) -> None:
    """Makes the run's calibration current where one of its schedules was better, or it is first."""
    setting = setting_of(here.model, here.arguments)
    better = any(one["promoted"] for one in decided)
    if better or not calibration_registry.has_current(here.root, setting):
        if calibration_registry.promote(here.root, setting, graph):
            print(f"calibration {graph.id[:16]} is current, for runs of any steps and size")
        else:
            print("another calibration was promoted meanwhile; the next run will promote its own")


def _audits(here: RefreshRun) -> list[Audit]:
    return [audit for store in here.audited for audit in read_audits(store)]


def _promised(decisions: Sequence[Decision]) -> dict[str, tuple[float, float]]:
    """Schedule id -> PSNR with which it was promoted, and its standard error."""
    return {
        promotion.schedule_id: (
            promotion.metrics["psnr"],
            promotion.metrics["psnr_standard_error"],
        )
        for decision in decisions
        for promotion in decision.history
        if {"psnr", "psnr_standard_error"} <= set(promotion.metrics)
    }


def _announce(here: RefreshRun) -> None:
    steps, budgets = here.arguments["num_inference_steps"], list(here.successions)
    begun = {key for key in here.store.list() if not key.endswith(".json")}
    done = sum(calibrate.trajectory_key(item) in begun for item in here.trajectories)
    rendered = sum(f"{HELD_OUT}/{evaluate.pair_key(item)}" in begun for item in here.held_out)
    to_run, pairs = len(here.trajectories) - done, len(here.held_out) - rendered
    print(
        f"refresh: the run of {date_of(here.name)}: {counted(to_run, 'trajectory')} to run, {done} "
        f"already done; {counted(pairs, 'held-out pair')} to render, {rendered} already done; "
        f"budgets {', '.join(map(str, budgets))}"
    )
    if here.config.dry_run:
        calls = here.model.calls(here.arguments)
        dates = len(here.runs.window(here.name, here.config.window))
        fit = solve.candidate_forwards(
            len(here.trajectories) * dates, steps, len(budgets), here.config.search
        )
        recorded = steps + LEVELS_BELOW
        forwards = to_run * recorded + fit + pairs * (steps + 2 * sum(budgets))
        print(f"at most {forwards * calls} forwards, {fit} of them to fit")


def _say(decisions: Sequence[Mapping[str, Any]]) -> None:
    for one in decisions:
        what = "promoted" if one["promoted"] else "kept the current one"
        print(f"B = {one['budget']}: {what}: {one['reason']}")


def _outcome(decisions: Sequence[Mapping[str, Any]]) -> Outcome:
    return Outcome(tuple(one["budget"] for one in decisions if one["promoted"]))


def _roll_back(prepared: Rollback, dry_run: bool) -> Outcome:
    restored: list[int] = []
    for budget, succession in prepared.successions.items():
        if dry_run:
            last = succession.current()
            previous = None if last is None else last.previous
            print(f"B = {budget}: would restore {previous or 'nothing: there is none before'}")
            continue
        try:
            promotion = succession.rollback()
        except PromotedMeanwhileError as error:
            print(f"error: B = {budget}: {error}; look at it and try again", file=sys.stderr)
            return Outcome(tuple(restored), overtaken=True)
        restored.append(budget)
        print(f"B = {budget}: {promotion.schedule_id} is current again")
    return Outcome(tuple(restored))
