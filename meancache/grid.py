"""The sigma grid of a sampling run: what a schedule, a trajectory and a graph are valid for.

Knows nothing about models or pipelines beyond a diffusers scheduler's `sigmas`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meancache.json_values import is_number, is_whole_number, shown

# float32 sigmas of one scheduler agree exactly; this leaves room for another library's rounding.
SIGMA_TOLERANCE = 1e-5
# Running a schedule takes a T x T matrix, so T from outside has a bound.
MAX_STEPS = 1_000
# Noise levels closer than this are one level in float32, and slopes over them mean nothing.
MIN_GAP = 1e-9
MAX_SIGMA = 1e6


@dataclass(frozen=True)
class Grid:
    """Noise levels sigma_0 > ... > sigma_T = 0 of a run of T denoising steps.

    Attributes:
        sigmas: T + 1 floats, strictly decreasing, the last one 0.
        scheduler: class name of the diffusers scheduler, or None where it is left open.
        shift: the scheduler's time shift, or None where it is left open.

    Raises:
        ValueError: the sigmas are not a strictly decreasing finite list that ends in 0, or there
            are more of them, or larger or closer ones, than a run can compute with.
    """

    sigmas: tuple[float, ...]
    scheduler: str | None = None
    shift: float | None = None

    def __post_init__(self) -> None:
        sigmas = self.sigmas
        if not 2 <= len(sigmas) <= MAX_STEPS + 1:
            raise ValueError(
                f"a grid has {len(sigmas)} sigmas; give between 2 and {MAX_STEPS + 1}, "
                "the final 0 included"
            )
        if not all(math.isfinite(sigma) for sigma in sigmas):
            raise ValueError("a grid's sigmas must be finite numbers")
        if any(after >= before for before, after in itertools.pairwise(sigmas)):
            raise ValueError("a grid's sigmas must fall strictly from the first to the last")
        if sigmas[-1] != 0.0:
            raise ValueError(f"a grid's last sigma is {sigmas[-1]!r}; it must be the final 0")
        if sigmas[0] > MAX_SIGMA:
            raise ValueError(f"a grid's first sigma is {sigmas[0]:g}; give at most {MAX_SIGMA:g}")
        if any(before - after < MIN_GAP for before, after in itertools.pairwise(sigmas)):
            raise ValueError(f"a grid's sigmas must lie at least {MIN_GAP:g} apart")

    @property
    def num_inference_steps(self) -> int:
        """T, the number of denoising steps."""
        return len(self.sigmas) - 1

    def array(self) -> np.ndarray:
        """The sigmas as float64, shape (T + 1,)."""
        return np.asarray(self.sigmas, dtype=np.float64)

    @classmethod
    def from_sigmas(cls, sigmas: Sequence[float]) -> Grid:
        """A grid of the given sigmas (the final 0 included), its scheduler left open."""
        return cls(tuple(float(sigma) for sigma in sigmas))

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Grid:
        """The grid that a diffusers flow-matching scheduler holds after `set_timesteps`."""
        shift = scheduler.config.get("shift")
        sigmas = scheduler.sigmas
        if scheduler.config.get("invert_sigmas"):  # Mochi's counts them from the other end
            sigmas = 1 - sigmas
        return cls(
            sigmas=tuple(float(sigma) for sigma in sigmas.tolist()),
            scheduler=type(scheduler).__name__,
            shift=None if shift is None else float(shift),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grid:
        """Reads what `to_json` wrote. Raises ValueError where it contradicts itself."""
        sigmas = data.get("sigmas")
        if not isinstance(sigmas, list) or not all(is_number(sigma) for sigma in sigmas):
            raise ValueError("a grid's `sigmas` must be a list of numbers")
        scheduler, shift = data.get("scheduler"), data.get("shift")
        if not isinstance(scheduler, str | None) or not (shift is None or is_number(shift)):
            raise ValueError("a grid's `scheduler` is a name and its `shift` a number, or null")
        grid = cls(tuple(map(float, sigmas)), scheduler, shift)
        steps = data.get("num_inference_steps")
        if not is_whole_number(steps) or steps != grid.num_inference_steps:
            raise ValueError(
                f"a grid says num_inference_steps {shown(steps)} but lists "
                f"{grid.num_inference_steps} steps"
            )
        return grid

    def to_json(self) -> dict[str, Any]:
        """The `grid` object of the schedule format."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "sigmas": list(self.sigmas),
            "scheduler": self.scheduler,
            "shift": self.shift,
        }

    def matches(self, sigmas: Sequence[float]) -> bool:
        """Whether `sigmas` (the final 0 included) are these noise levels, to rounding."""
        return len(sigmas) == len(self.sigmas) and bool(
            np.allclose(self.sigmas, sigmas, rtol=0.0, atol=SIGMA_TOLERANCE)
        )

    def __str__(self) -> str:
        return describe(self.sigmas)


def describe(sigmas: Sequence[float]) -> str:
    """A grid in words, for error messages: '50 steps, sigma 1, 0.9971, ... 0.125, 0'."""
    levels = [f"{sigma:.4g}" for sigma in sigmas]
    if len(levels) > 5:
        levels = [*levels[:2], "...", *levels[-2:]]
    return f"{len(sigmas) - 1} steps, sigma {', '.join(levels)}"
