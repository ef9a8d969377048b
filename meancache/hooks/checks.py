"""What is refused of a run before its first forward, as the pipeline would spoil it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SchedulerMixin

from meancache.errors import ScheduleError
from meancache.grid import Grid
from meancache.hooks.attach import plain
from meancache.hooks.callers import Caller
from meancache.hooks.schedulers import check_scheduler, levels


def check_compiled(caller: Caller, module: torch.nn.Module) -> None:
    """Refuses a transformer that was compiled around its hook, as a whole, by fullgraph=True.

    Raises:
        ScheduleError: a call that is answered without computing would have nothing to compile.
    """
    for one in vars(caller.pipeline).values():
        around = isinstance(one, torch.nn.Module) and plain(one) is module and one is not module
        if around and getattr(getattr(one, "dynamo_ctx", None), "fullgraph", False):
            raise ScheduleError(
                f"{type(module).__name__} was compiled as a whole after its schedule was applied: "
                "call remove_mean_cache and apply_mean_cache anew, on the pipeline or on what "
                "torch.compile returned"
            )


def other_schedulers(caller: Caller, grid: Grid) -> list[Any]:
    """Schedulers beside the pipeline's own that its loop steps, as for sound beside a video.

    Raises:
        ScheduleError: they cannot follow the schedule together with the pipeline's.
    """
    values = [value for local in caller.variables() for value in local.values()]
    for value in values:
        if isinstance(value, list | tuple) and any(isinstance(v, SchedulerMixin) for v in value):
            raise ScheduleError(
                f"{type(caller.pipeline).__name__} steps each part of its latents with a "
                "scheduler of its own, and a schedule is for one: call remove_mean_cache"
            )
    schedulers = {id(one): one for one in values if isinstance(one, SchedulerMixin)}
    schedulers.pop(id(caller.scheduler), None)
    found = list(schedulers.values())
    for one in found:
        check_scheduler(one)
        if not levels(one).matches(grid.sigmas):
            raise ScheduleError(
                f"{type(caller.pipeline).__name__} runs a second scheduler on other noise levels "
                f"({levels(one)}) than its own ({grid}), and a schedule is for one grid: call "
                "remove_mean_cache"
            )
    return found


def check_guidance(caller: Caller) -> None:
    """Refuses guidance that averages over the steps, as adaptive projected guidance does.

    On a skipped step it would take in the outputs of an earlier one again, and go on from there.

    Raises:
        ScheduleError: names what averages.
    """
    values = [value for local in caller.variables() for value in local.values()]
    values += [getattr(caller.pipeline, name, None) for name in ("guider", "guider_2")]
    for value in values:
        buffer = getattr(value, "momentum_buffer", value)
        momentum = getattr(buffer, "momentum", None)
        if type(buffer).__name__ == "MomentumBuffer" and momentum:
            raise ScheduleError(
                f"the guidance of {type(caller.pipeline).__name__} has momentum "
                f"{momentum:g}, an average over all steps, which steps that are not "
                "computed would falsify: give it guidance without momentum "
                "(adaptive_projected_guidance_momentum=None, or another guider)"
            )
