"""What a diffusers transformer returns and is given, whatever its form.

A tensor, a tuple, lists of samples, an object with `.sample` or with a field a modality: every
floating-point tensor in an output is a prediction.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

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


@dataclass(frozen=True)
class Form:
    """The form of a call: calls of one form return outputs of one form.

    Attributes:
        tree: how its arguments are nested.
        leaves: shapes and dtypes of all tensors, switches and names; of numbers, such as a
            timestep, the type alone.
        samples: the length of the latents' batch, the call's first argument; None where it has
            none.
    """

    tree: str
    leaves: tuple[Hashable, ...]
    samples: int | None


def form_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Form:
    """Tells calls apart by all of their inputs."""
    leaves, tree = pytree.tree_flatten((args, dict(kwargs)))
    latents = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    several = isinstance(latents, list) or (isinstance(latents, torch.Tensor) and latents.ndim > 0)
    samples = len(latents) if several else None
    return Form(str(tree), tuple(_described(leaf) for leaf in leaves), samples)


def of_samples(output: Any, was: int, now: int) -> Any:
    """An output for `was` samples as one for `now`: the first of them, or all again and again."""
    if isinstance(output, torch.Tensor):
        return output[_indices(was, now)] if output.ndim and len(output) == was else output
    if isinstance(output, list):
        return [output[n] for n in _indices(was, now)] if len(output) == was else output
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return tuple(of_samples(one, was, now) for one in output)
    if isinstance(output, BaseOutput):
        return type(output)(**{key: of_samples(one, was, now) for key, one in output.items()})
    return output


def _indices(was: int, now: int) -> list[int]:
    return [n % was for n in range(now)]


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype
    if leaf is None or isinstance(leaf, bool | str):
        return leaf
    return type(leaf).__qualname__


def _is_velocity(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
