"""Lets a pipeline's run go on below its last noise level, so that a calibration reaches further.

The levels of the run itself stay as they are, and so do its velocities there. Its last step, to 0,
becomes several, so what comes out is not the plain run's sample: this is for recording alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def with_levels_below(scheduler: Any, below: Sequence[float]) -> Iterator[None]:
    """Every run of the scheduler visits `below` before it ends, while open.

    Args:
        scheduler: a FlowMatchEulerDiscreteScheduler.
        below: noise levels between the last of a run and 0, falling (`carrying.levels_below`).
    """
    found = vars(scheduler).get("set_timesteps")
    plain = scheduler.set_timesteps

    @functools.wraps(plain)  # pipelines look at its signature
    def extended(*args: Any, **kwargs: Any) -> None:
        plain(*args, **kwargs)
        more = torch.tensor(list(below), dtype=scheduler.sigmas.dtype)
        if scheduler.config.get("invert_sigmas"):  # which counts from the other end
            more = 1 - more
        times = more * scheduler.config.num_train_timesteps
        scheduler.sigmas = _before_last(scheduler.sigmas, more, kept=1)
        scheduler.timesteps = _before_last(scheduler.timesteps, times, kept=0)
        scheduler.num_inference_steps += len(below)

    scheduler.set_timesteps = extended
    try:
        yield
    finally:
        if found is None:
            del scheduler.set_timesteps
        else:
            scheduler.set_timesteps = found


def _before_last(values: torch.Tensor, more: torch.Tensor, kept: int) -> torch.Tensor:
    """`more` in front of the last `kept` of the values."""
    end = len(values) - kept
    return torch.cat([values[:end], more.to(values), values[end:]])
