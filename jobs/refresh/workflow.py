"""python -m jobs.refresh: calibrate, solve, compare on held-out prompts, promote what is better.

A night adds its trajectories to those of the nights before, fits a candidate for each budget, draws
held-out prompts with it and with the schedule that is current, and promotes it only if it is better
by more than the standard error. Every part is committed as it is made: the same command resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from cluster.fleet import driver as fleet
from cluster.models.model import Model
from cluster.ranks import rank_builder
from cluster.results.audit import Audit, read_audits
from cluster.results.manifest import now
from cluster.results.registry import (
    PromotedMeanwhileError,
    Promotion,
    RegistryError,
    Succession,
    setting_of,
)
from cluster.store import AlreadyExists, Store, open_store
from cluster.work import plan
from cluster.work.plan import WorkItem, plan_items, specification
from cluster.work.prompts import Prompt, PromptsError, read_prompts, stable_seed
from jobs._shared import cli as _cli
from jobs._shared.numbers import positive
from jobs._shared.progress import progress
from jobs.calibrate import workflow as calibrate
from jobs.evaluate import results as scoreboard
from jobs.evaluate import workflow as evaluate
from jobs.evaluate.methods import from_schedules
from jobs.refresh import audits, drift
from jobs.refresh.decision import Decision, Verdict, judge
from jobs.refresh.held_out import LEAST_HELD_OUT, check_apart, plain, split
from jobs.refresh.history import OUTCOME_KEY, Nights, date_of
from jobs.refresh.page import refresh_page
from jobs.solve import fitting
from jobs.solve import workflow as solve
from meancache.calibration import Calibration
from meancache.errors import SolverError
from meancache.json_values import canonical_json
from meancache.schedule import Schedule

MERGED_KEY = "merged.parquet"
OPPONENTS_KEY = "opponents.json"
CANDIDATES = "candidates/"
HELD_OUT = "held-out"
REPORT_KEY = "report.html"


@dataclass(frozen=True)
class Night:
    """A refresh that nothing speaks against.

    Attributes:
        nights: the nights of its setting.
        name: of this one.
        model: what is calibrated.
        arguments: of the pipeline's call.
        calibration: tonight's trajectories, as jobs.calibrate has them.
        held_out: the pairs to judge by.
        window: how many nights' trajectories make the graph.
        successions: budget -> the schedules that were current, and are.
        audited: the render roots whose audits are read.
        spec: what was asked for.
        gangs: who renders.
        fitting_gangs: who fits.
        dry_run: say what would be done, and stop.
    """

    nights: Nights
    name: str
    model: Model
    arguments: Mapping[str, Any]
    calibration: calibrate.Prepared
    held_out: list[WorkItem]
    window: int
    successions: Mapping[int, Succession]
    audited: Sequence[Store]
    spec: Mapping[str, Any]
    gangs: fleet.Gangs
    fitting_gangs: fleet.Gangs
    dry_run: bool

    @property
    def store(self) -> Store:
        """The root, with the registry."""
        return self.nights.store

    @property
    def room(self) -> Store:
        """Where this night's own files lie."""
        return self.calibration.store


@dataclass(frozen=True)
class Rollback:
    """The successions that are to go back by one."""

    successions: Mapping[int, Succession]
    dry_run: bool


def prepare(options: argparse.Namespace) -> Night | Rollback:
    """Checks the whole request before any rank starts."""
    model, arguments = _cli.model_and_arguments(options)
    gangs = _cli.gangs(options, rank_builder(model, arguments))
    model.check_arguments(arguments, gangs.size)
    budgets = solve.budgets(options.budgets)
    steps = arguments["num_inference_steps"]
    for budget in budgets:
        if not 1 <= budget <= steps:
            raise SolverError(f"budget {budget} must be between 1 and the {steps} steps")
    setting = setting_of(model, arguments)
    if options.rollback:
        if options.prompts is not None:
            raise PromptsError("--rollback draws nothing: leave --prompts out")
        return Rollback(_successions(_cli.open_output(options), setting, budgets), options.dry_run)
    calibration, held_out = _prompts(options)
    audited = [open_store(root) for root in options.audits or []]
    for store in audited:
        if not store.exists(plan.SPEC_KEY):
            raise RegistryError(
                f"--audits {store.uri(plan.SPEC_KEY)} does not exist: give the --output of a "
                "jobs.render"
            )
    asked = {
        "model": {**model.key, "dtype": model.dtype},
        "arguments": dict(arguments),
        "prompts": _digest(calibration),
        "held_out": _digest(held_out),
        "seeds": options.seeds,
        "budgets": budgets,
        "window": options.window,
    }
    command = hashlib.sha256(canonical_json(asked)).hexdigest()[:12]
    store = _cli.open_output(options)
    negative = {"negative_prompt": arguments.get("negative_prompt")}
    nights = Nights(store, {**setting, **negative})
    name = nights.tonight(command, options.night)
    items = _tonights_items(calibration, date_of(name), model, arguments, options.seeds)
    pairs = _tonights_items(held_out, date_of(name), model, arguments, options.seeds)
    if len(pairs) < LEAST_HELD_OUT:
        raise PromptsError(
            f"{len(pairs)} held-out pair has no spread to judge by: give {LEAST_HELD_OUT} held-out "
            "prompts at least"
        )
    graph = Calibration(
        grid=model.grid(steps, arguments),
        model=model.key,
        conditions=model.conditions(arguments),
    )
    return Night(
        nights=nights,
        name=name,
        model=model,
        arguments=arguments,
        calibration=calibrate.Prepared(
            store=nights.room(name),
            items=items,
            graph=graph,
            calls=model.calls(arguments),
            spec=specification("calibrate", items, model, arguments),
            gangs=gangs,
            dry_run=False,
        ),
        held_out=pairs,
        window=options.window,
        successions=_successions(store, setting, budgets),
        audited=audited,
        spec={"schema": plan.SPEC_SCHEMA, "kind": "refresh", "night": date_of(name), **asked},
        gangs=gangs,
        # A second gang would run the references of the fit a second time.
        fitting_gangs=gangs if options.gangs else replace(gangs, least=1, most=1),
        dry_run=options.dry_run,
    )


def _prompts(options: argparse.Namespace) -> tuple[list[Prompt], list[Prompt]]:
    """The rows to calibrate on, and those to judge by. Raises PromptsError."""
    if options.prompts is None:
        raise PromptsError("--prompts P says what to calibrate on; only --rollback does without")
    rows = read_prompts(options.prompts)
    if options.held_out is None:
        return split(rows)
    held_out = read_prompts(options.held_out)
    check_apart(rows, held_out)
    return rows, held_out


def _digest(rows: Sequence[Prompt]) -> str:
    """A hash of what a night takes from a prompts file."""
    content = [[row.prompt_id, row.prompt, dict(row.overrides)] for row in rows]
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _tonights_items(
    rows: Sequence[Prompt], night: str, model: Model, arguments: Mapping[str, Any], seeds: int
) -> list[WorkItem]:
    """Every prompt `seeds` times, from noise that is the night's own."""
    fresh = [replace(row, seed=stable_seed(f"{night} {row.prompt_id}")) for row in rows]
    items = plan_items(fresh, model, arguments, seeds=seeds)
    plan.check_one_setting(items, arguments)
    return items


def _successions(
    store: Store, setting: Mapping[str, Any], budgets: Sequence[int]
) -> dict[int, Succession]:
    return {budget: Succession(store, {**setting, "budget": budget}) for budget in budgets}


def perform(prepared: Night | Rollback) -> int:
    """Refreshes, or rolls back."""
    if isinstance(prepared, Rollback):
        return _roll_back(prepared)
    if prepared.room.exists(OUTCOME_KEY):
        for succession in prepared.successions.values():
            succession.publish()
        print(f"refresh: the night of {date_of(prepared.name)} is over; the next has its own date")
        _say(json.loads(prepared.room.get(OUTCOME_KEY))["decisions"])
        print(prepared.room.uri(REPORT_KEY))
        return 0
    _announce(prepared)
    return 0 if prepared.dry_run else _refresh(prepared)


def _refresh(night: Night) -> int:
    """What is left of the night, in the order in which each part is committed."""
    plan.freeze(night.room, night.spec)
    night.nights.begin()
    code = calibrate.perform(night.calibration)
    if code != 0:
        return code
    graph = _graph(night)
    candidates = _candidates(night, graph)
    opponents = _opponents(night)
    trial = _trial(night, graph, candidates, opponents)
    code = evaluate.perform(trial)
    if code != 0:
        return code
    table = scoreboard.from_parquet(trial.store.get(evaluate.TABLE_KEY))
    decisions = [
        _decide(night, budget, judge(table, candidates[budget], opponents[budget][1]), promotion)
        for budget, (promotion, _) in opponents.items()
    ]
    _finish(night, graph, decisions)
    return 0


def _graph(night: Night) -> Calibration:
    """Tonight's trajectories and those of the window, none of a prompt that is held out tonight.

    Committed once: a resumed night goes on with the graph that its candidates came from.
    """
    if not night.room.exists(MERGED_KEY):
        graph = night.calibration.graph
        for name in night.nights.window(night.name, night.window):
            graph = graph.merge(night.nights.graph(name))
        kept_back = {plain(item.prompt) for item in night.held_out}
        kept = {
            key: statistics
            for key, statistics in graph.trajectories.items()
            if plain(statistics.prompt) not in kept_back
        }
        with suppress(AlreadyExists):  # by another driver, a moment ago
            night.room.put_new(MERGED_KEY, replace(graph, trajectories=kept).statistics_parquet())
    return Calibration.from_parquet(night.room.get(MERGED_KEY))


def _candidates(night: Night, graph: Calibration) -> dict[int, Schedule]:
    """A fitted schedule for each budget; those that are there already stay."""
    keys = {budget: f"{CANDIDATES}{budget}.json" for budget in night.successions}
    missing = {budget for budget, key in keys.items() if not night.room.exists(key)}
    if missing:
        to_fit = fitting.prepare_fitting(graph, night.model, list(keys), solve.TRAJECTORIES)
        requests = [one for one in fitting.requests(to_fit) if one.baseline.budget in missing]
        answers = fleet.run(fitting.fit_on_gang, requests, night.fitting_gangs)
        for answer in progress(answers, len(requests), "budgets fitted"):
            schedule = fitting.fitted_schedule(to_fit, answer)
            with suppress(AlreadyExists):
                night.room.put_new(keys[answer.budget], schedule.dumps().encode())
    found = {budget: Schedule.loads(night.room.get(key)) for budget, key in keys.items()}
    for schedule in found.values():
        print(f"candidate: {schedule.strip()} {schedule.nfe} forwards{solve.prediction(schedule)}")
    return found


def _opponents(night: Night) -> dict[int, tuple[Promotion | None, Schedule | None]]:
    """What each candidate is to replace, frozen: a resumed night has drawn its videos already."""
    successions = night.successions
    if not night.room.exists(OPPONENTS_KEY):
        last = {budget: succession.current() for budget, succession in successions.items()}
        numbers = {str(budget): one and one.number for budget, one in last.items()}
        with suppress(AlreadyExists):
            night.room.put_new(OPPONENTS_KEY, canonical_json(numbers))
    frozen = json.loads(night.room.get(OPPONENTS_KEY))
    found: dict[int, tuple[Promotion | None, Schedule | None]] = {}
    for budget, succession in successions.items():
        number = frozen[str(budget)]
        if number is None:
            found[budget] = (None, None)
        else:
            promotion = succession.promotion(number)
            found[budget] = (promotion, succession.schedule(promotion.schedule_id))
    return found


def _trial(
    night: Night,
    graph: Calibration,
    candidates: Mapping[int, Schedule],
    opponents: Mapping[int, tuple[Promotion | None, Schedule | None]],
) -> evaluate.Prepared:
    """Candidates and opponents on the same pairs, as jobs.evaluate has it."""
    schedules = {f"candidate-b{budget}": one for budget, one in candidates.items()}
    for budget, (_, opponent) in opponents.items():
        if opponent is not None:
            schedules[f"current-b{budget}"] = opponent
    contenders = from_schedules(schedules)
    spec = specification("evaluate", night.held_out, night.model, night.arguments)
    return evaluate.Prepared(
        store=open_store(night.room.uri(HELD_OUT)),
        items=night.held_out,
        contenders=contenders,
        calibration=None,
        graph=graph,
        fine=None,
        unusable=[],
        calls=night.model.calls(night.arguments),
        spec={**spec, "contenders": {name: one.id for name, one in schedules.items()}},
        gangs=night.gangs,
        dry_run=False,
    )


def _decide(night: Night, budget: int, verdict: Verdict, after: Promotion | None) -> Decision:
    """Promotes a candidate that is better, unless another was promoted meanwhile."""
    succession = night.successions[budget]
    promoted, reason = verdict.is_better, verdict.reason
    if promoted:
        try:
            succession.promote(verdict.candidate, verdict.metrics, after)
        except PromotedMeanwhileError as error:
            promoted = False
            reason = f"{error}, with which it was not compared; the next night will compare"
    succession.publish()
    return Decision(verdict, promoted, reason, succession.history())


def _finish(night: Night, graph: Calibration, decisions: Sequence[Decision]) -> None:
    """Looks back, writes the report, and ends the night."""
    earlier, differs = night.nights.before(night.name, drift.NIGHTS)
    moved = drift.drift(night.nights.graph(night.name), earlier, differs)
    trends = audits.trends(_audits(night), _promised(decisions))
    page = refresh_page(
        date_of(night.name), night.nights.setting, graph, decisions, moved, trends
    ).encode()
    night.room.put(REPORT_KEY, page)
    night.store.put(REPORT_KEY, page)  # the latest night's, where people look first
    said = [decision.to_json() for decision in decisions]
    outcome = {
        "decisions": said,
        "drift": None if moved is None else {"steps": moved.moved, "says": str(moved)},
        "audits": [str(trend) for trend in trends],
        "finished_at": now(),
    }
    with suppress(AlreadyExists):  # another driver of this night was first
        night.room.put_new(OUTCOME_KEY, canonical_json(outcome))
    print()
    _say(said)
    print("drift: unknown until a second night" if moved is None else moved)
    for trend in trends:
        print(trend)
    print(night.store.uri(REPORT_KEY))


def _audits(night: Night) -> list[Audit]:
    return [audit for store in night.audited for audit in read_audits(store)]


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


def _announce(night: Night) -> None:
    calibration, pairs = night.calibration, night.held_out
    steps, budgets = calibration.graph.grid.num_inference_steps, list(night.successions)
    begun = {key for key in calibration.store.list() if not key.endswith(".json")}
    run = sum(calibrate.trajectory_key(item) in begun for item in calibration.items)
    drawn = sum(f"{HELD_OUT}/{evaluate.pair_key(item)}" in begun for item in pairs)
    print(
        f"refresh: the night of {date_of(night.name)}: {len(calibration.items) - run} trajectories "
        f"to run, {run} already done; {len(pairs) - drawn} held-out pairs to draw, {drawn} already "
        f"done; budgets {', '.join(map(str, budgets))}"
    )
    if night.dry_run:
        fit = fitting.LIMIT_VIDEOS * min(solve.TRAJECTORIES, len(calibration.items)) * steps
        each = steps + 2 * sum(budgets)
        forwards = (len(calibration.items) - run) * steps + fit + (len(pairs) - drawn) * each
        print(f"at most {forwards * calibration.calls} forwards, {fit} of them to fit")


def _say(decisions: Sequence[Mapping[str, Any]]) -> None:
    for one in decisions:
        what = "promoted" if one["promoted"] else "kept the current one"
        print(f"B = {one['budget']}: {what}: {one['reason']}")


def _roll_back(prepared: Rollback) -> int:
    for budget, succession in prepared.successions.items():
        if prepared.dry_run:
            last = succession.current()
            previous = None if last is None else last.previous
            print(f"B = {budget}: would restore {previous or 'nothing: there is none before'}")
            continue
        try:
            promotion = succession.rollback()
        except PromotedMeanwhileError as error:
            print(f"error: B = {budget}: {error}; look at it and try again", file=sys.stderr)
            return _cli.EXIT_ERROR
        print(f"B = {budget}: {promotion.schedule_id} is current again")
    return 0


def _date(text: str) -> str:
    """A date, for argparse."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} must be a date such as 2026-11-21") from error


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.refresh",
        "Recalibrates, night after night: adds tonight's trajectories to those of the last ones,\n"
        "fits a schedule for each budget, compares it with the current one on held-out prompts,\n"
        "and promotes it only if it is better by more than the standard error. Then\n"
        "  python -m jobs.render --schedule current --registry ROOT ...\n"
        "renders with what is current. A refresh that was stopped is resumed by the same command.",
        "python -m jobs.refresh --model tiny --prompts prompts.txt --output s3://bucket/refresh",
    )
    _cli.add_output(result, "where the registry, the nights and report.html go")
    _cli.add_prompts(result, required=False)
    result.add_argument(
        "--held-out",
        metavar="FILE",
        help="prompts to judge by, of the same kinds of file (default: a third of --prompts, "
        "chosen by their text, always the same)",
    )
    result.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="trajectories, and held-out videos, a prompt, each from its own noise (default 1)",
    )
    result.add_argument(
        "--budgets",
        default="10",
        metavar="B,B,...",
        help="forwards a video may take; each budget has a current schedule (default 10)",
    )
    result.add_argument(
        "--window",
        type=positive,
        default=7,
        metavar="N",
        help="how many nights' trajectories schedules are made from, tonight's among them "
        "(default 7)",
    )
    result.add_argument(
        "--night",
        type=_date,
        metavar="DATE",
        help="date of this night, YYYY-MM-DD (default: the unfinished night of this command, else "
        "today, UTC); a command has one night a date",
    )
    result.add_argument(
        "--audits",
        nargs="+",
        metavar="ROOT",
        help="roots of jobs.render --audit: the report says whether their fidelity is falling",
    )
    result.add_argument(
        "--rollback",
        action="store_true",
        help="restore the previous schedule of each budget, and stop; needs the model's flags, and "
        "no --prompts",
    )
    _cli.add_model(result)
    _cli.add_fleet(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)
