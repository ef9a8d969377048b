"""The schedulers that a schedule can follow, their steps, and the one place that patches `step`.

A schedule stands in for the velocity that Euler steps integrate: what a pipeline gives
`scheduler.step`, after guidance, its renormalisation and whatever the pipeline makes of its
transformer's output. So listeners see it, and may replace it, right there.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from meancache.errors import ScheduleError
from meancache.grid import Grid


class Listener(Protocol):
    """Sees the steps of a scheduler."""

    def before_step(self, scheduler: Any, velocity: torch.Tensor) -> torch.Tensor:
        """Gets what the scheduler is given; returns what it integrates."""

    def after_step(self, scheduler: Any) -> None:
        """The scheduler has taken the step."""


def check_scheduler(scheduler: Any) -> None:
    """Refuses what is not the Euler method on a flow: a schedule's jumps add up only there.

    Multistep, second-order and stochastic samplers of flows are refused too: their step is not
    h_k v_k, so weights that were made for the one would be wrong in the other.

    Raises:
        ScheduleError: names the scheduler.
    """
    name = type(scheduler).__name__
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ScheduleError(
            f"the pipeline's scheduler is a {name}, but a schedule stands in for a velocity that "
            f"Euler steps integrate: {_instead(scheduler)}"
        )
    if scheduler.config.get("stochastic_sampling"):
        raise ScheduleError(
            f"the pipeline's {name} has stochastic_sampling set, so it does not follow a velocity "
            "from noise level 1 to 0; a schedule needs it off"
        )


# Solvers whose pipelines, where they integrate a flow, run with Euler steps as well.
_SOLVERS = ("UniPC", "DPMSolver", "DEIS", "SASolver", "FlowMatchHeun", "FlowMatchLCM")


def _instead(scheduler: Any) -> str:
    """What to do about a scheduler that takes other steps than Euler's."""
    config, name = getattr(scheduler, "config", {}), type(scheduler).__name__
    flow = (
        name.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )
    if not (flow and name.startswith(_SOLVERS)):
        return "this one takes other steps, so call remove_mean_cache"
    # Multistep schedulers of flows call it flow_shift, which from_config would leave out.
    shift = config.get("flow_shift", config.get("shift"))
    given = "" if shift is None else f", shift={shift:g}"
    return (
        "the pipeline works with a FlowMatchEulerDiscreteScheduler too, so set pipe.scheduler = "
        f"FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config{given}) and use a "
        "schedule of its noise levels"
    )


def grid_of(pipeline: Any) -> Grid:
    """The noise levels of the pipeline's last call.

    Raises:
        ScheduleError: its scheduler is not one that a schedule can follow.
    """
    check_scheduler(pipeline.scheduler)
    return levels(pipeline.scheduler)


def levels(scheduler: Any) -> Grid:
    """The noise levels that an Euler scheduler has been set to.

    Raises:
        ScheduleError: they do not fall from the first to a final 0.
    """
    try:
        return Grid.from_scheduler(scheduler)
    except ValueError as error:
        repeats = scheduler.config.get("final_sigmas_type") == "sigma_min"
        fix = (
            'call pipe.scheduler.register_to_config(final_sigmas_type="zero"), as its last noise '
            "level is repeated"
            if repeats
            else "let its scheduler set them (set_timesteps)"
        )
        raise ScheduleError(
            f"the pipeline's noise levels cannot follow a schedule: {error}; {fix}"
        ) from error


def step_of(scheduler: Any, nearby: Iterable[Any]) -> int | None:
    """The step that the scheduler is at, exact and read without waiting for the device.

    Before its first step a scheduler may not know it itself (a pipeline that starts in the middle
    of the grid and sets no begin_index). Then a loop over its timesteps does: an element of a
    tensor shares the tensor's memory, and lies at its index.

    Args:
        scheduler: after `set_timesteps`.
        nearby: what the loop may have its timestep in, the likeliest first.

    Returns:
        The step, or None where it cannot be known.
    """
    for name in ("step_index", "begin_index"):
        step = getattr(scheduler, name, None)
        if step is not None:
            return int(step)
    timesteps = scheduler.timesteps
    begin = timesteps.untyped_storage().data_ptr()
    for one in nearby:
        if (
            isinstance(one, torch.Tensor)
            and not any(one.stride())  # a single element, or one that is expanded
            and one.untyped_storage().data_ptr() == begin
            and one.dtype == timesteps.dtype
        ):
            step = one.storage_offset() - timesteps.storage_offset()
            if 0 <= step < len(timesteps):
                return step
    return None


def step_by_value(scheduler: Any, nearby: Iterable[Any]) -> int | None:
    """The step whose timestep one of `nearby` is, to the last bit; None where none or several are.

    For loops over a copy of the timesteps, or a list of them. Waits for the device.
    """
    timesteps = scheduler.timesteps.tolist()
    for one in nearby:
        number = one.item() if isinstance(one, torch.Tensor) and one.numel() == 1 else one
        if isinstance(number, float | np.floating) and timesteps.count(float(number)) == 1:
            return int(timesteps.index(float(number)))
    return None


def listen(scheduler: Any, listener: Listener, first: bool = False) -> None:
    """Shows `listener` the steps of the scheduler, after the listeners that it has, or before."""
    step = vars(scheduler).get("step")
    if not isinstance(step, _Step):
        step = scheduler.step = _Step(scheduler, step)
    if listener not in step.listeners:
        step.listeners.insert(0 if first else len(step.listeners), listener)


def unlisten(scheduler: Any, listener: Listener) -> None:
    """The listener sees no more; when none is left, `step` is what it was before."""
    step = vars(scheduler).get("step")
    if not isinstance(step, _Step):
        return  # somebody has wrapped it since, and keeps it: it lets everything pass
    if listener in step.listeners:
        step.listeners.remove(listener)
    if not step.listeners:
        if step.found is None:
            del scheduler.step
        else:
            scheduler.step = step.found


def listeners(scheduler: Any) -> list[Listener]:
    """Who listens to the scheduler's steps."""
    step = vars(scheduler).get("step")
    return list(step.listeners) if isinstance(step, _Step) else []


class _Step:
    """Stands in for a scheduler's `step`."""

    def __init__(self, scheduler: Any, found: Any) -> None:
        self.scheduler = scheduler
        self.found = found  # somebody's own `step`, where one was there before
        self.inner = scheduler.step
        self.listeners: list[Listener] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs, velocity = _taken(args, kwargs)
        listening = list(self.listeners)
        for listener in listening:
            velocity = listener.before_step(self.scheduler, velocity)
        result = self.inner(velocity, *args, **kwargs)
        for listener in listening:
            listener.after_step(self.scheduler)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The step of the copy of the scheduler, which nobody listens to."""
        copied = memo.get(id(self.scheduler))
        if copied is None:
            return self
        return types.MethodType(type(copied).step, copied)

    def __reduce__(self) -> Any:
        return getattr, (self.scheduler, "step")


def _taken(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, torch.Tensor]:
    """A call's arguments without the velocity, and the velocity."""
    if args:
        return args[1:], kwargs, args[0]
    rest = dict(kwargs)
    return (), rest, rest.pop("model_output")
