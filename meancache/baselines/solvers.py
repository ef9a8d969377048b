"""Fewer steps: plain Euler, and the multistep solvers of diffusers on the same noise levels.

diffusers' solvers lay their own flow grids: UniPC truncates timesteps to integers, DPM-Solver++
takes no sigmas at all (the pipelines insist on giving them) and starts at 0.999. Here each gets
the noise levels and timesteps of the pipeline's own Euler scheduler, so that curves differ by
the solver alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from meancache.baselines.baseline import Baseline, BaselineError

SOURCE = f"diffusers {diffusers.__version__}"
STEPS = (25, 20, 15, 12, 10, 8, 6, 5)
# Both solvers work in log(1 - sigma), which sigma = 1 does not have. The margin is UniPC's own.
_BELOW_ONE = 1.0 - 1e-6


class _EulerGrid:
    """Gives a multistep scheduler the noise levels that an Euler scheduler would use."""

    _euler: FlowMatchEulerDiscreteScheduler

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | np.ndarray | None = None,
        mu: float | None = None,
    ) -> None:
        """Sets the grid as FlowMatchEulerDiscreteScheduler does for the same arguments."""
        euler = self._euler
        euler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
        # First its own way, for all the state that a new run resets.
        super().set_timesteps(len(euler.timesteps), device=device)  # type: ignore[misc]
        self.sigmas = euler.sigmas.cpu().clamp(max=_BELOW_ONE)
        self.timesteps = euler.timesteps


class FlowUniPC(_EulerGrid, UniPCMultistepScheduler):
    """UniPC (2302.04867) for flow matching on the Euler scheduler's grid."""


class FlowDPMSolver(_EulerGrid, DPMSolverMultistepScheduler):
    """DPM-Solver++ (2211.01095) for flow matching on the Euler scheduler's grid."""


def solvers() -> list[Baseline]:
    """Euler, UniPC and DPM-Solver++ with `STEPS` steps each; one forward a step."""
    return [
        Baseline(method, f"{steps} steps", SOURCE, partial(application, steps))
        for method, application in (
            ("euler", _euler),
            ("unipc", partial(_multistep, FlowUniPC)),
            ("dpm-solver++", partial(_multistep, FlowDPMSolver)),
        )
        for steps in STEPS
    ]


def multistep_like(
    solver: type[FlowUniPC] | type[FlowDPMSolver], euler: Any
) -> FlowUniPC | FlowDPMSolver:
    """A multistep scheduler, second order, on the grids of the given Euler scheduler.

    Raises:
        BaselineError: the scheduler is not an Euler scheduler of flow matching.
    """
    if not isinstance(euler, FlowMatchEulerDiscreteScheduler):
        raise BaselineError(
            f"the pipeline's scheduler is a {type(euler).__name__}; solvers are compared on the "
            "grid of a FlowMatchEulerDiscreteScheduler: give the pipeline one"
        )
    scheduler = solver(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=euler.shift,
        solver_order=2,
        num_train_timesteps=euler.config.num_train_timesteps,
    )
    scheduler._euler = copy.deepcopy(euler)
    return scheduler


@contextmanager
def _euler(steps: int, pipeline: Any) -> Iterator[dict[str, Any]]:
    yield {"num_inference_steps": steps}


@contextmanager
def _multistep(
    solver: type[FlowUniPC] | type[FlowDPMSolver], steps: int, pipeline: Any
) -> Iterator[dict[str, Any]]:
    before = pipeline.scheduler
    pipeline.scheduler = multistep_like(solver, before)
    try:
        yield {"num_inference_steps": steps}
    finally:
        pipeline.scheduler = before
