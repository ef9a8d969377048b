"""Runs a schedule inside any diffusers pipeline: apply_mean_cache / remove_mean_cache.

The hook sits on the transformer's root, so the pipeline, its Euler scheduler and the rest of
its code stay as they are: on computed steps the transformer runs, on skipped steps the hook
answers in its place with a weighted sum of earlier outputs (`velocity.velocities_in_use`).
It knows nothing of ranks: a schedule is static, so sequence-parallel ranks take the same
decisions by themselves and no collective is needed here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager

from meancache.errors import ScheduleError
from meancache.hooks.attach import attach, attached, detach
from meancache.hooks.outputs import velocities_of, velocity_of, with_velocities
from meancache.hooks.pipelines import (
    Caller,
    calling_pipeline,
    check_run,
    check_transformer,
    transformers_of,
)
from meancache.schedule import Schedule
from meancache.velocity import velocities_in_use

HOOK_NAME = "mean_cache"
NUM_TRAIN_TIMESTEPS = 1000
# A timestep may reach the transformer rounded to bf16: 8 bits of precision.
TIMESTEP_ROUNDING = 2.0**-8

# One of the calls that a step makes: its cache context, and its number among those in there.
Call = tuple[str | None, int]


def apply_mean_cache(
    transformer: torch.nn.Module | DiffusionPipeline, schedule: Schedule
) -> MeanCacheHook:
    """Makes `transformer` follow `schedule` in every run of its pipeline from now on.

    >>> apply_mean_cache(pipe.transformer, Schedule.load("schedule.json"))
    >>> video = pipe(prompt).frames  # same call as before, schedule.nfe forwards

    A step whose velocities are not all known is computed: a run that begins in the middle of the
    grid, or a branch of guidance that begins later than the others, costs more than NFE forwards.

    Args:
        transformer: the denoiser of a diffusers flow-matching pipeline. Or the pipeline, for all
            of its transformers: where several share the steps (Wan 2.2), they are one velocity
            field, so the one goes on with the velocities of the other.
        schedule: solved for the pipeline's grid of noise levels.

    Returns:
        The (first) hook, whose `forwards` counts how often the transformers really ran.

    Raises:
        ScheduleError: a schedule or another cache is active on this transformer already. Later,
            before the first forward of a run: the scheduler, the grid, the shape or the LoRA
            adapters are not the schedule's, or another cache was enabled since.
    """
    modules = transformers_of(transformer)
    for module in modules:
        check_transformer(module, schedule)
        if attached(module, HOOK_NAME) is not None:
            raise ScheduleError(
                f"{type(module).__name__} follows a schedule already; call remove_mean_cache "
                "before applying another"
            )
    hooks = attach_hooks(modules, schedule)
    return hooks[0]


def remove_mean_cache(transformer: torch.nn.Module | DiffusionPipeline) -> None:
    """Makes `transformer` compute every step again; nothing happens where no schedule is."""
    for module in transformers_of(transformer):
        detach(module, HOOK_NAME)


@dataclass
class _Branch:
    """One of the calls that every step makes, such as cond: the velocities still needed of it."""

    step: int = 0
    shape: torch.Size | None = None
    history: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    # The weights of the newest estimate, and what they came to.
    estimate: tuple[dict[int, float], list[torch.Tensor]] | None = None
    output: Any = None

    def forget(self) -> None:
        self.__init__()  # type: ignore[misc]


@dataclass
class _Progress:
    """A pipeline's run: where it is and what each call of a step knows.

    Calls of one step are told apart by their cache context and, where a pipeline makes several
    calls in one context or in none, by their order.

    Attributes:
        grid: the very tensor of noise levels that the scheduler made for this run.
        modules: the transformers that share the run.
        forwards: how often they ran, in all runs.
    """

    modules: Sequence[torch.nn.Module]
    grid: torch.Tensor | None = None
    step: int = -1
    calls: dict[str | None, int] = field(default_factory=dict)
    branches: dict[Call, _Branch] = field(default_factory=dict)
    forwards: int = 0

    def forget(self) -> None:
        self.grid, self.step = None, -1
        self.calls.clear()
        self.branches.clear()

    def next_call(self, context: str | None, step: int) -> Call:
        """Which call of the step it is that comes now, in this context."""
        if step != self.step:
            self.step = step
            self.calls.clear()
        number = self.calls.get(context, 0)
        self.calls[context] = number + 1
        return context, number


class MeanCacheHook(ModelHook):
    """The diffusers hook behind `apply_mean_cache`; `forwards` counts the forwards it let run."""

    _is_stateful = True

    def __init__(self, schedule: Schedule, progress: _Progress) -> None:
        super().__init__()
        self.schedule = schedule
        self.progress = progress
        # diffusers' cache_context names the call here; what a call knows is in `progress`.
        self.context = StateManager(BaseState)
        rows = velocities_in_use(schedule)
        self._computed = frozenset(schedule.computed_steps)
        self._weights = [{int(n): float(row[n]) for n in np.flatnonzero(row)} for row in rows]
        self._last_use = {n: k for k, weights in enumerate(self._weights) for n in weights}

    @property
    def forwards(self) -> int:
        """How often the transformer ran, or all that share the schedule, since it was applied."""
        return self.progress.forwards

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """Notes the names of the forward's arguments, which a caller may give by position."""
        # The class's own: an instance's forward may be somebody's wrapper.
        self._names = tuple(inspect.signature(type(module).forward).parameters)[1:]
        return module

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the transformer's forward; see the module's docstring."""
        # Where the whole module is compiled, the transformer itself is; decisions are not.
        try:
            call = self._locate(*args, **kwargs)
            if self._must_compute(call):
                self._let_go(call)
                self._keep(call, self.compute(call, *args, **kwargs))
            return self._answer(call)
        except BaseException:
            self.progress.forget()
            raise

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Forgets all runs in progress (diffusers calls this between pipeline calls)."""
        self.progress.forget()
        self.context.reset()
        return module

    @torch.compiler.disable(recursive=False)
    def compute(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """The transformer's own output for the call."""
        self.progress.forwards += 1
        return self.fn_ref.original_forward(*args, **kwargs)

    @torch.compiler.disable
    def _must_compute(self, call: Call) -> bool:
        branch = self.progress.branches[call]
        answerable = branch.output is not None and self._known(branch)
        return branch.step in self._computed or not answerable

    def _known(self, branch: _Branch) -> bool:
        """Whether all velocities of earlier steps are there that the step's own weights name."""
        return all(n in branch.history for n in self._weights[branch.step] if n != branch.step)

    @torch.compiler.disable
    def _let_go(self, call: Call) -> None:
        """Frees what the forward replaces, while it needs the memory itself."""
        branch = self.progress.branches[call]
        branch.output = branch.estimate = None

    @torch.compiler.disable
    def _keep(self, call: Call, output: Any) -> None:
        """Notes what the transformer has returned, as far as it will be needed."""
        branch = self.progress.branches[call]
        step = branch.step
        branch.output = output
        needed = self._last_use.get(step, step) > step or self._weights[step] != {step: 1.0}
        if step in self._computed and needed:
            branch.history[step] = [
                velocity.to(torch.float32, copy=True) for velocity in velocities_of(output)
            ]

    @torch.compiler.disable
    def _answer(self, call: Call) -> Any:
        """The output of the call: the transformer's own, or the estimate's."""
        branch = self.progress.branches[call]
        step, weights, output = branch.step, self._weights[branch.step], branch.output
        if weights != {step: 1.0} and self._known(branch):
            if branch.estimate is None or branch.estimate[0] != weights:
                branch.estimate = weights, _weighted_sum(weights, branch.history, output)
            # Schedulers may write into what they are given; the next step needs it unharmed.
            output = with_velocities(output, [v.clone() for v in branch.estimate[1]])
        branch.history = {
            n: v for n, v in branch.history.items() if self._last_use.get(n, -1) > step
        }
        branch.step += 1
        if branch.step == self.schedule.num_inference_steps:
            branch.forget()
        return output

    @torch.compiler.disable
    def _locate(self, *args: Any, **kwargs: Any) -> Call:
        """Finds which call of which step this is, and that it is one the schedule knows."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        # Latents come first, by whatever name; a wrapper's forward has none.
        latents = velocity_of(given.get(self._names[0], next(iter(given.values()))))
        caller, context = calling_pipeline(), self._context()
        if caller is None:
            branch = self.progress.branches.setdefault((context, 0), _Branch())
            self._synchronise(branch, latents, given.get("timestep"))
            return context, 0
        grid = getattr(caller.scheduler, "sigmas", None)
        if grid is None or grid is not self.progress.grid:
            self._begin(caller)
        call = self.progress.next_call(context, caller.step)
        branch = self.progress.branches.setdefault(call, _Branch())
        if branch.shape not in (None, latents.shape):
            branch.forget()
        branch.step, branch.shape = caller.step, latents.shape
        return call

    def _begin(self, caller: Caller) -> None:
        """A new run: its scheduler has made its noise levels anew."""
        check_run(caller, self.schedule)
        for module in self.progress.modules:
            check_transformer(module, self.schedule)
        self.progress.forget()
        self.progress.grid = caller.scheduler.sigmas

    def _context(self) -> str | None:
        try:
            return self.context.context.name
        except ValueError:  # no cache context is set: a bare loop, or a model that has none
            return None

    def _synchronise(self, branch: _Branch, latents: torch.Tensor, timestep: Any) -> None:
        """In a loop without a pipeline: finds the start of a run, and checks that it is there."""
        if branch.step == 0 or branch.shape != latents.shape:
            branch.forget()
            for module in self.progress.modules:
                check_transformer(module, self.schedule)
        # An unfinished run, begun again, is nearer to the first step's timestep.
        if self._distance(timestep, 0) < self._distance(timestep, branch.step):
            branch.forget()
        if self._distance(timestep, branch.step) > TIMESTEP_ROUNDING:
            raise ScheduleError(
                f"the schedule is at step {branch.step} of {self.schedule.grid}, but the timestep "
                f"is {timestep}: run on the schedule's grid from its first step, one call a step "
                "in each cache context"
            )
        branch.shape = latents.shape

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


def attach_hooks(
    modules: Sequence[torch.nn.Module],
    schedule: Schedule,
    kind: type[MeanCacheHook] = MeanCacheHook,
    **options: Any,
) -> list[Any]:
    """Puts a hook that follows `schedule` on each module; they share the run."""
    progress = _Progress(modules)
    hooks = [kind(schedule, progress, **options) for _ in modules]
    for module, hook in zip(modules, hooks, strict=True):
        attach(module, hook, HOOK_NAME)
    return hooks


def _weighted_sum(
    weights: dict[int, float], history: dict[int, list[torch.Tensor]], like: Any
) -> list[torch.Tensor]:
    """Sum of weights x velocities in fp32, a tensor for each of `like`, in its dtype."""
    sums = []
    for index, velocity in enumerate(velocities_of(like)):
        total = torch.zeros_like(velocity, dtype=torch.float32)
        for step, weight in weights.items():
            total.add_(history[step][index], alpha=weight)
        sums.append(total.to(velocity.dtype))
    return sums
