"""Which modules of a pipeline follow a schedule, and what must not be on them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from meancache.errors import ScheduleError
from meancache.hooks.attach import plain
from meancache.hooks.schedulers import check_scheduler, grid_of

__all__ = [
    "active_loras",
    "check_scheduler",
    "check_transformer",
    "grid_of",
    "named_transformers",
    "other_cache",
    "replaced_forward",
    "transformers_of",
]

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
# Packages whose wrappers around a forward run it in every call: offloading, casting, adapters. What
# cache-dit leaves on a transformer does so too, unless its cache is on (`other_cache`).
_TRANSPARENT = ("accelerate", "cache_dit", "contextlib", "diffusers", "peft", "torch")


def transformers_of(target: Any) -> list[torch.nn.Module]:
    """The denoisers of a pipeline, in the order of their names, or the one given itself.

    Raises:
        ScheduleError: the pipeline has none.
    """
    if isinstance(target, torch.nn.Module):
        return [plain(target)]
    return [plain(one) for one in named_transformers(target).values()]


def named_transformers(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The denoisers of a pipeline by the names of its components, with torch.compile's wrappers.

    Raises:
        ScheduleError: the pipeline has none.
    """
    modules = {
        name: module
        for name, module in sorted(getattr(pipeline, "components", {}).items())
        if isinstance(module, torch.nn.Module)
    }
    # transformer, transformer_2, unconditional_transformer
    found = {name: module for name, module in modules.items() if "transformer" in name}
    flow = isinstance(getattr(pipeline, "scheduler", None), FlowMatchEulerDiscreteScheduler)
    if not found and flow:
        found = {name: module for name, module in modules.items() if name == "unet"}
    if not found:
        raise ScheduleError(
            f"{type(pipeline).__name__} has no transformer; give the module that predicts its "
            "velocity instead"
        )
    return found


def check_transformer(transformer: torch.nn.Module) -> None:
    """Refuses a transformer with another cache on it.

    Raises:
        ScheduleError: names it.
    """
    transformer = plain(transformer)
    name = type(transformer).__name__
    cache = other_cache(transformer)
    if cache is not None:
        raise ScheduleError(
            f"{name} has another cache enabled ({cache}), and two caches do not add up: switch it "
            "off (disable_cache), or do without a schedule (remove_mean_cache)"
        )
    found = replaced_forward(transformer)
    if found is not None:
        raise ScheduleError(
            f"the forward of {name} was replaced by {found}, which may answer without computing: "
            "take it off, or, if it always runs the forward that it replaced, set its "
            "attribute computes_always = True"
        )


def other_cache(transformer: torch.nn.Module) -> str | None:
    """The name of a cache that is on the transformer by diffusers' hooks or is cache-dit's."""
    if getattr(transformer, "_is_cached", False):
        return "cache-dit"
    for module in transformer.modules():
        registry = vars(module).get("_diffusers_hook")
        for hook in () if registry is None else registry.hooks.values():
            package, _, cache = type(hook).__module__.rpartition(".")
            if package == "diffusers.hooks" and cache in CACHES:
                return cache
            if package != "diffusers.hooks" and hasattr(hook, "new_forward"):
                return f"{type(hook).__module__}.{type(hook).__qualname__}"
    config = getattr(transformer, "_cache_config", None)
    return None if config is None else type(config).__name__


def replaced_forward(module: torch.nn.Module) -> str | None:
    """The function that stands in for the module's own forward, if it is not known to run it."""
    stranger = _stranger(vars(module).get("forward"), type(module))
    if stranger is not None:
        return stranger
    owner = next((one for one in type(module).__mro__ if "forward" in vars(one)), None)
    return None if owner is None else _stranger(vars(owner)["forward"], owner)


def _stranger(forward: Any, owner: type) -> str | None:
    """The first function in a chain of wrappers that is neither the class's own nor known."""
    seen: set[int] = set()
    while forward is not None and id(forward) not in seen:
        seen.add(id(forward))
        function = forward.func if isinstance(forward, functools.partial) else forward
        function = getattr(function, "__func__", function)
        if _is_own(function, owner):
            return None
        if _module(function).partition(".")[0] not in _TRANSPARENT and not getattr(
            function, "computes_always", False
        ):
            return f"{_module(function)}.{_name(function)}"
        forward = getattr(forward, "__wrapped__", None)
    return None


def _is_own(function: Any, owner: type) -> bool:
    """Whether the function was written in the body of the class, or of one that it derives from."""
    return any(
        _name(function) == f"{base.__qualname__}.forward" and _module(function) == base.__module__
        for base in owner.__mro__
    )


def _module(function: Any) -> str:
    """The module that a function's code is in, whatever functools.wraps says of it."""
    if not hasattr(function, "__code__"):
        return type(function).__module__
    return str(function.__globals__.get("__name__", "builtins"))


def _name(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return type(function).__qualname__ if code is None else str(code.co_qualname)


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
