"""MeanCache (arXiv 2601.19961) for flow-matching pipelines of diffusers.

>>> from meancache import Schedule, apply_mean_cache
>>> apply_mean_cache(pipe.transformer, Schedule.load("schedule.json"))
>>> video = pipe(prompt).frames  # same call as before, a fifth of the forwards

The method alone: torch, numpy and diffusers' hooks, with Parquet where statistics are stored.
No Ray, no xDiT, no S3 in here.
"""

from meancache.hook import apply_mean_cache, remove_mean_cache
from meancache.schedule import Edge, Schedule, ScheduleError

__all__ = ["Edge", "Schedule", "ScheduleError", "apply_mean_cache", "remove_mean_cache"]
