"""Runs a schedule inside any diffusers pipeline: apply_mean_cache / remove_mean_cache.

The hook sits on the transformer's root, so the pipeline, its Euler scheduler and the rest of
its code stay as they are: on computed steps the transformer runs, on skipped steps the hook
answers in its place with a weighted sum of earlier outputs (`velocity.velocities_in_use`).
It knows nothing of ranks: a schedule is static, so sequence-parallel ranks take the same
decisions by themselves and no collective is needed here.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager

from meancache.grid import describe
from meancache.output import velocity_of, with_velocity
from meancache.schedule import Schedule, ScheduleError
from meancache.velocity import velocities_in_use

HOOK_NAME = "mean_cache"
NUM_TRAIN_TIMESTEPS = 1000
# A timestep may reach the transformer rounded to bf16: 8 bits of precision.
TIMESTEP_ROUNDING = 2.0**-8


def apply_mean_cache(transformer: torch.nn.Module, schedule: Schedule) -> MeanCacheHook:
    """Makes `transformer` follow `schedule` in every run of its pipeline from now on.

    >>> apply_mean_cache(pipe.transformer, Schedule.load("schedule.json"))
    >>> video = pipe(prompt).frames  # same call as before, schedule.nfe forwards

    Args:
        transformer: the denoiser of a diffusers flow-matching pipeline.
        schedule: solved for the pipeline's grid of noise levels.

    Returns:
        The hook, whose `forwards` counts how often the transformer really ran.

    Raises:
        ScheduleError: a schedule or another cache is active on this transformer already. Later,
            before the first forward of a run: the pipeline runs on another grid.
    """
    if getattr(transformer, "is_cache_enabled", False):
        raise ScheduleError(
            f"{type(transformer).__name__} has another cache enabled; call its disable_cache() "
            "before apply_mean_cache"
        )
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if registry.get_hook(HOOK_NAME) is not None:
        raise ScheduleError(
            f"{type(transformer).__name__} follows a schedule already; call remove_mean_cache "
            "before applying another"
        )
    hook = MeanCacheHook(schedule)
    registry.register_hook(hook, HOOK_NAME)
    return hook


def remove_mean_cache(transformer: torch.nn.Module) -> None:
    """Makes `transformer` compute every step again; nothing happens where no schedule is."""
    registry = getattr(transformer, "_diffusers_hook", None)
    if registry is not None:
        registry.remove_hook(HOOK_NAME, recurse=False)


class _Run(BaseState):
    """One denoising run in one cache context: where it is, and the velocities still needed."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, *args: Any, **kwargs: Any) -> None:
        self.step = 0
        self.shape: torch.Size | None = None
        self.history: dict[int, torch.Tensor] = {}
        self.estimate: torch.Tensor | None = None
        self.output: Any = None


class MeanCacheHook(ModelHook):
    """The diffusers hook behind `apply_mean_cache`; `forwards` counts the forwards it let run."""

    _is_stateful = True

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.forwards = 0
        self.runs = StateManager(_Run)
        rows = velocities_in_use(schedule)
        self._computed = frozenset(schedule.computed_steps)
        self._weights = [{int(n): float(row[n]) for n in np.flatnonzero(row)} for row in rows]
        self._last_use = {n: k for k, weights in enumerate(self._weights) for n in weights}

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """Notes the names of the forward's arguments, which a caller may give by position."""
        self._names = tuple(inspect.signature(module.forward).parameters)
        return module

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the transformer's forward; see the module's docstring."""
        run = self._current_run()
        try:
            return self._step(run, *args, **kwargs)
        except BaseException:
            run.reset()
            raise

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Forgets all runs in progress (diffusers calls this between pipeline calls)."""
        self.runs.reset()
        return module

    def _current_run(self) -> _Run:
        try:
            return self.runs.get_state()
        except ValueError:  # no cache context is set: a bare loop, or a model that has none
            self.runs.set_context(CacheContext("bare"))
            return self.runs.get_state()

    def _step(self, run: _Run, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        self._synchronise(run, given["hidden_states"], given.get("timestep"))
        step = run.step
        if step in self._computed:
            run.output = self.fn_ref.original_forward(*args, **kwargs)
            self.forwards += 1
            velocity = velocity_of(run.output)
            if self._last_use.get(step, step) > step or self._weights[step] != {step: 1.0}:
                run.history[step] = velocity.to(torch.float32, copy=True)
        output = self._answer(run)
        run.step += 1
        run.history = {n: v for n, v in run.history.items() if self._last_use.get(n, -1) > step}
        if run.step == self.schedule.num_inference_steps:
            run.reset()
        return output

    def _answer(self, run: _Run) -> Any:
        """The output of the current step: the transformer's own, or the estimate's."""
        weights = self._weights[run.step]
        if weights == {run.step: 1.0}:
            run.estimate = None
            return run.output
        if run.estimate is None or weights != self._weights[run.step - 1]:
            like = velocity_of(run.output)
            run.estimate = _weighted_sum(weights, run.history, like).to(like.dtype)
        # Schedulers may write into what they are given; the next step needs it unharmed.
        return with_velocity(run.output, run.estimate.clone())

    def _synchronise(self, run: _Run, latents: torch.Tensor, timestep: Any) -> None:
        """Finds the start of a run, and checks that it is where the schedule thinks it is."""
        pipeline = _calling_pipeline()
        if pipeline is not None:
            # The scheduler's own counter: exact, and read without waiting for the device.
            step = pipeline.scheduler.step_index or 0
            if step == 0:
                run.reset()
                self._check_grid(pipeline.scheduler)
            found, expected = f"the scheduler is at step {step}", step == run.step
        else:
            if run.shape not in (None, latents.shape):
                run.reset()
            # An unfinished run, begun again, is nearer to the first step's timestep.
            if self._distance(timestep, 0) < self._distance(timestep, run.step):
                run.reset()
            expected = self._distance(timestep, run.step) <= TIMESTEP_ROUNDING
            found = f"the timestep is {timestep}"
        if not expected:
            raise ScheduleError(
                f"the schedule is at step {run.step} of {self.schedule.grid}, but {found}: run "
                "the pipeline on the schedule's grid, from its first step"
            )
        run.shape = latents.shape

    def _check_grid(self, scheduler: Any) -> None:
        sigmas = scheduler.sigmas.tolist()
        if not self.schedule.grid.matches(sigmas):
            raise ScheduleError(
                f"the schedule is for a grid of {self.schedule.grid}, but the pipeline runs "
                f"{describe(sigmas)}: set num_inference_steps and the scheduler's shift to the "
                "schedule's, or solve a schedule for this grid"
            )

    def _distance(self, timestep: Any, step: int) -> float:
        """How far a bare loop's timestep, in units of 1 or of 1000, is from that of `step`.

        Relative to the step's own, after rounding that to the timestep's dtype; 0 where there is
        no timestep, and the count of calls is all there is.
        """
        if not isinstance(timestep, torch.Tensor):
            return 0.0
        value, sigma = float(timestep.flatten()[0]), self.schedule.grid.sigmas[step]
        rounded = (
            float(torch.tensor(sigma * unit, dtype=timestep.dtype))
            for unit in (1, NUM_TRAIN_TIMESTEPS)
        )
        return min(abs(value - expected) / max(expected, sigma) for expected in rounded)


def _weighted_sum(
    weights: dict[int, float], history: dict[int, torch.Tensor], like: torch.Tensor
) -> torch.Tensor:
    total = torch.zeros_like(like, dtype=torch.float32)
    for step, weight in weights.items():
        total.add_(history[step], alpha=weight)
    return total


def _calling_pipeline() -> Any:
    """The diffusers pipeline whose `__call__` is running the transformer, or None.

    A transformer does not know its pipeline, and its timestep alone cannot tell 50 steps from
    30: both begin at 1000. The pipeline's scheduler can, before a forward is spent.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames else None
        if isinstance(caller, DiffusionPipeline) and hasattr(caller, "scheduler"):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None
