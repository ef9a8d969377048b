"""Guards a pipeline that follows a schedule: every call of it runs its transformers through a hook.

The pipeline gets a subclass of its class for as long as it is guarded. Its `__call__` says which
pipeline is running, so that nobody needs to look for it; puts the hook on a transformer that has
been replaced since; and warns where a call has not been accelerated.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from meancache.errors import ScheduleError
from meancache.hooks.attach import attach, attached, become, detach, plain, subclass_of, unbecome
from meancache.hooks.callers import Call, calling
from meancache.hooks.pipelines import check_transformer
from meancache.hooks.schedulers import check_scheduler

_GUARD = "_mean_cache_guard"
# Where modular pipelines log a traceback for each of their blocks that an error goes through.
_MODULAR = "diffusers.modular_pipelines.modular_pipeline"


class Guard:
    """What a guarded pipeline runs its transformers through.

    Attributes:
        hook: the interceptor, on all of them.
        name: its name there.
        modules: the transformers by the names of the pipeline's components.
    """

    def __init__(self, hook: Any, name: str, modules: dict[str, torch.nn.Module]) -> None:
        self.hook = hook
        self.name = name
        self.modules = modules

    def follow(self, pipeline: Any) -> None:
        """Moves the hook to transformers that have taken the place of others.

        Raises:
            ScheduleError: another schedule or cache is on one of them.
        """
        for name, module in self.modules.items():
            now = getattr(pipeline, name, None)
            if now is None or now is module:
                continue
            # A wrapper around the module (parallelism) still calls it. Not one of torch.compile:
            # what answers without computing stands outside of it.
            if plain(now) is now and any(one is module for one in now.modules()):
                continue
            detach(module, self.name)
            check_transformer(now)
            check_free(now, self.name)
            attach(now, self.hook, self.name, innermost=True)
            self.modules[name] = now
        self.hook.modules = list(self.modules.values())


def guard(pipeline: Any, one: Guard) -> None:
    """Runs every call of the pipeline under the guard from now on."""
    vars(pipeline)[_GUARD] = one
    become(pipeline, _GUARD, _guarded)
    logging.getLogger(_MODULAR).addFilter(_without_refusals)


def _without_refusals(record: logging.LogRecord) -> bool:
    """Whether the record is not about a refusal, which is raised and says all in its sentence."""
    return not isinstance(sys.exc_info()[1], ScheduleError)


def guard_of(pipeline: Any) -> Guard | None:
    """The pipeline's guard, if it has one."""
    found: Guard | None = vars(pipeline).get(_GUARD)
    return found


def unguard(pipeline: Any) -> None:
    """Calls of the pipeline are its own again; nothing happens where they are."""
    if vars(pipeline).pop(_GUARD, None) is not None:
        unbecome(pipeline)


def check_free(module: torch.nn.Module, name: str) -> None:
    """Refuses a module that follows a schedule.

    Raises:
        ScheduleError: it does.
    """
    if any(attached(one, name) is not None for one in (module, plain(module))):
        raise ScheduleError(
            f"{type(plain(module)).__name__} follows a schedule already; call remove_mean_cache "
            "before applying another"
        )


@functools.cache
def _guarded(base: Any, key: str) -> type:
    @functools.wraps(base.__call__)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        one = guard_of(self)
        if one is None:
            return base.__call__(self, *args, **kwargs)
        one.follow(self)
        scheduler = getattr(self, "scheduler", None)
        if scheduler is not None:  # before a text is encoded; the first forward checks the rest
            check_scheduler(scheduler)
        call = Call(self, one.hook.modules, _arguments(base, self, args, kwargs))
        with _alone(self), calling(call):
            try:
                output = base.__call__(self, *args, **kwargs)
            finally:
                one.hook.end(call)
        if not call.forwards:
            warnings.warn(
                f"{base.__name__} ran without calling its transformer through its schedule: the "
                "run was not accelerated; call remove_mean_cache and apply_mean_cache anew",
                stacklevel=2,
            )
        return output

    return subclass_of(base, key, {"__call__": guarded})


def _arguments(base: Any, pipeline: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    try:
        bound = inspect.signature(base.__call__).bind(pipeline, *args, **kwargs)
    except TypeError:  # the call itself says what is wrong
        return {}
    bound.apply_defaults()
    return {**bound.arguments, **kwargs}


_running: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def _alone(pipeline: Any) -> Iterator[None]:
    """Refuses a call while another thread runs on the same scheduler, before it disturbs that one.

    Raises:
        ScheduleError: one does.
    """
    scheduler, thread = getattr(pipeline, "scheduler", None), threading.get_ident()
    if scheduler is None:
        yield
        return
    with _lock:
        if _running.get(scheduler, thread) != thread:
            raise ScheduleError(
                f"another thread is running on the scheduler of this {type(pipeline).__name__}: "
                "give each thread a pipeline of its own with a copy of the scheduler; they may "
                "share all other parts"
            )
        nested = scheduler in _running
        _running[scheduler] = thread
    try:
        yield
    finally:
        if not nested:
            with _lock:
                _running.pop(scheduler, None)
