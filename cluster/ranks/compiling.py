"""Compiles the blocks of a transformer that repeat; all else stays eager, a schedule's hook too.

Blocks of one class share what is compiled. The length of a text is dynamic in it, so that prompts
of other lengths compile nothing anew; another size of the video does.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

# Where compiled kernels are kept for the next job on this node. torch's own default is a folder
# that any user of the machine could have made first.
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
CACHE = Path.home() / ".cache" / "meancache" / "inductor"
TEXT = "encoder_hidden_states"


def compile_blocks(transformer: Any) -> None:
    """Compiles a transformer's blocks by the first forward, in place.

    Args:
        transformer: of diffusers or xDiT, which names its blocks that repeat.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # with the compiler

    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):  # torch sets it at import
        os.environ[CACHE_VARIABLE] = str(CACHE)
    named = set(transformer._repeated_blocks)
    counts = Counter(type(module).__name__ for module in transformer.modules())
    for block in transformer.modules():
        # A module that is there once is no repeated block, and compiling it takes as long.
        if type(block).__name__ in named and counts[type(block).__name__] > 1:
            block.register_forward_pre_hook(_alike, with_kwargs=True)
            block.forward = torch.compile(block.forward)


def _alike(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """A forward pre-hook of a block: makes the arguments of all calls look alike to the compiler.

    Tells it which axes are as long as the text, and gives every tensor the strides of its size: the
    first block's come from a convolution, and slices of [video, text] have the strides of the whole
    even where a batch of one lies in one piece.
    """
    text = named.get(TEXT, given[1] if len(given) > 1 else None)
    tokens = text.shape[1] if isinstance(text, torch.Tensor) else None

    def alike(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        if tensor.ndim > 1 and tensor.shape[0] == 1:
            tensor = tensor[0].unsqueeze(0)
        for axis, size in enumerate(tensor.shape):
            if size == tokens:
                torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return tensor

    return pytree.tree_map_only(torch.Tensor, alike, (given, named))
