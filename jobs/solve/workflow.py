"""python -m jobs.solve: a stability graph -> one schedule for each budget.

The paths are solved in seconds, without a model. Method `fitted` then runs some of the graph's
trajectories again, on gangs, to fit the weights; `secant` and `paper` need no more than the graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.fleet import driver as fleet
from cluster.models.model import find_model
from cluster.ranks import rank_builder
from cluster.store import Store
from jobs._shared import cli as _cli
from jobs._shared.numbers import finite, positive
from jobs._shared.progress import progress
from jobs.solve import fitting
from jobs.solve.fitting import LIMIT_VIDEOS, FitAnswer, Fitting
from meancache.errors import CalibrationError, SolverError
from meancache.methods import METHODS, SECANT_GAMMA, paper_gamma, paper_schedules, secant_schedules
from meancache.schedule import EXECUTIONS, Schedule

TRAJECTORIES = 10


@dataclass(frozen=True)
class Prepared:
    """What is solved already, what is still to be fitted, and where both go."""

    store: Store
    output: str
    schedules: dict[int, Schedule]
    fitting: Fitting | None
    gangs: fleet.Gangs | None
    target_psnr: float | None
    dry_run: bool


def prepare(options: argparse.Namespace) -> Prepared:
    """Reads the graph and solves its paths; nothing is written and no model is run yet."""
    graph = _cli.read_graph(options.graph)
    wanted = budgets(options.budgets)
    solved: dict[int, Schedule] = {}
    to_fit = gangs = None
    _refuse_foreign_options(options)
    if options.method == "paper":
        gamma = paper_gamma(graph) if options.gamma is None else options.gamma
        solved = paper_schedules(graph, wanted, gamma, options.execution or "jump")
    elif options.method == "secant":
        gamma = SECANT_GAMMA if options.gamma is None else options.gamma
        solved = secant_schedules(graph, wanted, gamma)
    else:
        known = graph.model
        if "id" not in known:
            raise CalibrationError(
                "the graph names no model to fit on: use --method secant or paper"
            )
        revision = None if known["id"] == "tiny" else known.get("revision")
        model = find_model(known["id"], revision, graph.conditions.get("dtype"))
        to_fit = fitting.prepare_fitting(
            graph,
            model,
            wanted,
            options.trajectories or TRAJECTORIES,
            options.gamma,
            options.reference_steps,
        )
        gangs = _cli.gangs(options, rank_builder(model, to_fit.arguments))
        if options.gangs is None:  # a second gang would run the references a second time
            gangs = replace(gangs, least=1, most=1)
        model.check_arguments(to_fit.arguments, gangs.size)
    store = _cli.open_output(options)
    return Prepared(
        store, options.output, solved, to_fit, gangs, options.target_psnr, options.dry_run
    )


def perform(prepared: Prepared) -> int:
    """Fits what is to be fitted, writes the schedules, and shows which steps each computes."""
    schedules, answers = prepared.schedules, []
    if prepared.fitting is not None and prepared.gangs is not None:
        _announce(prepared.fitting)
        if prepared.dry_run:
            return 0
        results = fitting.fit_all(prepared.fitting, prepared.gangs)
        for answer in progress(results, len(prepared.fitting.candidates), "budgets fitted"):
            answers.append(answer)
            schedules[answer.budget] = fitting.fitted_schedule(prepared.fitting, answer)
            if prepared.target_psnr is None:  # what is paid for is kept, whatever comes next
                _write(prepared, schedules[answer.budget])
        answers.sort(key=lambda answer: answer.budget)
    ordered = [schedules[budget] for budget in sorted(schedules)]
    for schedule in ordered:
        strip, forwards = schedule.strip(), f"{schedule.nfe} forwards"
        print(f"{file_name(schedule):>16} {strip} {forwards}{prediction(schedule)}")
    if answers and prepared.fitting is not None:
        print(gain(answers))
        print(cost(prepared.fitting, answers))
    if prepared.target_psnr is not None:
        try:
            ordered = [smallest_budget(ordered, prepared.target_psnr)]
        except SolverError as error:
            print(f"error: {error}; nothing was written", file=sys.stderr)
            return _cli.EXIT_ERROR
    if not prepared.dry_run:
        for schedule in ordered:
            _write(prepared, schedule)
    first = ordered[0]
    gamma = "" if first.gamma is None else f", gamma {first.gamma:g}"
    execution = "" if first.execution is None else f", execution {first.execution}"
    names = "" if len(ordered) == len(schedules) else f", {file_name(first)} alone"
    print(
        f"method {first.method}{gamma}{execution}, from a graph of "
        f"{first.calibration['trajectories']} trajectories: {prepared.output}{names}"
    )
    return 0


def _write(prepared: Prepared, schedule: Schedule) -> None:
    prepared.store.put(file_name(schedule), schedule.dumps().encode())


def file_name(schedule: Schedule) -> str:
    """'fitted-b10.json'."""
    return f"{schedule.method}-b{schedule.budget}.json"


def smallest_budget(schedules: Sequence[Schedule], target_psnr: float) -> Schedule:
    """The cheapest schedule whose fidelity on calibration runs reaches the target.

    Args:
        schedules: fitted ones; those without a known fidelity are passed over.
        target_psnr: dB, mean over videos.

    Raises:
        SolverError: none reaches it; names the one that comes closest.
    """
    known = [(one.predicted_psnr, one) for one in schedules if one.predicted_psnr is not None]
    reaching = [one for predicted, one in known if predicted >= target_psnr]
    if not reaching:
        closest = "none has a known fidelity"
        if known:
            most, best = max(known, key=lambda pair: pair[0])
            closest = f"{best.budget} forwards come closest, at {most:.1f} dB"
        raise SolverError(
            f"no budget here reaches {target_psnr:g} dB: {closest}; add larger --budgets"
        )
    return min(reaching, key=lambda schedule: schedule.budget)


def prediction(schedule: Schedule) -> str:
    """', 53.2 ± 0.9 dB on 10 calibration runs', or nothing where that is not known."""
    if schedule.predicted_psnr is None:
        return ""
    error = schedule.calibration.get("psnr_standard_error")
    spread = "" if error is None else f" ± {error:.1f}"
    count = schedule.calibration.get("fitted_on", 1)
    return f", {schedule.predicted_psnr:.1f}{spread} dB on {runs(count)}"


def runs(count: int) -> str:
    """'1 calibration run', '10 calibration runs'."""
    return f"{count} calibration run{'' if count == 1 else 's'}"


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


def budgets(text: str) -> list[int]:
    """'8,10,12' as numbers, ascending, each once. Raises SolverError."""
    try:
        return sorted({int(number) for number in text.split(",")})
    except ValueError as error:
        raise SolverError(f"budgets {text!r} must be numbers such as 8,10,12") from error


def _announce(prepared: Fitting) -> None:
    steps = prepared.graph.grid.num_inference_steps
    count = len(prepared.trajectories)
    fine = prepared.fine_grid
    print(
        f"solve: fitting {len(prepared.candidates)} budgets on {count} trajectories, some "
        f"{LIMIT_VIDEOS * steps * count * prepared.calls} forwards ({LIMIT_VIDEOS} full videos a "
        "trajectory)"
        + ("" if fine is None else f" and references of {fine.num_inference_steps} steps")
    )


# Which options only one method has.
_OPTIONS_OF = {
    "fitted": ("trajectories", "reference_steps", "target_psnr"),
    "paper": ("execution",),
}


def _refuse_foreign_options(options: argparse.Namespace) -> None:
    """An option that a method would ignore was meant for another."""
    for method, names in _OPTIONS_OF.items():
        for name in names:
            if method != options.method and getattr(options, name) is not None:
                raise SolverError(
                    f"--{name.replace('_', '-')} needs --method {method}; {options.method} has "
                    "no use for it"
                )


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.solve",
        "Solves which of the steps run the transformer, for every budget at once, and what the\n"
        "others use instead.\n\n"
        "  fitted  (default) positions with the history a run will have, weights fitted on the\n"
        "          states that it visits; runs the model on some of the graph's trajectories\n"
        "  secant  the same kind of positions, weights from the noise levels alone; no model\n"
        "  paper   MeanCache as published: costs of eq. 13, path of eq. 15; no model",
        "python -m jobs.solve --graph out/graph --budgets 8,10,12 --output out/schedules",
    )
    _cli.add_output(result, "where the schedules go, as METHOD-bBUDGET.json")
    result.add_argument(
        "--graph", required=True, metavar="DIR", help="the ROOT/graph of jobs.calibrate"
    )
    result.add_argument(
        "--budgets",
        default="8,10,12,15",
        metavar="B,B,...",
        help="forwards a video may take (default 8,10,12,15)",
    )
    result.add_argument("--method", choices=METHODS, default="fitted", help="default: fitted")
    result.add_argument(
        "--gamma",
        type=float,
        metavar="G",
        help="how strongly single bad jumps are avoided (default: for paper its Table 4, 3 for "
        "HunyuanVideo, 4 for others; for secant 2; for fitted the better of 1 and 2)",
    )
    result.add_argument(
        "--execution",
        choices=EXECUTIONS,
        help="how the paper's jumps are run: 'jump' (default) is its eq. 10, 'fine-step' what its "
        "authors' scripts do",
    )
    group = result.add_argument_group("method fitted")
    group.add_argument(
        "--trajectories",
        type=positive,
        metavar="N",
        help=f"how many of the graph's trajectories to fit on (default {TRAJECTORIES})",
    )
    group.add_argument(
        "--reference-steps",
        type=positive,
        metavar="N",
        help="aim at the exact flow, by a reference of so many steps (a multiple of the graph's, "
        "such as 300), instead of at the run of the graph's own steps",
    )
    group.add_argument(
        "--target-psnr",
        type=finite,
        metavar="DB",
        help="write only the smallest of the budgets whose fidelity reaches this",
    )
    _cli.add_fleet(result, gangs="1, as each runs the reference trajectories for itself")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)
