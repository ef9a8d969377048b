"""On-policy fitting over gangs: one budget a task, on trajectories that the gang ran itself.

A gang records its reference trajectories once and keeps them for its next budget; what leaves it
are weights and scores. Forwards are counted, and shared out so that on one gang five budgets cost
no more than LIMIT_VIDEOS full videos a trajectory: the references, the fit of each budget's path,
the runs that are left out of it to predict its fidelity, and with what is left the choice between
candidate paths and the comparison with the paper's schedule. A search of the steps (`search`) has
a budget of its own. Further gangs save time and change no weight, but each runs the references
again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.fleet.beginning import begin
from cluster.fleet.gang import TASK_DEADLINE_S, Gang
from cluster.fleet.gangs import Gangs
from cluster.models.model import Model
from jobs._shared.progress import Staffing, progress
from jobs.solve.searching import Searched, searched, split
from meancache.calibration import Calibration
from meancache.errors import CalibrationError
from meancache.grid import Grid
from meancache.methods import (
    CANDIDATE_GAMMAS,
    candidate_paths,
    paper_gamma,
    paper_schedules,
    weighted_schedule,
)
from meancache.quality import MOST_DECIBELS, Summary, mean_interval
from meancache.reference import check_refines
from meancache.schedule import Edge, Schedule
from meancache.search import rollout_forwards
from meancache.solver import Steps

if TYPE_CHECKING:
    from cluster.ranks.renderer import Renderer
    from meancache.fitting import Fitter

LIMIT_VIDEOS = 4


@dataclass(frozen=True)
class Fitting:
    """What is to be fitted, for all gangs alike.

    Attributes:
        graph: whose trajectories are run again, and whose costs gave the candidates.
        arguments: of the pipeline's call.
        trajectories: (prompt, seed) to fit on.
        candidates: budget -> computed steps, the favourite first.
        baselines: budget -> the paper's schedule, to compare with.
        fine_grid: noise levels of a finer reference, or None for the run of the graph's steps.
        calls: forwards in a step that is computed.
        search: full videos that each budget's search of the steps may take; 0 for no search.
        grams: (N, T, T) of the trajectories, where there is a search.
    """

    graph: Calibration
    arguments: Mapping[str, Any]
    trajectories: Sequence[tuple[str, int]]
    candidates: Mapping[int, Sequence[Steps]]
    baselines: Mapping[int, Schedule]
    fine_grid: Grid | None
    calls: int = 1
    search: int = 0
    grams: np.ndarray | None = field(compare=False, repr=False, default=None)


@dataclass(frozen=True)
class FitRequest:
    """What every rank of a gang gets to fit one budget.

    Attributes:
        grid: the schedules' noise levels.
        fine_grid: the reference's, where it is a finer one.
        arguments: of the pipeline's call.
        trajectories: (prompt, seed) to fit on.
        candidates: computed steps to choose from.
        tried: how many of the trajectories the candidates and the baseline are tried on; with 0
            the first candidate is taken.
        baseline: the schedule to compare with.
        grams: (N, T, T) of the trajectories, for a search to predict paths by.
        search: forwards that the search of the steps may take, each call of a step counted once;
            0 for no search.
    """

    grid: Grid
    fine_grid: Grid | None
    arguments: Mapping[str, Any]
    trajectories: tuple[tuple[str, int], ...]
    candidates: tuple[Steps, ...]
    tried: int
    baseline: Schedule
    grams: np.ndarray | None = field(compare=False, repr=False, default=None)
    search: int = 0

    @property
    def videos(self) -> int:
        """What it may cost, in full videos: the references, and all else within the limit."""
        reference = self.fine_grid or self.grid
        finer = reference.num_inference_steps // self.grid.num_inference_steps
        search = self.search // self.grid.num_inference_steps
        return len(self.trajectories) * (finer + LIMIT_VIDEOS) + search


@dataclass(frozen=True)
class FitAnswer:
    """What leaves the gang.

    Attributes:
        budget: whose it is.
        edges: the schedule's, with weights.
        psnr: dB against the reference, a video of each of the trajectories: under weights fitted
            without its prompt, or fitted on it where there is no other prompt.
        baseline_psnr: dB of the baseline's videos, of those that it was tried on.
        forwards: of the transformer, references included where this gang had to run them.
        searched: what the search came to, where there was one.
        unseen: the first of the trajectories that had no part in choosing the steps; those from
            there on predict.
    """

    budget: int
    edges: tuple[Edge, ...]
    psnr: tuple[float, ...]
    baseline_psnr: tuple[float, ...]
    forwards: int
    searched: Searched | None = None
    unseen: int = 0


# On a rank: the references it keeps for the next budget, by what they are references of.
_kept: dict[object, Fitter] = {}


def fit_budget(renderer: Renderer, request: FitRequest) -> FitAnswer:
    """The gang's task: the best candidate's weights, and how close they come."""
    fitter, before = _fitter(renderer, request)
    parts = split(request.trajectories) if request.search else None
    best, outcome = request.candidates[0], None
    if parts is not None and request.grams is not None:
        outcome = searched(
            renderer,
            fitter,
            request.grid,
            request.candidates,
            request.grams,
            parts,
            request.search,
        )
        best = outcome.found.steps
    elif request.tried and len(request.candidates) > 1:
        fits = fitter.fit(request.candidates, request.tried)
        best = renderer.broadcast(max(request.candidates, key=lambda steps: fits[steps].score))
    if prompts_of(request.trajectories) > 1:
        fit, scores = fitter.fit_held_out(best)
    else:
        fit, scores = fitter.fit_and_render(best)
    baseline = fitter.fidelity(request.baseline, slice(request.tried))
    return FitAnswer(
        budget=request.baseline.budget,
        edges=fit.edges,
        psnr=tuple(scores),
        baseline_psnr=tuple(baseline),
        forwards=fitter.forwards - before,
        searched=outcome,
        unseen=0 if parts is None else parts.unseen(request.trajectories),
    )


def prompts_of(trajectories: Sequence[tuple[str, int]]) -> int:
    """How many different prompts the trajectories are of."""
    return len({prompt for prompt, _ in trajectories})


def fit_forwards(budget: int, trajectories: Sequence[tuple[str, int]]) -> int:
    """Forwards of a trajectory in the fit of one path, and in the run that is left out of it."""
    return 2 * budget - 1 if prompts_of(trajectories) > 1 else budget


def _fitter(renderer: Renderer, request: FitRequest) -> tuple[Fitter, int]:
    """The rank's fitter for these trajectories, and the forwards that it had run before."""
    from meancache.fitting import Fitter  # with diffusers, which ranks alone need

    grids = (request.grid, request.fine_grid)
    key = (grids, request.trajectories, tuple(sorted(request.arguments.items())))
    if key in _kept:
        return _kept[key], _kept[key].forwards
    _kept.clear()
    runs = renderer.runs(request.trajectories, request.arguments)
    prompts = [prompt for prompt, _ in request.trajectories]
    _kept[key] = Fitter(renderer.pipeline, request.grid, runs, request.fine_grid, prompts)
    return _kept[key], 0


def fit_on_gang(gang: Gang, request: FitRequest) -> FitAnswer:
    """What the fleet does with each budget; a `fleet.Work`. Raises GangError."""
    answer, _ = gang.run_with_retries(fit_budget, request, request.videos * TASK_DEADLINE_S)
    return answer


def prepare_fitting(
    graph: Calibration,
    model: Model,
    budgets: Sequence[int],
    trajectories: int,
    gamma: float | None = None,
    reference_steps: int | None = None,
    search: int = 0,
) -> Fitting:
    """Finds the candidates and checks what can be checked before a rank starts.

    Args:
        graph: a finished calibration of `model`.
        model: whose trajectories they are.
        budgets: forwards a video may take.
        trajectories: how many of the graph's to fit on, evenly spread.
        gamma: of the candidates' costs; None tries CANDIDATE_GAMMAS.
        reference_steps: of a finer reference, or None.
        search: full videos that each budget's search of the steps may take; 0 for none.

    Raises:
        CalibrationError: the model here is not the graph's, or the graph holds no prompts.
        ModelError: so many reference steps are beyond any model.
        FittingError: the reference steps do not refine the graph's grid.
        SolverError: a budget or gamma breaks a rule, or a search has too few trajectories.
    """
    if dict(graph.model) != model.key:
        raise CalibrationError(
            f"the graph was calibrated on {dict(graph.model)}, but {model.id} is now {model.key}: "
            "calibrate again, or solve with --method secant, which runs no model"
        )
    chosen = graph.spread(trajectories)
    pairs = [(item.prompt, item.seed) for item in chosen]
    if search:
        split(pairs)
    gammas = CANDIDATE_GAMMAS if gamma is None else (gamma,)
    steps = graph.grid.num_inference_steps
    conditions = {
        name: value
        for name, value in graph.conditions.items()
        if name in model.kind.takes and value is not None
    }
    arguments = {**model.defaults, **conditions, "num_inference_steps": steps}
    fine_grid = None
    if reference_steps is not None:
        model.check_arguments({**arguments, "num_inference_steps": reference_steps}, 1)
        fine_grid = model.grid(reference_steps, arguments)
        check_refines(graph.grid, fine_grid)
    return Fitting(
        graph=graph,
        arguments=arguments,
        trajectories=pairs,
        candidates=candidate_paths(graph, budgets, gammas),
        baselines=paper_schedules(graph, budgets, paper_gamma(graph), "jump"),
        fine_grid=fine_grid,
        calls=model.calls(arguments),
        search=search,
        grams=np.stack([item.gram[:steps, :steps] for item in chosen]) if search else None,
    )


def requests(fitting: Fitting) -> list[FitRequest]:
    """One request a budget, the longest first, within the limit of forwards of one gang.

    What is left after references and fits is for trying candidates and baseline, on as many of
    the trajectories as it takes; with nothing left, the favourite is fitted untried.
    """
    steps = fitting.graph.grid.num_inference_steps
    count = len(fitting.trajectories)
    budgets = sorted(fitting.candidates, reverse=True)
    fits = sum(fit_forwards(budget, fitting.trajectories) for budget in budgets)
    left = count * ((LIMIT_VIDEOS - 1) * steps - fits)
    trial = sum(budgets) + sum(map(rollout_forwards, fitting.candidates.values()))
    return [
        FitRequest(
            grid=fitting.graph.grid,
            fine_grid=fitting.fine_grid,
            arguments=fitting.arguments,
            trajectories=tuple(fitting.trajectories),
            candidates=tuple(fitting.candidates[budget]),
            tried=min(count, max(0, left // trial)),
            baseline=fitting.baselines[budget],
            grams=fitting.grams,
            search=fitting.search * steps,
        )
        for budget in budgets
    ]


def fit_all(
    fitting: Fitting, gangs: Gangs, budgets: Collection[int] | None = None
) -> Iterator[FitAnswer]:
    """Fits budgets, all by default; yields answers as they come, raises what `fleet.run` does."""
    begin(gangs)
    from cluster.fleet import driver as fleet  # with Ray

    wanted = fitting.candidates if budgets is None else budgets
    asked = [one for one in requests(fitting) if one.baseline.budget in wanted]
    staffing = Staffing("fitting")
    answers = fleet.run(fit_on_gang, asked, gangs, staffed=staffing.staffed)
    return progress(answers, len(asked), "budgets fitted", also=staffing.__str__)


def fitted_schedule(fitting: Fitting, answer: FitAnswer) -> Schedule:
    """The schedule of an answer, with the fidelity that is predicted of it.

    Predicted by the calibration runs under weights that have not seen their prompts, with the 90%
    interval of their mean; no interval, where all are of one prompt. After a search only by those
    that had no part in it: a path that was chosen by some runs suits those best.
    """
    scores = [min(score, MOST_DECIBELS) for score in answer.psnr[answer.unseen :]]
    fidelity = Summary.of(scores)
    prompts = [prompt for prompt, _ in fitting.trajectories[answer.unseen :]]
    interval = mean_interval(scores, prompts)
    target = fitting.fine_grid or fitting.graph.grid
    return weighted_schedule(
        fitting.graph,
        "fitted",
        answer.budget,
        answer.edges,
        record={
            "fitted_on": len(answer.psnr),
            **({"predicted_on": len(scores)} if answer.unseen else {}),
            "reference_steps": target.num_inference_steps,
            "psnr": fidelity.mean,
            "psnr_interval": None if interval is None else list(interval),
            "psnr_tail": fidelity.tail,
            "psnr_worst": fidelity.worst,
        },
    )
