"""Who is calling a transformer: the pipeline, its scheduler, and what its loop has in hand."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

from diffusers import SchedulerMixin

# How far up the stack the loop of an unguarded pipeline is looked for.
_FRAMES = 40
_CO_NEWLOCALS = 2
# Among a frame's variables: something that is freed with it.
_WITNESS = "_mean_cache_witness"


class Call:
    """One call of a guarded pipeline, while it lasts.

    Attributes:
        pipeline: it.
        modules: its transformers.
        arguments: of the call, defaults included.
        runs: what hooks know of the runs of this call; ended when it ends.
        forwards: how often one of its transformers was called.
    """

    def __init__(self, pipeline: Any, modules: list[Any], arguments: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.modules = modules
        self.arguments = arguments
        self.runs: list[Any] = []
        self.forwards = 0


@dataclass(frozen=True)
class Caller:
    """A pipeline, or another object with a scheduler, in the middle of its loop.

    Attributes:
        pipeline: it.
        call: its call, where the pipeline is guarded.
    """

    pipeline: Any
    call: Call | None = None

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    def variables(self) -> list[dict[str, Any]]:
        """The local variables of the loop and of what called it, the innermost first.

        Ends with those of the pipeline's own method; the state of a modular pipeline's blocks is
        among them.
        """
        found: list[dict[str, Any]] = []
        end = 0
        for frame in _frames():
            local = _locals(frame)
            found.append(local)
            for value in list(local.values()):
                if type(value).__name__ in ("BlockState", "PipelineState"):
                    found.append(_state(value))
            if self._is_own(local):
                end = len(found)
        return found[:end]

    def when_over(self, end: Callable[[], Any]) -> None:
        """Calls `end` when the pipeline's own method is over, returned or not.

        For pipelines that are not guarded: of their method there is no more than its frame.
        """
        frames = [frame for frame in _frames() if self._is_own(_locals(frame))]
        if frames:
            witness = _Witness()
            weakref.finalize(witness, end).atexit = False
            frames[-1].f_locals[_WITNESS] = witness

    def _is_own(self, local: Mapping[str, Any]) -> bool:
        return any(local.get(name) is self.pipeline for name in ("self", "components"))


class _Witness:
    """Is freed together with what holds it."""


# The guarded calls that are running in this thread, the innermost last.
_calls: ContextVar[tuple[Call, ...]] = ContextVar("mean_cache_calls", default=())


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """The call runs, while open."""
    token = _calls.set((*_calls.get(), call))
    try:
        yield
    finally:
        _calls.reset(token)


def caller_of(module: Any) -> Caller | None:
    """Who runs the module: a guarded pipeline, or one that is found on the stack; None for a loop
    without a scheduler of its own."""
    for call in reversed(_calls.get()):
        if any(one is module for one in call.modules):
            return Caller(call.pipeline, call)
    for frame in _frames():
        names = frame.f_code.co_varnames
        for name in ("self", "components"):
            if name not in names:
                continue
            owner = _locals(frame).get(name)
            # Its own attribute: nothing of a stranger's object is computed by looking at it.
            found = getattr(owner, "__dict__", {}).get("scheduler")
            if isinstance(found, SchedulerMixin):
                return Caller(owner)
    return None


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _locals(frame: FrameType) -> dict[str, Any]:
    """A copy: before Python 3.13 a frame keeps the snapshot, and all in it alive, until it ends."""
    snapshot = frame.f_locals
    local = dict(snapshot)
    witness = local.pop(_WITNESS, None)
    if sys.version_info < (3, 13) and frame.f_code.co_flags & _CO_NEWLOCALS:
        snapshot.clear()
        if witness is not None:
            snapshot[_WITNESS] = witness
    return local


def _state(state: Any) -> dict[str, Any]:
    values = dict(vars(state))
    return {**values, **values.get("values", {})}
