"""Puts diffusers hooks on a module, and takes them off so that nothing of them is left.

diffusers' registry leaves itself and an instance's `forward` behind, and overwrites what wrapped
the forward after it, as accelerate's offloading may have. Here all is put back as it was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

_FOUND = "_mean_cache_found"
_WRAPPER = "_mean_cache_wrapper"


@dataclass(frozen=True)
class _Found:
    """What the module had before the first of our hooks."""

    registry: bool
    forward: bool


def attach(module: torch.nn.Module, hook: ModelHook, name: str) -> None:
    """Wraps the module's forward in `hook`; no hook of that name may be on it."""
    found = _Found("_diffusers_hook" in vars(module), "forward" in vars(module))
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if not hasattr(registry, _FOUND):
        setattr(registry, _FOUND, found)
    registry.register_hook(hook, name)
    setattr(hook, _WRAPPER, module.forward)


def attached(module: torch.nn.Module, name: str) -> ModelHook | None:
    """The hook of that name on the module itself, if there is one."""
    registry = vars(module).get("_diffusers_hook")
    return None if registry is None else registry.get_hook(name)


def detach(module: Any, name: str) -> None:
    """Takes the hook of that name off again; nothing happens where there is none."""
    hook = attached(module, name)
    if hook is None:
        return
    registry: Any = vars(module)["_diffusers_hook"]
    wrapper, current = getattr(hook, _WRAPPER), module.forward
    outermost = registry._fn_refs[-1] is hook.fn_ref
    registry.remove_hook(name, recurse=False)
    if outermost and current is not wrapper:  # somebody else has wrapped or replaced it since
        if vars(module).get("_old_forward") is wrapper:  # accelerate calls this one
            module._old_forward = module.forward
        module.forward = current
    if registry.hooks:
        return
    found: _Found = vars(registry).pop(_FOUND)
    plain = getattr(module.forward, "__func__", None) is type(module).forward
    if plain and not found.forward and "forward" in vars(module):
        del module.forward
    if not found.registry:
        del module._diffusers_hook
