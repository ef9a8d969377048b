"""Fits a schedule's weights on the states that the accelerated run itself visits.

Weights that are right on reference runs are wrong on the states that their own errors lead to. So
calibration noise is rolled out on the chosen steps: at each computed step the model gives v_t
there, the estimate u_hat = sum_j c_j v_{n_{k-j}} of the last three velocities is fitted to the
velocity that would lead to the reference, z_ref[s] = z_t + (sigma_s - sigma_t) u, by least squares
over all trajectories, and the run goes on with it. What comes out is at most 3 B numbers.

The rollout is the unmodified pipeline's, started anew for every computed step: the schedule so far
runs with the velocities already known, lets the model compute one step more, and ends
the call. So whatever a pipeline does around its transformer, guidance in two forwards and its
renormalisation too, is done here as it will be in use. What is fitted is the velocity that the
sampler integrates. Knows no gang: every rank of one makes the same calls and comes to the same
weights.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline

from meancache.errors import FittingError
from meancache.grid import Grid
from meancache.hooks.hook import attach_hook, remove_mean_cache
from meancache.hooks.pipelines import transformers_of
from meancache.hooks.runs import Replay
from meancache.propagation import Response, Responses
from meancache.quality import psnr
from meancache.reference import check_refines, fine_schedule
from meancache.schedule import Edge, Schedule
from meancache.solver import Steps
from meancache.trajectory import watch_velocities

ORDER = 3
RIDGE = 1e-6
# Relative to where a run is: no error, but rounding.
ROUNDING = 1e-5


class Run(Protocol):
    """One calibration trajectory's pipeline call: always the same prompt and the same noise."""

    def __call__(self, *, decode: bool = False, **overrides: Any) -> Any:
        """Denoises, with `overrides` of the call's arguments.

        Returns:
            Where `decode` is set, (F, H, W, 3) uint8 frames, or None on ranks that do not decode;
            else whatever it likes.
        """


@dataclass(frozen=True)
class Reference:
    """Where a trajectory should go.

    Attributes:
        path: path[n] = z_ref[n] - z_0 at the T + 1 noise levels, float32 on the CPU: sums of
            velocities, as latents may be bf16.
        frames: its video, or None on ranks that do not decode.
    """

    path: list[torch.Tensor]
    frames: np.ndarray | None


@dataclass(frozen=True)
class Fit:
    """Weights for one choice of computed steps.

    Attributes:
        edges: from 0 to T, each with the weights of at most ORDER velocities.
        errors: mean squared error of the final latents against the reference, one a trajectory;
            the last jump taken as the sum of velocities that it is without renormalised guidance.
        responses: at each computed step that runs reach with an error, what their velocities do
            with it (`propagation`); not of `fit_held_out`.
    """

    edges: tuple[Edge, ...]
    errors: tuple[float, ...]
    responses: Responses = field(default_factory=dict, compare=False)

    @property
    def score(self) -> float:
        """Mean over the trajectories of -10 log10 of the error: higher is closer."""
        return -10 * float(np.mean(np.log10(np.maximum(self.errors, 1e-30))))


@dataclass(frozen=True)
class _State:
    """One trajectory of a rollout, at its newest computed step."""

    position: torch.Tensor  # z_t - z_0
    velocities: Mapping[int, torch.Tensor]  # of computed steps that the next weights may name
    replay: Replay  # the velocities of all computed steps
    responses: Mapping[int, Response] = field(default_factory=dict)  # at computed steps


_Rollout = tuple[Steps, tuple[Edge, ...], list[_State]]


class Fitter:
    """A pipeline's transformer and the calibration trajectories to fit on.

    Attributes:
        forwards: how often the transformer has run.

    Args:
        transformer: the denoiser that `runs` call, or the pipeline where it has several.
        grid: the noise levels of the schedules.
        runs: at least one.
        fine_grid: aim at the flow itself, by a run on these noise levels (`reference`), which cut
            the grid's steps evenly. None aims at the run of the grid's own steps.
        prompts: which prompt each of `runs` is of; None where each has its own.

    Raises:
        FittingError: there is no run, or the fine grid does not cut the grid's steps evenly.
        ScheduleError: the runs are on other noise levels, or not of a flow-matching pipeline.
    """

    def __init__(
        self,
        transformer: torch.nn.Module | DiffusionPipeline,
        grid: Grid,
        runs: Sequence[Run],
        fine_grid: Grid | None = None,
        prompts: Sequence[Hashable] | None = None,
    ) -> None:
        if not runs:
            raise FittingError("there is no trajectory to fit on; give at least one")
        self.prompts: list[Hashable] = list(range(len(runs)) if prompts is None else prompts)
        if len(self.prompts) != len(runs):
            raise FittingError(
                f"{len(runs)} trajectories come with {len(self.prompts)} prompts: name the prompt "
                "of each"
            )
        self.transformers = transformers_of(transformer)
        self.grid = grid
        self.runs = list(runs)
        self.forwards = 0
        if fine_grid is not None:
            check_refines(grid, fine_grid)
        self.references = [self._reference(run, fine_grid or grid) for run in self.runs]

    def fit(
        self, paths: Sequence[Steps], count: int | None = None, fitted_on: int | None = None
    ) -> dict[Steps, Fit]:
        """Weights for several choices of computed steps; what paths begin with alike is run once.

        Args:
            paths: computed steps, each from 0, ascending.
            count: how many of the trajectories to roll out, the first ones; None for all.
            fitted_on: how many of those the weights are fitted on, the first ones; the others'
                errors are then of runs that the weights have not seen. None for all.
        """
        return {
            path: Fit(edges, tuple(self._errors(states)), _responses(states))
            for path, edges, states in self._rollouts(paths, count, fitted_on)
        }

    def fit_and_render(self, path: Steps) -> tuple[Fit, list[float]]:
        """Weights fitted on all trajectories, and the PSNR in dB of their videos.

        The rollout's own estimates render them, so that they cost no further forward. NaN on
        ranks that do not decode.
        """
        ((_, edges, states),) = self._rollouts([path])
        scores = [self._rendered(run, edges, state) for run, state in enumerate(states)]
        return Fit(edges, tuple(self._errors(states))), scores

    def fit_held_out(self, path: Steps) -> tuple[Fit, list[float]]:
        """Weights fitted on all trajectories, and the PSNR in dB of runs left out of a fit.

        Each trajectory is rolled out a second time, under weights fitted without any trajectory of
        its prompt, so the scores are those of prompts that a fit has not seen. For these fits the
        other trajectories are where the fit on all has led them, which spares rolling all of them
        out again for each that is left out. Costs twice the forwards of `fit`, less one a
        trajectory. NaN on ranks that do not decode.

        Raises:
            FittingError: all trajectories are of one prompt, so none is left without it.
        """
        if len(set(self.prompts)) < 2:
            raise FittingError(
                "all trajectories are of one prompt, so none can be left out: give some of another"
            )
        states, left_out = self._beginnings(None), self._beginnings(None)
        edges: tuple[Edge, ...] = ()
        own: list[tuple[Edge, ...]] = [() for _ in self.runs]
        for start, stop in pairwise((*path, self.grid.num_inference_steps)):
            states = self._all_computed(states, edges, start)
            left_out = (
                states
                if start == 0
                else [
                    self._computed(run, state, before, start)
                    for run, state, before in zip(self.runs, left_out, own, strict=True)
                ]
            )
            length = self.grid.sigmas[stop] - self.grid.sigmas[start]
            problems = self._problems(states, stop, length)
            jumped = []
            for run, prompt in enumerate(self.prompts):
                others = [
                    problem
                    for problem, other in zip(problems, self.prompts, strict=True)
                    if other != prompt
                ]
                weights = _solved(others, _known(left_out[run]))
                own[run] = (*own[run], Edge(start, stop, weights=weights))
                jumped.append(_jumped(left_out[run], weights, length))
            left_out = jumped
            weights = _solved(problems, _known(states[0]))
            states = [_jumped(state, weights, length) for state in states]
            edges = (*edges, Edge(start, stop, weights=weights))
        scores = [self._rendered(run, own[run], state) for run, state in enumerate(left_out)]
        return Fit(edges, tuple(self._errors(states))), scores

    def fidelity(self, schedule: Schedule, which: slice = slice(None)) -> list[float]:
        """PSNR in dB against the references of the videos of any schedule.

        Costs the forwards of an accelerated video for each of the trajectories. NaN on ranks that
        do not decode.

        Args:
            schedule: on the fitter's grid.
            which: of the trajectories; all by default.
        """
        scores = []
        for run, reference in list(zip(self.runs, self.references, strict=True))[which]:
            with self._following(schedule):
                scores.append(_psnr(run(decode=True), reference))
        return scores

    def _reference(self, run: Run, grid: Grid) -> Reference:
        steps = grid.num_inference_steps
        every = steps // self.grid.num_inference_steps
        walk = _Walk(grid, every)
        schedule = fine_schedule(grid) if every > 1 else _all_steps(grid)
        with self._following(schedule), watch_velocities(self.transformers[0], walk.take):
            frames = run(decode=True, num_inference_steps=steps)
        return Reference(walk.path, frames)

    def _rendered(self, run: int, edges: tuple[Edge, ...], state: _State) -> float:
        """The PSNR of the video of a finished rollout, at no further forward."""
        with self._following(self._schedule(edges), state.replay.copy()):
            return _psnr(self.runs[run](decode=True), self.references[run])

    def _beginnings(self, count: int | None) -> list[_State]:
        zero = torch.zeros_like(self.references[0].path[0])
        return [_State(zero, {}, Replay()) for _ in self.runs[:count]]

    def _rollouts(
        self, paths: Sequence[Steps], count: int | None = None, fitted_on: int | None = None
    ) -> Iterator[_Rollout]:
        """The rollouts of all paths by the first `count` trajectories, in step with each other."""
        return self._descend((0,), self._beginnings(count), (), set(paths), fitted_on)

    def _descend(
        self,
        prefix: Steps,
        states: list[_State],
        edges: tuple[Edge, ...],
        paths: set[Steps],
        fitted_on: int | None,
    ) -> Iterator[_Rollout]:
        """Runs the model at the newest step of `prefix`, then every jump that some path makes."""
        start, end = prefix[-1], self.grid.num_inference_steps
        ahead = self.grid.sigmas[start + 1] - self.grid.sigmas[start]
        states = [
            _responding(state, reference, start, ahead)
            for state, reference in zip(
                self._all_computed(states, edges, start), self.references, strict=False
            )
        ]
        stops = {(*path, end)[len(prefix)] for path in paths}
        for stop in sorted(stops):
            length = self.grid.sigmas[stop] - self.grid.sigmas[start]
            problems = self._problems(states[:fitted_on], stop, length)
            weights = _solved(problems, _known(states[0]))
            jumped = [_jumped(state, weights, length) for state in states]
            onward = (*edges, Edge(start, stop, weights=weights))
            if stop == end:
                yield prefix, onward, jumped
            else:
                longer = (*prefix, stop)
                follow = {path for path in paths if path[: len(longer)] == longer}
                yield from self._descend(longer, jumped, onward, follow, fitted_on)

    def _problems(self, states: list[_State], stop: int, length: float) -> list[_Problem]:
        """The least-squares problem of the jump to `stop`, one a trajectory; they add up."""
        return [
            _problem(state, reference.path[stop].to(state.position), length)
            for state, reference in zip(states, self.references, strict=False)
        ]

    def _all_computed(
        self, states: list[_State], edges: tuple[Edge, ...], step: int
    ) -> list[_State]:
        return [
            self._computed(run, state, edges, step)
            for run, state in zip(self.runs, states, strict=False)
        ]

    def _errors(self, states: list[_State]) -> Iterator[float]:
        for state, reference in zip(states, self.references, strict=False):
            missed = state.position - reference.path[-1].to(state.position)
            yield float(missed.square().mean(dtype=torch.float64))

    def _computed(self, run: Run, state: _State, edges: tuple[Edge, ...], step: int) -> _State:
        """The state with the model's velocity at `step`, where the edges so far have led."""
        ahead = Edge(step, self.grid.num_inference_steps, weights={step: 1.0})
        schedule = self._schedule((*edges, ahead))
        walk, replay = _Walk(self.grid, last=step), state.replay.copy()
        with self._following(schedule, replay), watch_velocities(self.transformers[0], walk.take):
            try:
                run()
            except _ReachedError:
                velocities = {**state.velocities, step: walk.velocity}
                return _State(walk.position, velocities, replay, state.responses)
        raise FittingError(f"the run ended before step {step}: it has another number of steps")

    def _schedule(self, edges: tuple[Edge, ...]) -> Schedule:
        return Schedule(self.grid, edges, method="fitted", budget=len(edges))

    @contextmanager
    def _following(self, schedule: Schedule, replay: Replay | None = None) -> Iterator[None]:
        """The transformers follow the schedule, while open.

        Args:
            schedule: what they follow.
            replay: velocities that are not computed again; those that had to be computed are
                added. None computes all and keeps nothing.
        """
        hook = attach_hook(self.transformers, schedule, replay)
        try:
            yield
        finally:
            for transformer in self.transformers:
                remove_mean_cache(transformer)
            self.forwards += hook.forwards


_Problem = tuple[np.ndarray, np.ndarray]
"""The normal matrix (J, J) and the right-hand side (J,) of one trajectory's jump."""


def _known(state: _State) -> list[int]:
    """The computed steps whose velocities a jump may use, the newest first."""
    return sorted(state.velocities, reverse=True)[:ORDER]


def _problem(state: _State, target: torch.Tensor, length: float) -> _Problem:
    """Least squares of the velocity that leads to `target`, beyond v_t itself.

    Beyond it, so that the ridge pulls towards holding the velocity.
    """
    features = torch.stack([state.velocities[step].flatten() for step in _known(state)]).double()
    missing = (target - state.position).flatten().double() / length - features[0]
    return (features @ features.T).cpu().numpy(), (features @ missing).cpu().numpy()


def _solved(problems: Sequence[_Problem], known: Sequence[int]) -> dict[int, float]:
    """The weights of the known velocities that suit all of the problems together best."""
    normal = np.sum([normal for normal, _ in problems], axis=0)
    right = np.sum([right for _, right in problems], axis=0)
    ridge = RIDGE * np.trace(normal) / len(known) * np.eye(len(known))
    solution = np.linalg.solve(normal + ridge, right)
    solution[0] += 1.0
    return {step: float(weight) for step, weight in zip(known, solution, strict=True)}


def _jumped(state: _State, weights: Mapping[int, float], length: float) -> _State:
    """The state at the end of the jump; it keeps what later weights may name."""
    estimate = sum(
        (state.velocities[step] * weight for step, weight in weights.items()),
        torch.zeros_like(state.position),
    )
    return _State(
        position=state.position + length * estimate,
        velocities={step: state.velocities[step] for step in list(weights)[: ORDER - 1]},
        replay=state.replay,
        responses=state.responses,
    )


def _responding(state: _State, reference: Reference, step: int, ahead: float) -> _State:
    """The state with what its velocity at `step` does with its error, where there is one.

    Args:
        ahead: how far the reference's noise level moves in this step.
    """
    here = reference.path[step].to(state.position)
    missed = (state.position - here).flatten().double()
    square = float(missed @ missed)
    if square <= (ROUNDING * float(here.norm())) ** 2:
        return state
    own = (reference.path[step + 1].to(here) - here) / ahead
    answer = (state.velocities[step] - own).flatten().double()
    along = float(answer @ missed) / square
    aside = math.sqrt(max(float(answer @ answer) / square - along**2, 0.0))
    return replace(state, responses={**state.responses, step: (along, aside)})


def _responses(states: Sequence[_State]) -> Responses:
    """The responses at the steps at which all trajectories have one."""
    common = set.intersection(*(set(state.responses) for state in states))
    return {step: [state.responses[step] for state in states] for step in sorted(common)}


class _ReachedError(Exception):
    """Ends a pipeline's call once the step in question has been computed."""


class _Walk:
    """Adds up the velocities that a sampler is given: where it is, relative to its noise.

    Args:
        grid: its noise levels.
        every: note the position in `path` after each so many steps.
        last: keep the velocity of that step, and end the run there.
    """

    def __init__(self, grid: Grid, every: int = 0, last: int | None = None) -> None:
        self.lengths = [after - here for here, after in pairwise(grid.sigmas)]
        self.every = every
        self.last = last
        self.step = 0
        self.path: list[torch.Tensor] = []

    def take(self, velocity: torch.Tensor) -> None:
        """One step, as `watch_velocities` shows it."""
        if self.step == 0:
            self.position = torch.zeros_like(velocity, dtype=torch.float32)
            self._note()
        if self.step == self.last:
            self.velocity = velocity.to(torch.float32, copy=True)
            raise _ReachedError
        self.position = self.position + self.lengths[self.step] * velocity.float()
        self.step += 1
        self._note()

    def _note(self) -> None:
        if self.every and self.step % self.every == 0:
            self.path.append(self.position.cpu())


def _all_steps(grid: Grid) -> Schedule:
    steps = grid.num_inference_steps
    edges = tuple(Edge(step, step + 1, weights={step: 1.0}) for step in range(steps))
    return Schedule(grid, edges, method="fitted", budget=steps)


def _psnr(frames: np.ndarray | None, reference: Reference) -> float:
    known = frames is not None and reference.frames is not None
    return psnr(frames, reference.frames) if known else math.nan  # type: ignore[arg-type]
