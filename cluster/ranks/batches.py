"""What goes into a batch and comes out of it: texts of several items as one, latents one by one.

Each item is encoded and decoded by itself. Only the transformer sees several at once, so nothing
but the rounding of its sums can differ from an item that is rendered alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cluster.ranks.split_call import pack, unpack

_CPU = torch.device("cpu")


def form_of(texts: bytes) -> str:
    """What texts must have in common to be joined: how they are nested, and all shapes."""
    leaves, tree = pytree.tree_flatten(unpack(texts, _CPU))
    shapes = [
        (tuple(one.shape), str(one.dtype)) if isinstance(one, torch.Tensor) else repr(one)
        for one in leaves
    ]
    return f"{tree} {shapes}"


def joined(texts: Sequence[bytes]) -> bytes:
    """The texts of several items, of one form, as those of one call of the pipeline."""
    several = [unpack(one, _CPU) for one in texts]
    called = {name: zip(*(one[name] for one in several), strict=True) for name in several[0]}
    return pack({name: [_together(each) for each in answers] for name, answers in called.items()})


def split(latents: bytes, count: int) -> list[bytes]:
    """The calls of the VAE that decode each item of a batch, by the call that decodes all."""
    called = unpack(latents, _CPU)

    def of(place: int) -> Any:
        def own(tensor: torch.Tensor) -> torch.Tensor:
            # A copy: to pickle a view is to pickle all of its memory.
            is_batch = tensor.ndim > 0 and len(tensor) == count
            return tensor[place : place + 1].clone() if is_batch else tensor

        return pytree.tree_map_only(torch.Tensor, own, called)

    return [pack(of(place)) for place in range(count)]


def _together(answers: Sequence[Any]) -> Any:
    """What an encoder would answer to all of the prompts at once.

    Raises:
        ValueError: an answer has a part for which it is not known.
    """
    first = answers[0]
    if isinstance(first, list):
        return [one for answer in answers for one in answer]
    if isinstance(first, tuple):
        return tuple(_together(parts) for parts in zip(*answers, strict=True))
    if isinstance(first, torch.Tensor):
        if first.ndim and len(first) == 1:  # a batch of one
            return torch.cat(list(answers))
        # What belongs to no prompt, as the places of text tokens in FLUX.1.
        if all(torch.equal(first, other) for other in answers):
            return first
    elif all(first == other for other in answers):
        return first
    raise ValueError(f"texts of several prompts cannot be joined: {type(first).__name__} of each")
