"""python -m jobs.evaluate: schedules and peers x held-out pairs, against the full run.

A pair is a prompt and a seed. One gang draws its full run and then every contender's video from
the same noise, and measures them before any codec; a pair's rows are committed as one small file,
so a restarted job draws the pairs that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.fleet import driver as fleet
from cluster.fleet.driver import FleetError
from cluster.fleet.gang import TASK_DEADLINE_S, Gang, GangTaskError
from cluster.models.model import Model, ModelError
from cluster.ranks import rank_builder
from cluster.store import AlreadyExists, Store, StoreError, open_store
from cluster.work import plan
from cluster.work.plan import WorkItem, plan_items, specification
from cluster.work.prompts import PromptsError, read_prompts
from jobs._shared import cli as _cli
from jobs._shared.numbers import positive
from jobs._shared.progress import progress
from jobs.evaluate.methods import (
    CalibrationRequest,
    Contender,
    Drawing,
    DrawRequest,
    calibrate_peers,
    draw,
    fine_request,
    from_graph,
    from_peers,
    from_schedules,
    full_run,
)
from jobs.evaluate.page import evaluation_page
from jobs.evaluate.results import (
    FULL,
    from_parquet,
    margins,
    prediction_error,
    scoreboard,
    standings,
    text_table,
    to_parquet,
)
from jobs.refresh.held_out import plain
from meancache import baselines as peers
from meancache.baselines import Baseline as Peer
from meancache.calibration import Calibration
from meancache.errors import CalibrationError, ScheduleError
from meancache.quality import LpipsAbsentError, lpips_metric, psnr, ssim
from meancache.reference import check_refines, fine_schedule
from meancache.schedule import Schedule
from meancache.tiny.captions import Caption
from meancache.tiny.scorer import FACTS, score

SPEC_KEY = "evaluation/job.json"
PAIRS = "evaluation/pairs/"
CALIBRATED = "evaluation/calibrated/"
TABLE_KEY = "evaluation.parquet"
REPORT_KEY = "report.html"
# A peer's compute varies little between pairs, and counting it takes a run of its own.
COUNTED_PAIRS = 2
CALIBRATION_RUNS = 10
# What it may take, in deadlines of a full video: runs of all of them, many times over.
CALIBRATION_VIDEOS = 100
# Whose settings the peers' knobs were tuned for.
PEERS_PIPELINE = "HunyuanVideoPipeline"
NEED_CALIBRATION = "magcache, teacache-rescaled, optimal-stepsize, refined"


@dataclass(frozen=True)
class Evaluation:
    """What the fleet does with each pair; a `fleet.Work`.

    Attributes:
        store: where rows are committed.
        contenders: who competes.
        fine: the schedule of the fine solution, or None where there is none to compare with.
    """

    store: Store
    contenders: Sequence[Contender]
    fine: Schedule | None

    @property
    def counting(self) -> bool:
        """Whether somebody's share of compute has to be counted: of schedules it is known."""
        return any(one.schedule is None for one in self.contenders)

    def __call__(self, gang: Gang, item: WorkItem) -> str | None:
        """Commits one pair's rows; returns what went wrong, if anything did."""
        if self.store.exists(pair_key(item)):
            return None  # by another driver, or a leader that died a moment later
        try:
            rows = self._rows(gang, item)
            self.store.put_new(pair_key(item), to_parquet(scoreboard(rows)))
        except GangTaskError as error:
            return f"{item.prompt_id}, seed {item.seed}: {error}"
        except AlreadyExists:
            return None  # another driver was first; its rows differ in seconds alone
        return None

    def _rows(self, gang: Gang, item: WorkItem) -> list[dict[str, Any]]:
        steps = item.arguments["num_inference_steps"]
        counted = self.counting and item.index < COUNTED_PAIRS
        contestants = [full_run(steps), *self.contenders]
        full = _drawn(gang, DrawRequest(item, contestants[0], counted))
        fine = None if self.fine is None else _drawn(gang, fine_request(item, self.fine)).frames
        rows = []
        for one in contestants:
            if one.method == FULL:
                drawing = full
            else:
                asked = DrawRequest(item, one, counted and one.schedule is None)
                drawing = _drawn(gang, asked)
            rows.append(
                {
                    "method": one.method,
                    "setting": one.setting,
                    "source": one.source,
                    "prompt_id": item.prompt_id,
                    "prompt": item.prompt,
                    "schedule_id": None if one.schedule is None else one.schedule.id,
                    "budget": one.budget if one.budget is not None else drawing.steps,
                    "nfe": drawing.rendering.nfe,
                    "seed": item.seed,
                    "share": _share(one, drawing, full),
                    "seconds": drawing.rendering.loop_s,
                    **_scores(
                        drawing.frames,
                        None if one.method == FULL else full.frames,
                        fine,
                        item.prompt,
                    ),
                }
            )
        return rows


def pair_key(item: WorkItem) -> str:
    """Where a pair's rows lie."""
    return f"{PAIRS}{item.id}.parquet"


def _drawn(gang: Gang, request: DrawRequest) -> Drawing:
    try:
        drawing, _ = gang.run_with_retries(draw, request)
    except GangTaskError as error:
        raise GangTaskError(f"{request.contender.name}: {error}") from error
    return drawing


def _share(one: Contender, drawing: Drawing, full: Drawing) -> float | None:
    """The contender's share of the full run's transformer FLOPs, where it is known."""
    if one.method == FULL:
        return 1.0
    if one.schedule is not None:  # every forward of a transformer costs the same
        return drawing.rendering.nfe / full.rendering.nfe
    return drawing.flops / full.flops if drawing.flops is not None and full.flops else None


def _scores(
    video: np.ndarray, full: np.ndarray | None, fine: np.ndarray | None, prompt: str
) -> dict[str, float | None]:
    """What a video is worth; the full run is not compared with itself."""
    return {
        "psnr": None if full is None else psnr(video, full),
        "ssim": None if full is None else ssim(video, full),
        "lpips": None if full is None else _lpips(video, full),
        "psnr_fine": None if fine is None else psnr(video, fine),
        "caption": _caption_score(video, prompt),
    }


def _lpips(video: np.ndarray, full: np.ndarray) -> float | None:
    try:
        return lpips_metric()(video, full)
    except LpipsAbsentError:
        return None


def _caption_score(video: np.ndarray, prompt: str) -> float | None:
    """Share of the caption's facts shown; None where the prompt is no caption of `tiny`."""
    try:
        caption = Caption.parse(prompt)
    except ValueError:
        return None
    return score(video, caption).right / len(FACTS)


@dataclass(frozen=True)
class PeerCalibration:
    """What the fleet does once, where peers ask for calibration runs; a `fleet.Work`."""

    request: CalibrationRequest

    def __call__(self, gang: Gang, item: None) -> list[Peer | Schedule]:
        """The calibrated peers. Raises GangError."""
        deadline_s = CALIBRATION_VIDEOS * TASK_DEADLINE_S
        entrants, _ = gang.run_with_retries(calibrate_peers, self.request, deadline_s)
        return list(entrants)


@dataclass(frozen=True)
class Prepared:
    """An evaluation that nothing speaks against."""

    store: Store
    items: list[WorkItem]
    contenders: list[Contender]
    calibration: CalibrationRequest | None
    graph: Calibration | None
    fine: Schedule | None
    unusable: list[tuple[str, str]]
    calls: int
    spec: Mapping[str, Any]
    gangs: fleet.Gangs
    dry_run: bool


def prepare(options: argparse.Namespace) -> Prepared:
    """Checks the whole request before any rank starts."""
    model, arguments = _cli.model_and_arguments(options)
    gangs = _cli.gangs(options, rank_builder(model, arguments))
    model.check_arguments(arguments, gangs.size)
    items = plan_items(read_prompts(options.prompts), model, arguments, seeds=options.seeds)
    plan.check_one_setting(items, arguments)
    contenders = from_schedules(_read_schedules(options.schedules))
    graph = None
    if options.graph is not None:
        graph = _cli.read_graph(options.graph)
        _check_held_out(items, graph)
        _check_graph(contenders, graph)
        contenders += from_graph(graph, contenders)
    for one in contenders:
        _check_schedule(model, one, arguments)
    calibration = None
    if options.peers:
        if model.pipeline != PEERS_PIPELINE:
            raise ModelError(
                f"--peers are set up for a {PEERS_PIPELINE}, and {model.id} is a "
                f"{model.pipeline}: leave it out"
            )
        if gangs.size > 1:
            raise FleetError(
                f"gang size {gangs.size} does not go with --peers: their caches know nothing of "
                "ranks; use --gang-size 1"
            )
        if graph is not None:
            calibration = _peer_calibration(graph, contenders, arguments)
        contenders += from_peers(peers.sweep())
    fine = None
    if options.reference_steps is not None:
        model.check_arguments(
            {**arguments, "num_inference_steps": options.reference_steps}, gangs.size
        )
        grid = model.grid(options.reference_steps, arguments)
        check_refines(model.grid(arguments["num_inference_steps"], arguments), grid)
        fine = fine_schedule(grid)
    spec = {
        **specification("evaluate", items, model, arguments),
        "contenders": {
            one.name: one.source if one.schedule is None else one.schedule.id for one in contenders
        },
        "calibrated_on": None if calibration is None or graph is None else graph.id,
        "reference_steps": options.reference_steps,
    }
    store = _cli.open_output(options)
    plan.check_spec(store, spec, SPEC_KEY)
    return Prepared(
        store=store,
        items=items,
        contenders=contenders,
        calibration=calibration,
        graph=graph,
        fine=fine,
        unusable=_unusable(graph) if options.peers else [],
        calls=model.calls(arguments),
        spec=spec,
        gangs=gangs,
        dry_run=options.dry_run,
    )


def _read_schedules(folder: str) -> dict[str, Schedule]:
    """The schedules of --schedules by the stem of their files. Raises ScheduleError."""
    store = open_store(folder)
    found = {}
    for key in sorted(store.list()):
        if "/" in key or not key.endswith(".json"):
            continue
        try:
            schedule = Schedule.loads(store.get(key))
            if schedule.method == FULL or schedule.budget > schedule.num_inference_steps:
                raise ScheduleError(
                    f"method {schedule.method!r} with budget {schedule.budget} cannot compete: "
                    f"'{FULL}' is the run of all steps, and no budget exceeds them"
                )
        except ScheduleError as error:
            raise ScheduleError(f"schedule {store.uri(key)}: {error}") from error
        found[key.removesuffix(".json")] = schedule
    if not found:
        raise ScheduleError(
            f"there is no schedule (*.json) in {folder}; give the --output of jobs.solve"
        )
    return found


def _check_held_out(items: Sequence[WorkItem], graph: Calibration) -> None:
    """Refuses to judge on what was calibrated on."""
    known = {plain(statistics.prompt) for statistics in graph.trajectories.values()}
    for item in items:
        if plain(item.prompt) in known:
            raise PromptsError(
                f"the prompt {item.prompt!r} is one of those that the graph was calibrated on: "
                "evaluate on prompts that no calibration has seen"
            )


def _check_graph(contenders: Sequence[Contender], graph: Calibration) -> None:
    """Refuses a schedule of another graph: its prompts may be among those it is judged on."""
    for one in contenders:
        known = None if one.schedule is None else one.schedule.calibration.get("graph")
        if known not in (None, graph.id):
            raise CalibrationError(
                f"{one.name} was solved from another graph than --graph, whose prompts are not "
                "known here: give the graph of all schedules, or leave --graph out"
            )


def _unusable(graph: Calibration | None) -> list[tuple[str, str]]:
    """The peers that do not compete, and why."""
    missing = [] if graph else [(NEED_CALIBRATION, "they are calibrated first: give --graph")]
    return [*peers.unusable(), *missing]


def _check_schedule(model: Model, one: Contender, arguments: Mapping[str, Any]) -> None:
    if one.schedule is not None:
        try:
            model.check_schedule(one.schedule, arguments)
        except ModelError as error:
            raise ModelError(f"{one.name}: {error}") from error


def _peer_calibration(
    graph: Calibration, contenders: Sequence[Contender], arguments: Mapping[str, Any]
) -> CalibrationRequest:
    """Up to CALIBRATION_RUNS of the trajectories, evenly spread. Raises CalibrationError."""
    return CalibrationRequest(
        trajectories=[
            (statistics.prompt, statistics.seed) for statistics in graph.spread(CALIBRATION_RUNS)
        ],
        arguments=arguments,
        fitted={
            one.budget: one.schedule
            for one in contenders
            if one.method == "fitted" and one.setting is None and one.schedule and one.budget
        },
    )


def perform(prepared: Prepared) -> int:
    """Draws the missing pairs, and writes table and report."""
    store, items = prepared.store, prepared.items
    done = set(store.list(PAIRS))
    missing = [item for item in items if pair_key(item) not in done]
    _announce(prepared, missing)
    if prepared.dry_run:
        return 0
    if missing:
        fleet.on_a_worker(partial(store.exists, SPEC_KEY))
    plan.freeze(store, prepared.spec, SPEC_KEY)
    try:
        contenders = prepared.contenders + _calibrated(prepared, wanted=bool(missing))
    except GangTaskError as error:
        print(f"failed: calibration of the peers: {error}", file=sys.stderr)
        return _cli.EXIT_FAILED_ITEMS
    work = Evaluation(store, contenders, prepared.fine)
    results = fleet.run(work, missing, prepared.gangs)
    problems = [problem for problem in progress(results, len(missing), "pairs") if problem]
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    if problems:
        print(f"{len(problems)} pairs failed; the same command tries them again")
        return _cli.EXIT_FAILED_ITEMS
    table = scoreboard(row for item in items for row in _pair(store, item).to_pylist())
    store.put(TABLE_KEY, to_parquet(table))
    schedules = [one.schedule for one in contenders if one.schedule is not None]
    page = evaluation_page(table, schedules, prepared.graph, prepared.unusable)
    store.put(REPORT_KEY, page.encode())
    _conclude(prepared, table, schedules)
    return 0


def _announce(prepared: Prepared, missing: Sequence[WorkItem]) -> None:
    steps = prepared.items[0].arguments["num_inference_steps"]
    each = steps + (0 if prepared.fine is None else prepared.fine.nfe)
    each += sum(steps if one.schedule is None else one.schedule.nfe for one in prepared.contenders)
    free = any(one.schedule is None for one in prepared.contenders)
    forwards = each * len(missing)
    if free:  # the first pairs run once more what does not know its own compute
        counted = sum(item.index < COUNTED_PAIRS for item in missing)
        forwards += counted * steps * (1 + sum(one.schedule is None for one in prepared.contenders))
    print(
        f"evaluate: {len(missing)} pairs to do, {len(prepared.items) - len(missing)} already done; "
        f"{len(prepared.contenders)} contenders and the full run, {'at most ' if free else ''}"
        f"{forwards * prepared.calls} forwards"
    )
    if prepared.calibration is not None:
        runs = len(prepared.calibration.trajectories)
        print(f"before them, peers are calibrated on {runs} trajectories of the graph")


def _calibrated(prepared: Prepared, wanted: bool) -> list[Contender]:
    """The contenders that are calibrated first; their schedules are committed, and stay.

    Args:
        prepared: the evaluation.
        wanted: whether videos are still to be drawn; without, the committed schedules are enough.

    Raises:
        GangTaskError: the calibration failed for good.
    """
    if prepared.calibration is None:
        return []
    store, entrants = prepared.store, []
    if wanted:
        print("calibrating peers", file=sys.stderr)
        one = replace(prepared.gangs, least=1, most=1)
        (entrants,) = fleet.run(PeerCalibration(prepared.calibration), [None], one)
    for schedule in (entrant for entrant in entrants if isinstance(entrant, Schedule)):
        key = f"{CALIBRATED}{schedule.method}-b{schedule.budget}.json"
        # A resumed job goes on with the schedules that its first pairs ran.
        if not store.exists(key):
            store.put_new(key, schedule.dumps().encode())
    committed = {key: Schedule.loads(store.get(key)) for key in store.list(CALIBRATED)}
    ready = from_peers(entrant for entrant in entrants if isinstance(entrant, Peer))
    taken = {one.name for one in prepared.contenders}
    return [one for one in (*ready, *from_schedules(committed)) if one.name not in taken]


def _pair(store: Store, item: WorkItem) -> pa.Table:
    key = pair_key(item)
    try:
        return from_parquet(store.get(key))
    except ValueError as error:
        raise StoreError(f"{store.uri(key)}: {error}; delete it to draw the pair again") from error


def _conclude(prepared: Prepared, table: pa.Table, schedules: Sequence[Schedule]) -> None:
    """The result, for a terminal."""
    found = standings(table)
    print(f"\n{text_table(found, schedules)}\n")
    if all(standing.lpips is None for standing in found):
        print(f"no LPIPS: {_lpips_absence()}")
    for method, reason in prepared.unusable:
        print(f"no {method}: {reason}")
    for margin in margins(found):
        print(margin)
    error = prediction_error(found, schedules)
    if error is not None:
        print(
            f"measured minus predicted PSNR, over the schedules that predict theirs: {error} dB, "
            f"lowest {error.worst:+.1f}"
        )
    if any(one.schedule is None for one in prepared.contenders):
        print(f"the compute of what is not a schedule was counted on {COUNTED_PAIRS} pairs")
    print(f"{len(prepared.items)} pairs, {len(found)} contenders: {prepared.store.uri(REPORT_KEY)}")


def _lpips_absence() -> str:
    try:
        lpips_metric()
    except LpipsAbsentError as error:
        return str(error)
    return "it is at hand here, but was not on the machines that drew the videos"


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.evaluate",
        "Draws held-out prompts in full, by each schedule and, if wanted, by other acceleration\n"
        "methods, all from the same noise, and says how close each comes and how fast it is.\n"
        "A job that was stopped is resumed by the same command.",
        "python -m jobs.evaluate --model tiny --prompts held-out.txt --schedules out/schedules "
        "--output out",
    )
    _cli.add_output(result, "where evaluation.parquet and report.html go")
    _cli.add_prompts(result)
    result.add_argument(
        "--schedules",
        required=True,
        metavar="DIR",
        help="the schedules that compete: every *.json in a folder or s3://bucket/prefix",
    )
    result.add_argument(
        "--graph",
        metavar="DIR",
        help="the ROOT/graph of jobs.calibrate: adds the paper's method by execution rule and "
        "gamma, and secant, at the schedules' budgets; refuses the graph's own prompts",
    )
    result.add_argument(
        "--peers",
        action="store_true",
        help="other acceleration methods compete too, each over its own knob; with --graph also "
        "those that calibrate on its trajectories (HunyuanVideo and gang size 1 only)",
    )
    result.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="videos a prompt, each from its own noise (default 1)",
    )
    result.add_argument(
        "--reference-steps",
        type=positive,
        metavar="N",
        help="measure against a fine solution of so many steps too: a multiple of the grid's "
        "steps, such as 300",
    )
    _cli.add_model(result)
    _cli.add_fleet(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)
