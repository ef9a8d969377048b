"""Runs a schedule inside any diffusers pipeline: apply_mean_cache / remove_mean_cache.

The hook intercepts every call of the transformer, so the pipeline, its Euler scheduler and the rest
of its code stay as they are: on computed steps the transformer runs, on skipped steps it does not,
and the scheduler integrates a weighted sum of earlier velocities (`velocity.velocities_in_use`).
It knows nothing of ranks: a schedule is static, so sequence-parallel ranks take the same
decisions by themselves and no collective is needed here.

The schedule comes from a `ScheduleSource` (`hooks.source`), which is asked before the first forward
of every run.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from meancache.errors import ScheduleError
from meancache.hooks.attach import attach, attached, cache_context, detach, plain, show
from meancache.hooks.callers import Call, Caller, caller_of
from meancache.hooks.checks import check_compiled, check_guidance, other_schedulers
from meancache.hooks.conditions import RunConditions
from meancache.hooks.guard import Guard, check_free, guard, guard_of, unguard
from meancache.hooks.history import Rule
from meancache.hooks.loops import LoopRun
from meancache.hooks.outputs import form_of, velocity_of
from meancache.hooks.pipelines import (
    active_loras,
    check_transformer,
    named_transformers,
)
from meancache.hooks.runs import PipelineRun, Replay
from meancache.hooks.schedulers import check_scheduler, levels, step_by_value, step_of
from meancache.hooks.source import FixedSchedule, ScheduleSource, source_of
from meancache.hooks.timesteps import NAMES, timestep_of
from meancache.schedule import Schedule

HOOK_NAME = "mean_cache"
# Schedules whose weights are kept ready; a pipeline whose grid changes with the size has several.
_RULES = 16


def apply_mean_cache(
    target: Any, schedule: Any, budget: int | None = None, strict: bool = False
) -> MeanCacheHook:
    """Makes a pipeline follow a schedule in every run from now on.

    >>> apply_mean_cache(pipe, Schedule.load("schedule.json"))
    >>> video = pipe(prompt).frames  # same call as before, schedule.nfe forwards

    A step whose velocities are not all known is computed: a run that begins in the middle of the
    grid costs more than its share of NFE forwards with a fixed schedule.

    Args:
        target: a diffusers flow-matching pipeline, classic or modular. Or its transformer alone,
            which then follows the schedule in every pipeline or loop that calls it.
        schedule: a `Schedule` solved for the pipeline's grid of noise levels, or a `Calibration`,
            which makes one for the levels that each run really has.
        budget: B, with a calibration: the forwards of a run.
        strict: with a calibration: refuse a run that differs from it in anything but the grid.

    Returns:
        The hook. Its `forwards` counts how often the transformers really ran, its `schedule` is
        what runs.

    Raises:
        ScheduleError: a schedule or another cache is active on a transformer already. Later,
            before the first forward of a run: the scheduler, the grid or the conditions are not
            the schedule's, or another cache was enabled since.
    """
    alone = isinstance(target, torch.nn.Module)
    modules = [target] if alone else list(named_transformers(target).values())
    for module in modules:
        check_transformer(module)
        check_free(module, HOOK_NAME)
    hook = MeanCacheHook(source_of(schedule, budget, strict), modules)
    if isinstance(hook.source, FixedSchedule):
        hook.source.check_lora(hook.loras())
    for module in modules:
        attach(module, hook, HOOK_NAME, innermost=True)
    if not alone:
        guard(target, Guard(hook, HOOK_NAME, named_transformers(target)))
    return hook


def remove_mean_cache(target: Any) -> None:
    """Makes a pipeline, or a transformer, compute every step again.

    Nothing happens where no schedule is, and nothing is left where one was.
    """
    if not isinstance(target, torch.nn.Module):
        one = guard_of(target)
        for module in () if one is None else one.modules.values():
            detach(module, HOOK_NAME)
        unguard(target)
        modules = list(named_transformers(target).values())
    else:
        modules = [target]
    for module in (*modules, *map(plain, modules)):
        hook = attached(module, HOOK_NAME)
        detach(module, HOOK_NAME)
        if isinstance(hook, MeanCacheHook):
            hook.let_go(module)


class MeanCacheHook:
    """What `apply_mean_cache` puts on the transformers of a pipeline; they share its runs.

    Attributes:
        forwards: how often they ran since it was applied.
        schedule: what the last run followed; of a fixed schedule, that one.
        modules: the transformers.
    """

    def __init__(
        self,
        source: ScheduleSource,
        modules: Sequence[torch.nn.Module],
        replay: Replay | None = None,
    ) -> None:
        self.source = source
        self.modules = list(modules)
        self.replay = replay
        self.forwards = 0
        self.schedule = source.schedule if isinstance(source, FixedSchedule) else None
        self._lock = threading.Lock()
        self._rules: dict[int, Rule] = {}
        self._loops = threading.local()

    # Not compiled itself, where a compiled wrapper calls the transformer; the transformer is.
    @torch.compiler.disable(recursive=False)
    def __call__(
        self, module: torch.nn.Module, compute: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """One call of the transformer; see `attach.Interceptor`."""
        run, form, computes = self._enter(module, args, kwargs)
        if not computes:
            return self._answered(run, form, module, args, kwargs)
        try:
            return self._computed(run, form, compute(*args, **kwargs))
        except BaseException:
            self._failed(run)
            raise

    @torch.compiler.disable
    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The run that a call is of, the form of the call, and whether it must be computed."""
        form = form_of(args, kwargs)
        run = self._run(module, args, kwargs, form)
        computes = run.computes(form)
        if computes:
            run.begin_forward(form)
        return run, form, computes

    def _run(self, module: Any, args: Any, kwargs: Any, form: Hashable) -> Any:
        caller = caller_of(module)
        if caller is None:
            return self._loop(module, args, kwargs, form)
        if caller.call is not None:
            caller.call.forwards += 1
        scheduler = caller.scheduler
        run = PipelineRun.on(scheduler, self)
        if run is None:
            run = self._begin(caller, module, args, kwargs)
        run.enter(self._step(caller, args, kwargs))
        return run

    @torch.compiler.disable
    def _answered(self, run: Any, form: Hashable, module: Any, args: Any, kwargs: Any) -> Any:
        output = run.answer(form)
        show(module, args, kwargs, output)
        return output

    @torch.compiler.disable
    def _computed(self, run: Any, form: Hashable, output: Any) -> Any:
        with self._lock:
            self.forwards += 1
        return run.keep(form, output)

    @torch.compiler.disable
    def _failed(self, run: Any) -> None:
        run.end()

    def _begin(self, caller: Caller, module: Any, args: Any, kwargs: Any) -> PipelineRun:
        """A new run: its scheduler has made its noise levels anew."""
        scheduler = caller.scheduler
        check_scheduler(scheduler)
        check_compiled(caller, module)
        for one in self.modules:
            check_transformer(one)
        grid, begin = levels(scheduler), self._step(caller, args, kwargs)
        conditions = RunConditions.of(caller, velocity_of((args, kwargs)).dtype, self.loras())
        schedule = self.source.schedule_for(grid, conditions, begin)
        offset = grid.num_inference_steps - schedule.num_inference_steps
        rest = grid.sigmas[offset:]
        if offset not in (0, begin) or not schedule.grid.matches(rest):
            raise ScheduleError(
                f"the schedule is for a grid of {schedule.grid}, but the pipeline runs {grid}"
            )
        self.schedule = schedule
        if schedule.nfe < schedule.num_inference_steps:
            check_guidance(caller)
        others = other_schedulers(caller, grid)
        run = PipelineRun(self, scheduler, others, self._rule(schedule), offset, self.replay)
        if caller.call is None:
            caller.when_over(run.end)
        else:
            caller.call.runs.append(run)
        return run

    def _step(self, caller: Caller, args: Any, kwargs: Any) -> int:
        """The scheduler's step that a call is of.

        Raises:
            ScheduleError: it cannot be known.
        """
        scheduler = caller.scheduler
        step = step_of(scheduler, (value for value in (*args, *kwargs.values())))
        if step is not None:
            return step
        variables = caller.variables()
        nearby = [local[name] for local in variables for name in NAMES if name in local]
        step = step_of(scheduler, nearby)
        if step is None:
            step = step_by_value(scheduler, nearby)
        if step is None:
            raise ScheduleError(
                "the step at which the run begins cannot be told: call the scheduler's "
                "set_begin_index before the first step, or loop over its timesteps"
            )
        return step

    def _loop(self, module: Any, args: Any, kwargs: Any, form: Hashable) -> Any:
        """The branch of a loop without a pipeline that a call is of."""
        run = getattr(self._loops, "run", None)
        if run is None:
            run = self._loops.run = self._begin_loop()
        given = _given(module, args, kwargs)
        timestep = timestep_of(given, run.rule.schedule.grid.sigmas)
        branch = run.enter((cache_context(), form), timestep)
        if branch.step == 0:
            self._check_loop(args, kwargs)
        return branch

    def _begin_loop(self) -> LoopRun:
        if not isinstance(self.source, FixedSchedule):
            raise ScheduleError(
                "a loop without a pipeline has no scheduler whose noise levels could be read: give "
                "it a schedule (Calibration.schedule), or let a pipeline run the transformer"
            )
        return LoopRun(self._rule(self.source.schedule), self.replay)

    def _check_loop(self, args: Any, kwargs: Any) -> None:
        """What can be checked of a loop: other caches, adapters and the dtype."""
        for one in self.modules:
            check_transformer(one)
        assert isinstance(self.source, FixedSchedule)
        conditions = RunConditions.of(None, velocity_of((args, kwargs)).dtype, self.loras())
        self.source.schedule_for(self.source.schedule.grid, conditions, 0)

    def loras(self) -> list[str]:
        """Names of the adapters in use, sorted."""
        return sorted({name for one in self.modules for name in active_loras(one)})

    def _rule(self, schedule: Schedule) -> Rule:
        rule = self._rules.get(id(schedule))
        if rule is None or rule.schedule is not schedule:
            rule = Rule(schedule)
            with self._lock:
                if len(self._rules) == _RULES:
                    self._rules.pop(next(iter(self._rules)))
                self._rules[id(schedule)] = rule
        return rule

    def end(self, call: Call) -> None:
        """A call of a guarded pipeline is over: nothing stays of its runs."""
        for run in call.runs:
            if run.hook is self:
                run.end()

    def let_go(self, module: torch.nn.Module) -> None:
        """The module does not follow this hook any more."""
        self.modules = [one for one in self.modules if one is not module]
        self._loops = threading.local()


def attach_hook(
    modules: Sequence[torch.nn.Module], schedule: Schedule, replay: Replay | None = None
) -> MeanCacheHook:
    """Puts one hook that follows `schedule` on all modules."""
    hook = MeanCacheHook(FixedSchedule(schedule), modules, replay)
    for module in modules:
        attach(module, hook, HOOK_NAME, innermost=True)
    return hook


def _given(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name; those of a wrapper whose forward names none by their place."""
    parameters = inspect.signature(type(plain(module)).forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [one.name for one in parameters if one.kind in kinds][1:]
    names += [f"*{number}" for number in range(len(names), len(args))]
    return {**dict(zip(names, args, strict=False)), **kwargs}
