"""All that can be checked of an evaluation before any rank starts, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.fleet.gangs import Gangs
from cluster.models.model import Model, ModelError
from cluster.ranks import rank_builder
from cluster.store import Store, open_store
from cluster.work import plan
from cluster.work.adapters import LORA, Adapters, of_text
from cluster.work.plan import WorkItem, plan_items, specification
from cluster.work.prompts import Prompts, PromptsError, read_prompts
from jobs._shared.calibrations import carried_schedule, check_calibration, read_calibration
from jobs._shared.images import examine_all
from jobs._shared.predictions import prediction
from jobs._shared.prompts import plain
from jobs._shared.roots import open_output, read_graph, refusing
from jobs.evaluate.config import Config
from jobs.evaluate.methods import (
    CalibrationRequest,
    Method,
    from_baselines,
    from_graph,
    from_schedules,
)
from jobs.evaluate.table import FULL
from meancache import baselines
from meancache.calibration import Calibration
from meancache.errors import CalibrationError, ScheduleError
from meancache.reference import check_refines, fine_schedule
from meancache.schedule import Schedule

SPEC_KEY = "evaluation/job.json"
CALIBRATION_RUNS = 10
# The pipeline that the settings of the baselines were tuned for.
BASELINES_PIPELINE = "HunyuanVideoPipeline"
NEED_CALIBRATION = (
    "magcache, teacache-rescaled, dpcache, l2p, spectrum, hicache, freecache, paper-forced, "
    "optimal-stepsize, budcache, refined and other packages' baselines"
)
# The model whose prompts are captions of known facts.
CAPTIONED = "tiny"


@dataclass(frozen=True)
class Comparison:
    """An evaluation that nothing speaks against.

    Attributes:
        store: where the pairs, the table and the page go.
        items: the pairs.
        methods: what is compared with the full run.
        calibration: what baselines are calibrated on first; None where none are.
        graph: what the schedules were solved from, for the page; None where it is not known.
        fine: the schedule of a fine solution to measure against too, or None.
        unusable: (method, why) of the baselines that are left out.
        calls: forwards in a step that is computed.
        spec: what was asked for.
        gangs: the gangs that render.
        captioned: whether the prompts are captions whose facts can be counted.
        calibrated: (calibration, budget) -> its schedule, of those among the methods.
        rows: of the prompts file, with their images; None where they have none.
        adapters: of all videos.
    """

    store: Store
    items: list[WorkItem]
    methods: list[Method]
    calibration: CalibrationRequest | None
    graph: Calibration | None
    fine: Schedule | None
    unusable: list[tuple[str, str]]
    calls: int
    spec: Mapping[str, Any]
    gangs: Gangs
    captioned: bool
    calibrated: Mapping[tuple[str, int], Schedule] = field(default_factory=dict)
    rows: Prompts | None = None
    adapters: Adapters = field(default_factory=Adapters)


@refusing()
def prepare(config: Config) -> Comparison:
    """Checks the whole request before any rank starts."""
    model, arguments = config.model.find()
    prompts = read_prompts(config.prompts, config.prompt_column)
    size = config.fleet.gang_size
    arguments |= examine_all(config.model, config.output, prompts, model, size, "an evaluation")
    adapters = Adapters()
    if config.model.lora:
        arguments[LORA] = adapters.resolved(tuple(map(of_text, config.model.lora)))
    gangs = config.fleet.recruit(rank_builder(model, arguments))
    model.check_arguments(arguments, gangs.size)
    items = plan_items(prompts, model, arguments, seeds=config.seeds)
    plan.check_one_setting(items, arguments, images=True)
    graph = None if config.graph is None else read_graph(config.graph)
    methods = _methods(config, graph, items)
    for one in methods:
        _check_schedule(model, one, arguments)
    calibrated = _calibrated(config, model, arguments, items)
    methods = _with_calibrated(methods, calibrated)
    calibration = None
    if config.baselines:
        _check_baselines(model, gangs.size, arguments)
        if graph is not None:
            calibration = _baseline_calibration(graph, methods, arguments)
        methods += from_baselines(baselines.sweep())
    spec = {
        **specification("evaluate", items, model, arguments),
        # The name of the key is part of the format.
        "contenders": {
            one.name: one.source if one.schedule is None else one.schedule.id for one in methods
        },
        "calibrated_on": None if calibration is None or graph is None else graph.id,
        "reference_steps": config.reference_steps,
    }
    fine = _fine(model, arguments, config.reference_steps, gangs.size)
    store = open_output(config.output)
    plan.check_spec(store, spec, SPEC_KEY)
    return Comparison(
        store=store,
        items=items,
        methods=methods,
        calibration=calibration,
        graph=graph,
        fine=fine,
        unusable=_unusable(graph) if config.baselines else [],
        calls=model.calls(arguments),
        spec=spec,
        gangs=gangs,
        captioned=model.id == CAPTIONED,
        calibrated=calibrated,
        rows=prompts,
        adapters=adapters,
    )


def _methods(config: Config, graph: Calibration | None, items: Sequence[WorkItem]) -> list[Method]:
    """The schedules, and what else the graph gives to compare them with."""
    if config.schedules is None and config.calibrations is None:
        raise ScheduleError(
            "there is nothing to compare: give --schedules DIR, the --output of jobs.solve, or "
            "--calibrations DIR"
        )
    found = {} if config.schedules is None else _read_schedules(config.schedules)
    methods = from_schedules(found)
    if graph is None:
        return methods
    _check_held_out(items, graph)
    _check_graph(methods, graph)
    return methods + from_graph(graph, methods)


def _calibrated(
    config: Config, model: Model, arguments: Mapping[str, Any], items: Sequence[WorkItem]
) -> dict[tuple[str, int], Schedule]:
    """The schedules of --calibrations for the call, by the calibration's file and budget."""
    if config.calibrations is None:
        return {}
    solved: dict[tuple[str, int], Schedule] = {}
    for name, calibration in _read_calibrations(config.calibrations).items():
        _check_held_out(items, calibration)
        check_calibration(calibration, model)
        for budget in config.budgets:
            schedule = carried_schedule(calibration, model, arguments, budget, strict=config.strict)
            solved[name, budget] = schedule
            print(f"{name}-b{budget}: {schedule.strip()}{prediction(schedule)}")
    return solved


def _with_calibrated(
    methods: list[Method], calibrated: Mapping[tuple[str, int], Schedule]
) -> list[Method]:
    """The methods, and the schedules of calibrations, named by their files."""
    if not calibrated:
        return methods
    there = {one.name: one.schedule for one in methods if one.schedule is not None}
    named = {f"{name}-b{budget}": schedule for (name, budget), schedule in calibrated.items()}
    return from_schedules({**there, **named})


def _read_calibrations(folder: str) -> dict[str, Calibration]:
    """Those of --calibrations by the stem of their files. Raises CalibrationError."""
    store = open_store(folder)
    keys = [key for key in sorted(store.list()) if "/" not in key and key.endswith(".parquet")]
    if not keys:
        raise CalibrationError(
            f"there is no calibration (*.parquet) in {folder}; give a folder of files that "
            "jobs.calibrate left as calibration.parquet, renamed"
        )
    return {key.removesuffix(".parquet"): read_calibration(store.uri(key)) for key in keys}


def _fine(
    model: Model, arguments: Mapping[str, Any], steps: int | None, gang_size: int
) -> Schedule | None:
    """The schedule of --reference-steps. Raises ModelError, FittingError."""
    if steps is None:
        return None
    model.check_arguments({**arguments, "num_inference_steps": steps}, gang_size)
    grid = model.grid(steps, arguments)
    check_refines(model.grid(arguments["num_inference_steps"], arguments), grid)
    return fine_schedule(grid)


def _check_baselines(model: Model, gang_size: int, arguments: Mapping[str, Any]) -> None:
    """Refuses --baselines where they are not set up for the model or the gang."""
    if model.pipeline != BASELINES_PIPELINE:
        raise ModelError(
            f"--baselines are set up for a {BASELINES_PIPELINE}, and {model.id} is a "
            f"{model.pipeline}: leave it out"
        )
    if arguments.get(LORA):
        raise ModelError(
            "--lora does not go with --baselines, which are calibrated without adapters: leave "
            "one of them out"
        )
    if gang_size > 1:
        raise ModelError(
            f"gang size {gang_size} does not go with --baselines: their caches know nothing of "
            "ranks; use --gang-size 1"
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
                    f"method {schedule.method!r} with budget {schedule.budget} cannot be compared: "
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


def _check_graph(methods: Sequence[Method], graph: Calibration) -> None:
    """Refuses a schedule of another graph: its prompts may be among those it is judged on."""
    for one in methods:
        known = None if one.schedule is None else one.schedule.calibration.get("graph")
        if known not in (None, graph.id):
            raise CalibrationError(
                f"{one.name} was solved from another graph than --graph, whose prompts are not "
                "known here: give the graph of all schedules, or leave --graph out"
            )


def _unusable(graph: Calibration | None) -> list[tuple[str, str]]:
    """The baselines that are not compared, and why."""
    missing = [] if graph else [(NEED_CALIBRATION, "they are calibrated first: give --graph")]
    return [*baselines.unusable(), *missing]


def _check_schedule(model: Model, one: Method, arguments: Mapping[str, Any]) -> None:
    if one.schedule is not None:
        try:
            model.check_schedule(one.schedule, arguments)
        except ModelError as error:
            raise ModelError(f"{one.name}: {error}") from error


def _baseline_calibration(
    graph: Calibration, methods: Sequence[Method], arguments: Mapping[str, Any]
) -> CalibrationRequest:
    """Up to CALIBRATION_RUNS of the trajectories, evenly spread. Raises CalibrationError."""
    return CalibrationRequest(
        trajectories=[
            (statistics.prompt, statistics.seed) for statistics in graph.spread(CALIBRATION_RUNS)
        ],
        arguments=arguments,
        fitted={
            one.budget: one.schedule
            for one in methods
            if one.method == "fitted" and one.setting is None and one.schedule and one.budget
        },
    )
