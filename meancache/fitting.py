"""Fits a schedule's weights on the states that the accelerated run itself visits.

Weights that are right on reference runs are wrong on the states that their own errors lead to. So
calibration noise is rolled out on the chosen steps: at each computed step the model gives v_t
there, the estimate u_hat = sum_j c_j v_{n_{k-j}} of the last three velocities is fitted to the
velocity that would lead to the reference, z_ref[s] = z_t + (sigma_s - sigma_t) u, by least squares
over all trajectories, and the run goes on with it. What comes out is at most 3 B numbers.

The rollout is the unmodified pipeline's, started anew for every computed step: a hook answers the
steps before with estimates already known, lets the model run once, and ends the call. So whatever
a pipeline does around its transformer is done here as it will be in use. Knows no gang: every
rank of one makes the same calls and comes to the same weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from meancache.grid import Grid
from meancache.hook import apply_mean_cache, remove_mean_cache
from meancache.output import velocity_of
from meancache.quality import psnr
from meancache.reference import fine_schedule
from meancache.schedule import Edge, Schedule
from meancache.solver import Steps
from meancache.trajectory import record_trajectory

ORDER = 3
RIDGE = 1e-6
HOOK_NAME = "mean_cache_replay"


class FittingError(ValueError):
    """The fit cannot be made as asked; the message says why and what to do."""


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
        errors: mean squared error of the final latents against the reference, one a trajectory.
    """

    edges: tuple[Edge, ...]
    errors: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean over the trajectories of -10 log10 of the error: higher is closer."""
        return -10 * float(np.mean(np.log10(np.maximum(self.errors, 1e-30))))


@dataclass(frozen=True)
class _State:
    """One trajectory of a rollout, at its newest computed step."""

    position: torch.Tensor  # z_t - z_0
    estimates: tuple[tuple[int, torch.Tensor], ...]  # (stop, u_hat) of the jumps behind it
    outputs: Mapping[int, torch.Tensor]  # velocities that the next weights may name


_Rollout = tuple[Steps, tuple[Edge, ...], list[_State]]


class Fitter:
    """A pipeline's transformer and the calibration trajectories to fit on.

    Args:
        transformer: the denoiser that `runs` call.
        grid: the noise levels of the schedules.
        runs: at least one.
        fine_grid: aim at the flow itself, by a run on these noise levels (`reference`), which cut
            the grid's steps evenly. None aims at the run of the grid's own steps.

    Raises:
        FittingError: there is no run, or the fine grid does not cut the grid's steps evenly.
        ValueError: the pipeline calls its transformer more than once a step.
    """

    def __init__(
        self,
        transformer: torch.nn.Module,
        grid: Grid,
        runs: Sequence[Run],
        fine_grid: Grid | None = None,
    ) -> None:
        if not runs:
            raise FittingError("there is no trajectory to fit on; give at least one")
        self.transformer = transformer
        self.grid = grid
        self.runs = list(runs)
        self.forwards = 0
        if fine_grid is not None:
            check_refines(grid, fine_grid)
        self.references = [self._reference(run, fine_grid or grid) for run in self.runs]

    def fit(self, paths: Sequence[Steps], count: int | None = None) -> dict[Steps, Fit]:
        """Weights for several choices of computed steps; what paths begin with alike is run once.

        Args:
            paths: computed steps, each from 0, ascending.
            count: how many of the trajectories to fit on, the first ones; None for all.
        """
        return {
            path: Fit(edges, tuple(self._errors(states)))
            for path, edges, states in self._rollouts(paths, count)
        }

    def fit_and_draw(self, path: Steps) -> tuple[Fit, list[float]]:
        """Weights fitted on all trajectories, and the PSNR in dB of the videos that they draw.

        The rollout's own estimates draw the videos, so that they cost no further forward. NaN on
        ranks that do not decode.
        """
        ((_, edges, states),) = self._rollouts([path], None)
        scores = [
            _psnr(self._replay(run, _ReplayHook(state.estimates, None), decode=True), reference)
            for run, state, reference in zip(self.runs, states, self.references, strict=True)
        ]
        return Fit(edges, tuple(self._errors(states))), scores

    def fidelity(self, schedule: Schedule, count: int | None = None) -> list[float]:
        """PSNR in dB against the references of the videos that any schedule draws.

        Costs the forwards of an accelerated video for each of the first `count` trajectories.
        NaN on ranks that do not decode.
        """
        scores = []
        for run, reference in list(zip(self.runs, self.references, strict=True))[:count]:
            with _following(self.transformer, schedule):
                scores.append(_psnr(run(decode=True), reference))
            self.forwards += schedule.nfe
        return scores

    def _reference(self, run: Run, grid: Grid) -> Reference:
        steps = grid.num_inference_steps
        every = steps // self.grid.num_inference_steps
        fine = every > 1
        with (
            _following(self.transformer, fine_schedule(grid) if fine else None),
            record_trajectory(self.transformer) as trajectory,
        ):
            frames = run(decode=True, num_inference_steps=steps)
        self.forwards += steps
        trajectory.check_calls(steps)
        position = torch.zeros_like(trajectory.outputs[0])
        path = [position.cpu()]
        for step, (velocity, (here, after)) in enumerate(
            zip(trajectory.outputs, pairwise(grid.sigmas), strict=True), start=1
        ):
            position = position + (after - here) * velocity
            if step % every == 0:
                path.append(position.cpu())
        return Reference(path, frames)

    def _rollouts(self, paths: Sequence[Steps], count: int | None) -> Iterator[_Rollout]:
        """The rollouts of all paths by the first `count` trajectories, in step with each other."""
        zero = torch.zeros_like(self.references[0].path[0])
        states = [_State(zero, (), {}) for _ in self.runs[:count]]
        return self._descend((0,), states, (), set(paths))

    def _descend(
        self, prefix: Steps, states: list[_State], edges: tuple[Edge, ...], paths: set[Steps]
    ) -> Iterator[_Rollout]:
        """Runs the model at the newest step of `prefix`, then every jump that some path makes."""
        start, end = prefix[-1], self.grid.num_inference_steps
        states = [
            self._computed(run, state, start) for run, state in zip(self.runs, states, strict=False)
        ]
        stops = {(*path, end)[len(prefix)] for path in paths}
        for stop in sorted(stops):
            weights, jumped = self._jump(states, start, stop)
            onward = (*edges, Edge(start, stop, weights=weights))
            if stop == end:
                yield prefix, onward, jumped
            else:
                longer = (*prefix, stop)
                follow = {path for path in paths if path[: len(longer)] == longer}
                yield from self._descend(longer, jumped, onward, follow)

    def _jump(
        self, states: list[_State], start: int, stop: int
    ) -> tuple[dict[int, float], list[_State]]:
        """Fits u_hat of the jump over all trajectories, and takes it."""
        length = self.grid.sigmas[stop] - self.grid.sigmas[start]
        known = sorted(states[0].outputs, reverse=True)[:ORDER]
        normal, right = np.zeros((len(known), len(known))), np.zeros(len(known))
        for state, reference in zip(states, self.references, strict=False):
            target = reference.path[stop].to(state.position) - state.position
            features = torch.stack([state.outputs[step].flatten() for step in known]).double()
            # Beyond v_t itself, so that the ridge pulls towards holding the velocity.
            missing = target.flatten().double() / length - features[0]
            normal += (features @ features.T).cpu().numpy()
            right += (features @ missing).cpu().numpy()
        ridge = RIDGE * np.trace(normal) / len(known) * np.eye(len(known))
        solution = np.linalg.solve(normal + ridge, right)
        solution[0] += 1.0
        weights = {step: float(weight) for step, weight in zip(known, solution, strict=True)}
        jumped = []
        for state in states:
            estimate = sum(
                (state.outputs[step] * weight for step, weight in weights.items()),
                torch.zeros_like(state.position),
            )
            jumped.append(
                _State(
                    position=state.position + length * estimate,
                    estimates=(*state.estimates, (stop, estimate)),
                    outputs={step: state.outputs[step] for step in known[: ORDER - 1]},
                )
            )
        return weights, jumped

    def _errors(self, states: list[_State]) -> Iterator[float]:
        for state, reference in zip(states, self.references, strict=False):
            missed = state.position - reference.path[-1].to(state.position)
            yield float(missed.square().mean(dtype=torch.float64))

    def _computed(self, run: Run, state: _State, step: int) -> _State:
        """The state with the model's velocity at `step`, where its estimates have led."""
        replay = _ReplayHook(state.estimates, step)
        self._replay(run, replay)
        if replay.velocity is None:
            raise FittingError(f"the run ended before step {step}: it has another number of steps")
        self.forwards += 1
        position = state.position.to(replay.velocity)
        return _State(position, state.estimates, {**state.outputs, step: replay.velocity})

    def _replay(self, run: Run, replay: _ReplayHook, decode: bool = False) -> np.ndarray | None:
        """The run under `replay`; None where that ended it."""
        registry = HookRegistry.check_if_exists_or_initialize(self.transformer)
        registry.register_hook(replay, HOOK_NAME)
        try:
            return run(decode=decode)
        except _ReachedError:
            return None
        finally:
            registry.remove_hook(HOOK_NAME, recurse=False)


def check_refines(grid: Grid, fine: Grid) -> None:
    """Refuses a fine grid that does not pass through every noise level of `grid`.

    Raises:
        FittingError: names both.
    """
    steps, finer = grid.num_inference_steps, fine.num_inference_steps
    if finer % steps or finer == steps or not grid.matches(fine.sigmas[:: finer // steps]):
        raise FittingError(
            f"reference steps {finer} must be a multiple of the {steps} steps of the schedule's "
            f"grid, such as {6 * steps}, and pass through its noise levels"
        )


@contextmanager
def _following(transformer: torch.nn.Module, schedule: Schedule | None) -> Iterator[None]:
    """`transformer` follows the schedule, if there is one, while the context is open."""
    if schedule is None:
        yield
        return
    apply_mean_cache(transformer, schedule)
    try:
        yield
    finally:
        remove_mean_cache(transformer)


class _ReachedError(Exception):
    """Ends a pipeline's call once the step in question has been computed."""


class _ReplayHook(ModelHook):
    """Answers steps with known estimates; at `step`, if given, runs the model and ends the call."""

    def __init__(self, estimates: Sequence[tuple[int, torch.Tensor]], step: int | None) -> None:
        super().__init__()
        self.answers = [velocity for _, velocity in _spread(estimates)]
        self.step = step
        self.calls = 0
        self.velocity: torch.Tensor | None = None

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self._names = tuple(inspect.signature(module.forward).parameters)
        return module

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        step, self.calls = self.calls, self.calls + 1
        if step == self.step:
            output = self.fn_ref.original_forward(*args, **kwargs)
            self.velocity = velocity_of(output).detach().to(torch.float32, copy=True)
            raise _ReachedError
        given = dict(zip(self._names, args, strict=False)) | kwargs
        # A copy, as schedulers may write into what they are given; in the latents' dtype, as the
        # model itself would answer.
        answer = self.answers[step].to(given["hidden_states"].dtype, copy=True)
        return Transformer2DModelOutput(answer) if given.get("return_dict", True) else (answer,)


def _psnr(frames: np.ndarray | None, reference: Reference) -> float:
    known = frames is not None and reference.frames is not None
    return psnr(frames, reference.frames) if known else math.nan  # type: ignore[arg-type]


def _spread(
    estimates: Sequence[tuple[int, torch.Tensor]],
) -> Iterator[tuple[int, torch.Tensor]]:
    """(step, u_hat) for every fine step of the jumps."""
    start = 0
    for stop, estimate in estimates:
        for step in range(start, stop):
            yield step, estimate
        start = stop
