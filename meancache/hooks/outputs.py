"""What a diffusers transformer returns, and how to return something else in the same form.

A tensor, a tuple, lists of samples, an object with `.sample` or with a field a modality: every
floating-point tensor in it is a predicted velocity, or its negative, and estimators are linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# The only walk over nested outputs that knows diffusers' output classes: they register there.
from torch.utils import _pytree as pytree


def velocities_of(output: Any) -> list[torch.Tensor]:
    """All predicted velocities in a transformer's output, in a fixed order.

    Raises:
        TypeError: there is no tensor in it.
    """
    found = [leaf for leaf in pytree.tree_leaves(output) if _is_velocity(leaf)]
    if not found:
        raise TypeError(
            f"the transformer returned a {type(output).__name__} without a tensor; return the "
            "velocity as a tensor, a tuple or a diffusers output"
        )
    return found


def velocity_of(output: Any) -> torch.Tensor:
    """The first, and mostly the only, predicted velocity in a transformer's output."""
    return velocities_of(output)[0]


def with_velocities(output: Any, velocities: Sequence[torch.Tensor]) -> Any:
    """An output of the same form as `output` that carries `velocities` instead."""
    following = iter(velocities)
    return pytree.tree_map(lambda leaf: next(following) if _is_velocity(leaf) else leaf, output)


def _is_velocity(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
