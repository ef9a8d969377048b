"""A stability graph -> one schedule for each budget.

The paths are solved in seconds, without a model. Method `fitted` then runs some of the graph's
trajectories again, on gangs, to fit the weights; `secant` and `paper` need no more than the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.fleet.gangs import Gangs
from cluster.models.model import Model, find_model
from cluster.ranks import rank_builder
from cluster.store import Store
from jobs._shared.calibrations import carried_words, read_calibration
from jobs._shared.configs import DEFAULT_FLEET, FleetConfig
from jobs._shared.predictions import prediction, runs, smallest_budget
from jobs._shared.progress import counted
from jobs._shared.roots import open_output, read_graph, refusing
from jobs.solve import fitting, searching
from jobs.solve.carried import SAME, Setting, carry
from jobs.solve.fitting import LIMIT_VIDEOS, FitAnswer, Fitting
from meancache.calibration import Calibration
from meancache.errors import CalibrationError, SolverError
from meancache.json_values import shown
from meancache.methods import SECANT_GAMMA, paper_gamma, paper_schedules, secant_schedules
from meancache.schedule import Schedule

TRAJECTORIES = 10


@dataclass(frozen=True)
class Config:
    """What is solved, and how.

    Attributes:
        graph: the ROOT/graph of a calibration, or
        calibration: its file.
        output: where the schedules go.
        budgets: forwards a video may take.
        method: of `meancache.methods.METHODS`.
        gamma: how strongly single bad jumps are avoided; None for the method's own.
        execution: how the paper's jumps are run; None for 'jump'.
        trajectories: how many to fit on; None for TRAJECTORIES.
        reference_steps: of a finer reference to fit to, or None.
        setting: of the runs, where it is another than the calibration's; see `Setting`.
        strict: refuse to carry the calibration to anything but another grid.
        any_revision: take a calibration of another revision of the model.
        search: full videos that each budget's search of the steps may take; None for no search.
        target_psnr: dB; write only the smallest budget that reaches it, or None for all.
        fleet: the gangs that fit.
        dry_run: say what would be done, and stop.
    """

    graph: str | None
    output: str
    budgets: tuple[int, ...]
    method: str = "fitted"
    gamma: float | None = None
    execution: str | None = None
    trajectories: int | None = None
    reference_steps: int | None = None
    calibration: str | None = None
    setting: Setting = SAME
    strict: bool = False
    any_revision: bool = False
    search: int | None = None
    target_psnr: float | None = None
    fleet: FleetConfig = DEFAULT_FLEET
    dry_run: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        schedules: that were written, the smallest budget first; none of a dry run that would fit.
        unreached: why no budget reaches the target, where none does.
    """

    schedules: list[Schedule]
    unreached: str | None = None


@dataclass(frozen=True)
class Prepared:
    """What is solved already, what is still to be fitted, and where both go."""

    store: Store
    schedules: dict[int, Schedule]
    fitting: Fitting | None
    gangs: Gangs | None


def run(config: Config) -> Outcome:
    """Fits what is to be fitted, writes the schedules, and shows which steps each computes."""
    prepared = prepare(config)
    schedules, answers = prepared.schedules, []
    if prepared.fitting is not None and prepared.gangs is not None:
        _announce(prepared.fitting)
        if config.dry_run:
            return Outcome([])
        for answer in fitting.fit_all(prepared.fitting, prepared.gangs):
            answers.append(answer)
            schedules[answer.budget] = fitting.fitted_schedule(prepared.fitting, answer)
            if config.target_psnr is None:  # what is paid for is kept, whatever comes next
                _write(prepared.store, schedules[answer.budget])
        answers.sort(key=lambda answer: answer.budget)
    ordered = [schedules[budget] for budget in sorted(schedules)]
    for schedule in ordered:
        strip, forwards = schedule.strip(), f"{schedule.nfe} forwards"
        print(f"{file_name(schedule):>16} {strip} {forwards}{prediction(schedule)}")
    if answers and prepared.fitting is not None:
        print(gain(answers))
        for answer in answers:
            if answer.searched is not None:
                steps = prepared.fitting.graph.grid.num_inference_steps
                print(answer.searched.sentence(answer.budget, steps))
        print(cost(prepared.fitting, answers))
    if config.target_psnr is not None:
        try:
            ordered = [smallest_budget(ordered, config.target_psnr)]
        except SolverError as error:
            return Outcome([], str(error))
    if not config.dry_run:
        for schedule in ordered:
            _write(prepared.store, schedule)
    _conclude(config.output, ordered, len(schedules))
    return Outcome(ordered)


@refusing()
def prepare(config: Config) -> Prepared:
    """Reads the graph and solves its paths; nothing is written and no model is run yet."""
    graph = _calibration(config)
    solved: dict[int, Schedule] = {}
    to_fit = gangs = None
    _refuse_foreign_options(config)
    carried = carry(graph, config.setting, config.any_revision)
    if carried is not None:
        _refuse_fitting_options(config)
        solved = carried.schedules(
            config.budgets, config.method, config.gamma, config.execution, config.strict
        )
    elif config.method == "paper":
        gamma = paper_gamma(graph) if config.gamma is None else config.gamma
        solved = paper_schedules(graph, config.budgets, gamma, config.execution or "jump")
    elif config.method == "secant":
        gamma = SECANT_GAMMA if config.gamma is None else config.gamma
        solved = secant_schedules(graph, config.budgets, gamma)
    else:
        model = _model(graph)
        if model.kind.takes_image:
            raise CalibrationError(
                f"{model.id} starts from images, which a fit needs and a calibration does not "
                "hold: solve with --method secant, or give calibration.parquet to jobs.render "
                "--calibration"
            )
        if graph.conditions.get("lora"):
            raise CalibrationError(
                f"the calibration was made under the adapters {shown(graph.conditions['lora'])}, "
                "which a fit needs and a calibration does not hold: solve with --method secant, or "
                "give calibration.parquet to jobs.render --calibration"
            )
        to_fit = fitting.prepare_fitting(
            graph,
            model,
            config.budgets,
            config.trajectories or (searching.TRAJECTORIES if config.search else TRAJECTORIES),
            config.gamma,
            config.reference_steps,
            config.search or 0,
        )
        gangs = _gangs(config.fleet, model, to_fit)
        model.check_arguments(to_fit.arguments, gangs.size)
    return Prepared(open_output(config.output), solved, to_fit, gangs)


def fitted(
    graph: Calibration,
    model: Model,
    budgets: Sequence[int],
    fleet: FleetConfig,
    missing: Collection[int],
    search: int | None,
) -> Iterator[Schedule]:
    """Fits schedules to a graph in memory; yields those of `missing` as they come.

    Args:
        graph: a finished calibration of `model`.
        model: whose trajectories they are.
        budgets: of all schedules, which share the forwards that fitting may take.
        fleet: the gangs that fit.
        missing: the budgets that are still to be fitted.
        search: full videos that each budget's search of the steps may take; 0 for no search, None
            for one where there are enough trajectories for it to be worth its price.

    Raises:
        InputError: as `fitting.prepare_fitting` refuses.
        GangError: a fit failed for good.
    """
    videos, count = _unhurried(len(graph.trajectories), search)
    to_fit = fitting.prepare_fitting(graph, model, budgets, count, search=videos)
    for answer in fitting.fit_all(to_fit, _gangs(fleet, model, to_fit), missing):
        if answer.searched is not None:
            print(answer.searched.sentence(answer.budget, graph.grid.num_inference_steps))
        yield fitting.fitted_schedule(to_fit, answer)


def candidate_forwards(trajectories: int, steps: int, budgets: int, search: int | None) -> int:
    """What `fitted` may take of a graph of so many trajectories."""
    videos, count = _unhurried(trajectories, search)
    return fitting_forwards(min(count, trajectories), steps) + budgets * videos * steps


def _unhurried(trajectories: int, asked: int | None) -> tuple[int, int]:
    """Videos of each budget's search, and trajectories to fit on, where nobody waits for it."""
    unasked = searching.VIDEOS if trajectories >= searching.WORTH_IT else 0
    videos = unasked if asked is None else asked
    return videos, searching.TRAJECTORIES if videos else TRAJECTORIES


def fitting_forwards(trajectories: int, steps: int, calls: int = 1) -> int:
    """What a fit on so many trajectories may take on one gang, however many budgets it is for."""
    return LIMIT_VIDEOS * steps * trajectories * calls


def file_name(schedule: Schedule) -> str:
    """'fitted-b10.json'."""
    return f"{schedule.method}-b{schedule.budget}.json"


def gain(answers: Sequence[FitAnswer]) -> str:
    """What fitting gained over the paper's schedules, on calibration runs, in a sentence."""
    tried = len(answers[0].baseline_psnr)
    if not tried:
        return "no forwards were left to compare with the paper's schedules on calibration runs"
    gains = ", ".join(
        f"{np.mean(answer.psnr[:tried]) - np.mean(answer.baseline_psnr):+.1f} dB at B = "
        f"{answer.budget} (from {np.mean(answer.baseline_psnr):.1f})"
        for answer in answers
    )
    return f"against the paper's schedules, PSNR on {runs(tried)}: {gains}"


def cost(prepared: Fitting, answers: Sequence[FitAnswer]) -> str:
    """What fitting cost in forwards, in a sentence."""
    forwards = sum(answer.forwards for answer in answers)
    count = len(prepared.trajectories)
    videos = forwards / (count * prepared.graph.grid.num_inference_steps * prepared.calls)
    return (
        f"fitting took {forwards} forwards: {videos:.1f} full videos a trajectory, of {count}, for "
        f"{len(answers)} budgets"
    )


def _calibration(config: Config) -> Calibration:
    """What --graph or --calibration names. Raises CalibrationError."""
    if (config.graph is None) == (config.calibration is None):
        raise CalibrationError(
            "give one of --graph, the ROOT/graph of jobs.calibrate, and --calibration, its file"
        )
    if config.graph is not None:
        return read_graph(config.graph)
    assert config.calibration is not None
    return read_calibration(config.calibration)


def _model(graph: Calibration) -> Model:
    """The graph's. Raises CalibrationError where it names none."""
    known = graph.model
    if "id" not in known:
        raise CalibrationError("the graph names no model to fit on: use --method secant or paper")
    revision = None if known["id"] == "tiny" else known.get("revision")
    return find_model(known["id"], revision, graph.conditions.get("dtype"))


def _gangs(fleet: FleetConfig, model: Model, to_fit: Fitting) -> Gangs:
    """One gang unless others are asked for: a second would run the references a second time."""
    gangs = fleet.recruit(rank_builder(model, to_fit.arguments))
    return gangs if fleet.gangs is not None else replace(gangs, least=1, most=1)


def _write(store: Store, schedule: Schedule) -> None:
    store.put(file_name(schedule), schedule.dumps().encode())


def _announce(prepared: Fitting) -> None:
    steps = prepared.graph.grid.num_inference_steps
    count = len(prepared.trajectories)
    fine = prepared.fine_grid
    print(
        f"solve: fitting {counted(len(prepared.candidates), 'budget')} on "
        f"{counted(count, 'trajectory')}, some "
        f"{fitting_forwards(count, steps, prepared.calls)} forwards ({LIMIT_VIDEOS} full videos a "
        "trajectory)"
        + (f", {prepared.search} full videos a budget to search" if prepared.search else "")
        + ("" if fine is None else f" and references of {fine.num_inference_steps} steps")
    )


def _conclude(output: str, written: Sequence[Schedule], solved: int) -> None:
    first = written[0]
    gamma = "" if first.gamma is None else f", gamma {first.gamma:g}"
    execution = "" if first.execution is None else f", execution {first.execution}"
    names = "" if len(written) == solved else f", {file_name(first)} alone"
    if words := carried_words(first):
        print(words)
    print(
        f"method {first.method}{gamma}{execution}, from a graph of "
        f"{first.calibration['trajectories']} trajectories: {output}{names}"
    )


# Which options only one method has.
_OPTIONS_OF = {
    "fitted": ("trajectories", "reference_steps", "search", "target_psnr"),
    "paper": ("execution",),
}


def _refuse_foreign_options(config: Config) -> None:
    """An option that a method would ignore was meant for another."""
    for method, names in _OPTIONS_OF.items():
        for name in names:
            if method != config.method and getattr(config, name) is not None:
                raise SolverError(
                    f"--{name.replace('_', '-')} needs --method {method}; {config.method} has "
                    "no use for it"
                )


def _refuse_fitting_options(config: Config) -> None:
    """Options of a fit on runs of the model, where the calibration is carried and none is run."""
    for name in ("trajectories", "reference_steps"):
        if getattr(config, name) is not None:
            raise SolverError(
                f"--{name.replace('_', '-')} is for the calibration's own setting, where weights "
                "are fitted on runs of the model; carried to another, none are run: leave it out"
            )
