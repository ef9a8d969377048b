"""What a diffusers transformer returns and is given, whatever its form.

A tensor, a tuple, lists of samples, an object with `.sample` or with a field a modality: every
floating-point tensor in an output is a prediction.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

# The only walk over nested outputs that knows diffusers' output classes: they register there.
from torch.utils import _pytree as pytree


def velocities_of(output: Any) -> list[torch.Tensor]:
    """All predictions in a transformer's output, in a fixed order.

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
    """The first, and mostly the only, prediction in a transformer's output."""
    return velocities_of(output)[0]


def with_velocities(output: Any, velocities: Sequence[torch.Tensor]) -> Any:
    """An output of the same form as `output` that carries `velocities` instead."""
    following = iter(velocities)
    return pytree.tree_map(lambda leaf: next(following) if _is_velocity(leaf) else leaf, output)


def signature(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """Tells calls apart by the form of all of their inputs: calls that are alike here return the
    same form.

    Nesting, number, shapes and dtypes of all tensors count, and switches and names; numbers, such
    as a timestep, do not.
    """
    leaves, tree = pytree.tree_flatten((args, dict(kwargs)))
    return str(tree), tuple(_described(leaf) for leaf in leaves)


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype
    if leaf is None or isinstance(leaf, bool | str):
        return leaf
    return type(leaf).__qualname__


def _is_velocity(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
