"""What the method needs to know of a diffusers pipeline, and what it refuses about one.

The contract that a pipeline has to follow: its scheduler is a FlowMatchEulerDiscreteScheduler
(z_{k+1} = z_k + h_k v_k), set anew for every call, and its transformer's output, or a fixed
multiple of it, is the velocity. Everything here is read before the first forward of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from meancache.errors import ScheduleError
from meancache.grid import Grid, describe
from meancache.json_values import shown
from meancache.schedule import Schedule

# Where diffusers keeps its caches; its other hooks (offloading, casting, parallelism) do no harm.
CACHES = (
    "faster_cache",
    "first_block_cache",
    "mag_cache",
    "pyramid_attention_broadcast",
    "sea_cache",
    "taylorseer_cache",
    "text_kv_cache",
)
SPATIAL = (
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
    "vae_scale_factor",
)
TEMPORAL = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)


class Caller:
    """A diffusers pipeline in the middle of its call.

    Attributes:
        pipeline: it.
        variables: the local variables of its `__call__`.
    """

    def __init__(self, pipeline: DiffusionPipeline, variables: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.variables = variables

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    @property
    def step(self) -> int:
        """The step that the scheduler is at: exact, and read without waiting for the device."""
        for name in ("step_index", "begin_index"):
            step = getattr(self.scheduler, name, None)
            if step is not None:
                return int(step)
        return 0

    def sizes(self) -> dict[str, list[int]]:
        """Height, width and num_frames in pixels and frames, in every way that they can be read.

        The call's own variables are what was asked for, or what the pipeline made of it, but some
        reuse the names for latents. Latents that still have their axes, times the VAE's factors,
        are what is drawn, but some pipelines order their axes in another way.
        """
        found: dict[str, list[int]] = {"height": [], "width": [], "num_frames": []}
        for name, readings in found.items():
            if isinstance(self.variables.get(name), int):
                readings.append(self.variables[name])
        latents = self.variables.get("latents")
        axes: tuple[int, ...] = latents.shape if isinstance(latents, torch.Tensor) else ()
        spatial, temporal = self._factor(SPATIAL), self._factor(TEMPORAL)
        if len(axes) in (4, 5) and spatial is not None:
            found["height"].append(axes[-2] * spatial)
            found["width"].append(axes[-1] * spatial)
        if len(axes) == 5 and temporal is not None:
            found["num_frames"].append((axes[2] - 1) * temporal + 1)
        return found

    def _factor(self, names: tuple[str, ...]) -> int | None:
        found = (getattr(self.pipeline, name, None) for name in names)
        return next((factor for factor in found if isinstance(factor, int)), None)


def calling_pipeline() -> Caller | None:
    """The diffusers pipeline whose `__call__` is running the transformer, or None.

    A transformer does not know its pipeline, and its timestep alone cannot tell 50 steps from
    30: both begin at 1000. The pipeline's scheduler can, before a forward is spent.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if "self" in frame.f_code.co_varnames:
            variables = frame.f_locals
            pipeline = variables.get("self")
            if isinstance(pipeline, DiffusionPipeline) and hasattr(pipeline, "scheduler"):
                return Caller(pipeline, variables)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def transformers_of(target: torch.nn.Module | DiffusionPipeline) -> list[torch.nn.Module]:
    """The denoisers of a pipeline, in the order of their names, or the one given itself.

    Raises:
        ScheduleError: the pipeline has none.
    """
    if isinstance(target, torch.nn.Module):
        return [_plain(target)]
    components = getattr(target, "components", {})
    found = [
        _plain(module)
        for name, module in sorted(components.items())
        if name.startswith("transformer") and isinstance(module, torch.nn.Module)
    ]
    if not found:
        raise ScheduleError(
            f"{type(target).__name__} has no transformer; give the module that predicts its "
            "velocity instead"
        )
    return found


def check_run(caller: Caller, schedule: Schedule) -> None:
    """Refuses a run that is not the schedule's.

    Raises:
        ScheduleError: the pipeline does not integrate a velocity by Euler steps, or runs on other
            noise levels or in another shape than the schedule was made for.
    """
    scheduler = caller.scheduler
    check_scheduler(scheduler)
    sigmas = scheduler.sigmas.tolist()
    if not schedule.grid.matches(sigmas):
        raise ScheduleError(
            f"the schedule is for a grid of {schedule.grid}, but the pipeline runs "
            f"{describe(sigmas)}: set num_inference_steps and the scheduler's shift to the "
            "schedule's, or solve a schedule for this grid"
        )
    for name, readings in caller.sizes().items():
        wanted = schedule.conditions.get(name)
        if wanted is not None and readings and wanted not in readings:
            raise ScheduleError(
                f"the schedule was made for {name} {shown(wanted)}, but the pipeline runs {name} "
                f"{readings[0]}: ask for the schedule's size, or solve a schedule for this one"
            )


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
            "Euler steps integrate: give a flow-matching pipeline a "
            "FlowMatchEulerDiscreteScheduler of its shift; other pipelines cannot follow one"
        )
    if scheduler.config.get("stochastic_sampling") or scheduler.config.get("invert_sigmas"):
        raise ScheduleError(
            f"the pipeline's {name} has stochastic_sampling or invert_sigmas set, so it does not "
            "follow a velocity from noise level 1 to 0; a schedule needs both off"
        )


def check_transformer(transformer: torch.nn.Module, schedule: Schedule) -> None:
    """Refuses a transformer with another cache, or with other adapters than the schedule's.

    Raises:
        ScheduleError: names them.
    """
    name = type(transformer).__name__
    cache = other_cache(transformer)
    if cache is not None:
        raise ScheduleError(
            f"{name} has another cache enabled ({cache}), and two caches do not add up: switch it "
            "off (disable_cache), or do without a schedule (remove_mean_cache)"
        )
    wanted = schedule.conditions.get("lora")
    if wanted is None:
        return
    names = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ScheduleError(
            f"the schedule's condition lora is {shown(wanted)}; it must be the names of adapters "
            "in a list, empty for none, or null where they are left open"
        )
    active = active_loras(transformer)
    if sorted(names) != active:
        raise ScheduleError(
            f"the schedule was made for {_adapters(sorted(names))}, but {name} runs "
            f"{_adapters(active)}: set the schedule's adapters, or solve a schedule for these"
        )


def other_cache(transformer: torch.nn.Module) -> str | None:
    """The name of a cache of diffusers or cache-dit that is on the transformer, if one is."""
    if getattr(transformer, "_is_cached", False):
        return "cache-dit"
    for module in transformer.modules():
        registry = vars(module).get("_diffusers_hook")
        for hook in () if registry is None else registry.hooks.values():
            package, _, cache = type(hook).__module__.rpartition(".")
            if package == "diffusers.hooks" and cache in CACHES:
                return cache
    config = getattr(transformer, "_cache_config", None)
    return None if config is None else type(config).__name__


def active_loras(transformer: torch.nn.Module) -> list[str]:
    """Names of the LoRA adapters in use, sorted; fused ones leave no trace and are not seen."""
    layers: list[Any] = [one for one in transformer.modules() if hasattr(one, "lora_A")]
    return sorted(
        {
            name
            for layer in layers
            if not layer.disable_adapters
            for name in layer.active_adapters
            if name in layer.lora_A
        }
    )


def grid_of(pipeline: DiffusionPipeline) -> Grid:
    """The noise levels of the pipeline's last call.

    Raises:
        ScheduleError: its scheduler is not one that a schedule can follow.
    """
    check_scheduler(pipeline.scheduler)
    return Grid.from_scheduler(pipeline.scheduler)


def _plain(module: torch.nn.Module) -> torch.nn.Module:
    """The module that torch.compile wrapped: hooks go inside, around what is compiled."""
    return getattr(module, "_orig_mod", module)


def _adapters(names: list[str]) -> str:
    return f"LoRA {', '.join(shown(name)[1:-1] for name in names)}" if names else "no LoRA"
