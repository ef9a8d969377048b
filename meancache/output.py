"""What a diffusers transformer returns, and how to return something else in the same form."""

from __future__ import annotations

from typing import Any

import torch


def velocity_of(output: Any) -> torch.Tensor:
    """The predicted velocity in a transformer's output: `(sample,)` or an object with `.sample`."""
    return output[0] if isinstance(output, tuple) else output.sample


def with_velocity(output: Any, velocity: torch.Tensor) -> Any:
    """An output of the same form as `output` that carries `velocity` instead."""
    if isinstance(output, tuple):
        return (velocity, *output[1:])
    return type(output)(sample=velocity)
