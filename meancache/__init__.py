"""MeanCache (arXiv 2601.19961) for flow-matching pipelines of diffusers.

>>> from meancache import Schedule, apply_mean_cache
>>> apply_mean_cache(pipe.transformer, Schedule.load("schedule.json"))
>>> video = pipe(prompt).frames  # same call as before, a fifth of the forwards

The method alone: torch, numpy and diffusers' hooks, with Parquet where statistics are stored.
No Ray, no xDiT, no S3 in here.
"""

from typing import TYPE_CHECKING, Any

from meancache.errors import ScheduleError
from meancache.schedule import Edge, Schedule

if TYPE_CHECKING:
    from meancache.hooks.hook import apply_mean_cache, remove_mean_cache

__all__ = ["Edge", "Schedule", "ScheduleError", "apply_mean_cache", "remove_mean_cache"]


def __getattr__(name: str) -> Any:
    """The hook, imported when it is first asked for: diffusers takes seconds to import, and who
    solves or reads schedules does without it."""
    if name not in ("apply_mean_cache", "remove_mean_cache"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from meancache.hooks import hook

    return getattr(hook, name)
