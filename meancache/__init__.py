"""MeanCache (arXiv 2601.19961) for flow-matching pipelines of diffusers.

>>> from meancache import Calibration, apply_mean_cache
>>> apply_mean_cache(pipe, Calibration.load("calibration.parquet"), budget=10)
>>> video = pipe(prompt).frames  # same call as before, a fifth of the forwards

The method alone: torch, numpy and diffusers' hooks, with Parquet where statistics are stored.
No Ray, no xDiT, no S3 in here.
"""

import importlib
from typing import TYPE_CHECKING, Any

from meancache.errors import ScheduleError
from meancache.schedule import Edge, Schedule

if TYPE_CHECKING:
    from meancache.calibration import Calibration
    from meancache.hooks.hook import apply_mean_cache, remove_mean_cache

__all__ = [
    "Calibration",
    "Edge",
    "Schedule",
    "ScheduleError",
    "apply_mean_cache",
    "remove_mean_cache",
]

# Where names are found that are imported when they are first asked for: diffusers takes seconds to
# import, and scipy and pyarrow a few tenths, which reading a schedule can do without.
_LATER = {
    "Calibration": "meancache.calibration",
    "apply_mean_cache": "meancache.hooks.hook",
    "remove_mean_cache": "meancache.hooks.hook",
}


def __getattr__(name: str) -> Any:
    if name == "tiny":
        return importlib.import_module("meancache.tiny")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
