"""Finds the timestep in a transformer's arguments, and compares it with noise levels."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from meancache.errors import ScheduleError

NAMES = ("timestep", "timesteps", "t", "time", "sigma", "sigmas", "noise_level")
NUM_TRAIN_TIMESTEPS = 1000
# float32 timesteps of another library's arithmetic; a lower precision is rounded to first.
_TOLERANCE = 1e-5
_PRECISIONS = (torch.float16, torch.bfloat16)


class Timestep:
    """A noise level as a loop gives it: in units of 1 or of 1000, or 1 - sigma, in any precision.

    Args:
        value: a number, or an array or a tensor of one value.

    Raises:
        ScheduleError: its elements differ.
    """

    def __init__(self, value: Any) -> None:
        self.dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float64
        flat = torch.as_tensor(value).flatten()
        if flat.numel() > 1 and bool((flat != flat[0]).any()):
            raise ScheduleError(
                f"the samples of a call have different timesteps ({float(flat.min()):g} to "
                f"{float(flat.max()):g}), but a schedule is for one noise level a step: give all "
                "of them the same"
            )
        self.value = float(flat[0])

    def distance(self, sigma: float) -> float:
        """How far this is from the noise level, relative to it."""
        return min(
            abs(self.value - self._rounded(level, dtype)) / max(abs(level), sigma, 1e-9)
            for unit in (1, NUM_TRAIN_TIMESTEPS)
            for level in (unit * sigma, unit * (1 - sigma))
            for dtype in (self.dtype, *_PRECISIONS)
        )

    def is_at(self, sigma: float) -> bool:
        """Whether this is the noise level, to rounding."""
        return self.distance(sigma) <= _TOLERANCE

    def _rounded(self, level: float, dtype: torch.dtype) -> float:
        return float(torch.tensor(level, dtype=torch.float64).to(dtype))

    def __str__(self) -> str:
        return f"{self.value:g}"


def timestep_of(given: Mapping[str, Any], sigmas: Sequence[float]) -> Timestep:
    """The timestep among a call's arguments, the first of which are the latents.

    Args:
        given: the arguments by name.
        sigmas: of the grid, to know a timestep that bears another name by its value.

    Raises:
        ScheduleError: there is none, or several could be it.
    """
    for name in NAMES:
        if _is_number(given.get(name)):
            return Timestep(given[name])
    others = [value for value in list(given.values())[1:] if _is_number(value, several=False)]
    found = [one for one in map(Timestep, others) if any(one.is_at(level) for level in sigmas[:-1])]
    if len(found) != 1:
        raise ScheduleError(
            "the step of a call cannot be told: without a pipeline it follows from the noise "
            "level, in units of 1 or of 1000, in the transformer's argument `timestep`; pass it"
        )
    return found[0]


def _is_number(value: Any, several: bool = True) -> bool:
    """Whether the value is a number, or an array of them; of equal ones, where not `several`."""
    if isinstance(value, torch.Tensor | np.ndarray):
        flat = value.reshape(-1)
        numeric = len(flat) > 0 and value.ndim <= 2 and _is_numeric(value)
        return numeric and (several or bool((flat == flat[0]).all()))
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dtype != torch.bool and not value.is_complex()
    return value.dtype.kind in "fiu"
