"""Records the velocities of a full (reference) run, through a hook on the transformer.

A reference trajectory is the transformer's output at every step of an unmodified run. Nothing
else is kept: every statistic of `stability` follows from velocities alone, and differencing
bf16 latents instead would cost 2-15% in the estimates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from meancache.output import velocity_of

HOOK_NAME = "mean_cache_record"


@dataclass
class Trajectory:
    """The outputs of a transformer in the order of its calls, float32, on its own device."""

    outputs: list[torch.Tensor] = field(default_factory=list)

    def velocities(self, num_inference_steps: int) -> torch.Tensor:
        """The reference velocities V = [v_0, ..., v_{T-1}].

        Args:
            num_inference_steps: T, the steps the run was asked for.

        Returns:
            (T, D) float32, D the number of elements of one latent.

        Raises:
            ValueError: see `check_calls`.
        """
        self.check_calls(num_inference_steps)
        return torch.stack([output.flatten() for output in self.outputs])

    def check_calls(self, num_inference_steps: int) -> None:
        """Refuses a recording that has not one velocity a step.

        Raises:
            ValueError: the run called the transformer another number of times than once a step,
                as guidance in two forwards (cond, uncond) does.
        """
        if len(self.outputs) != num_inference_steps:
            raise ValueError(
                f"the run called the transformer {len(self.outputs)} times in "
                f"{num_inference_steps} steps; a reference trajectory needs one call a step "
                "(a guidance-distilled model, or true_cfg_scale 1)"
            )


class _RecordHook(ModelHook):
    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__()
        self.trajectory = trajectory

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        velocity = velocity_of(output).detach()
        # A copy even where the dtype is float32 already: schedulers may work in place.
        self.trajectory.outputs.append(velocity.to(torch.float32, copy=True))
        return output


@contextmanager
def record_trajectory(transformer: torch.nn.Module) -> Iterator[Trajectory]:
    """Records every output of `transformer` while the context is open.

    >>> with record_trajectory(pipe.transformer) as trajectory:
    ...     pipe(prompt, num_inference_steps=50)
    >>> velocities = trajectory.velocities(50)

    The run itself is not changed, and the hook is gone afterwards, also after an exception.
    """
    trajectory = Trajectory()
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.register_hook(_RecordHook(trajectory), HOOK_NAME)
    try:
        yield trajectory
    finally:
        registry.remove_hook(HOOK_NAME, recurse=False)
