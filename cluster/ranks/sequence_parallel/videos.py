"""Videos of any number of tokens in xDiT's HunyuanVideo transformer.

It can only share out tokens that the number of ranks divides, and of 848x480, 129 frames, four
ranks cannot. Here such a video gets columns (or rows) of zeros at its edge until they can: those
are drawn too and cut off again, and no token attends to them, so that the video is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import pad

Size = tuple[int, int, int]
"""(frames, rows, columns) of a video, in tokens."""


def install(transformer: Any, ranks: int) -> None:
    """Lets a transformer take videos of any size, in place; xDiT's runtime is initialised.

    Args:
        transformer: xDiT's HunyuanVideo one.
        ranks: that share out its tokens.
    """
    from xfuser.core.distributed import get_runtime_state
    from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY as FUNCTIONS

    # What a rank calls when all have exchanged heads, for all tokens.
    backend = get_runtime_state().attention_backend
    if not isinstance(FUNCTIONS[backend], Attention):
        FUNCTIONS[backend] = Attention(FUNCTIONS[backend], ranks)
    attention = FUNCTIONS[backend]
    forward, config = transformer.forward, transformer.config

    def padded(hidden_states: torch.Tensor, *given: Any, **named: Any) -> Any:
        frames, height, width = hidden_states.shape[2:]
        patch = config.patch_size
        size = (frames // config.patch_size_t, height // patch, width // patch)
        rows, columns = edge = missing(size, ranks)
        if edge == (0, 0):
            return forward(hidden_states, *given, **named)
        with attention.hiding(size, edge):
            larger = pad(hidden_states, (0, columns * patch, 0, rows * patch))
            result = forward(larger, *given, **named)
        sample = result[0][..., :height, :width]
        return (sample,) if isinstance(result, tuple) else type(result)(sample=sample)

    # It always runs the forward that it replaces (`meancache.hooks.pipelines` asks).
    padded.computes_always = True  # type: ignore[attr-defined]
    transformer.forward = padded


def missing(size: Size, ranks: int) -> tuple[int, int]:
    """How many rows, or columns, a video lacks for ranks to share out its tokens: the fewest
    tokens; (0, 0) where nothing is missing."""
    frames, rows, columns = size
    if frames * rows * columns % ranks == 0:
        return 0, 0
    lacks_rows = -rows % (ranks // math.gcd(ranks, frames * columns))
    lacks_columns = -columns % (ranks // math.gcd(ranks, frames * rows))
    by_rows = lacks_rows * columns < lacks_columns * rows
    return (lacks_rows, 0) if by_rows else (0, lacks_columns)


class Attention:
    """One rank's attention, in which nothing attends to the edge of a video.

    Args:
        attention: (query, key, value, **options) -> (result, log-sum-exp), of (B, heads, tokens,
            head size); all ranks' tokens, some of the heads.
        ranks: whose shares of the tokens lie one behind the other.
    """

    def __init__(self, attention: Callable[..., Any], ranks: int) -> None:
        self._attention = attention
        self._ranks = ranks
        self._hidden: tuple[Size, tuple[int, int]] | None = None

    @contextmanager
    def hiding(self, size: Size, edge: tuple[int, int]) -> Iterator[None]:
        """Within it, videos are of this size, beside (rows, columns) of an edge to hide."""
        self._hidden = size, edge
        try:
            yield
        finally:
            self._hidden = None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
    ) -> Any:
        """As the attention that it stands for."""
        if self._hidden is not None:
            shown = self._shown(key.shape[2], key.device)
            key, value = key.index_select(2, shown), value.index_select(2, shown)
        return self._attention(query, key, value, **options)

    @torch.compiler.disable  # looked up, where blocks are compiled too
    def _shown(self, tokens: int, device: torch.device) -> torch.Tensor:
        """The indices of a sequence's tokens that may be attended to."""
        from xfuser.core.distributed import get_runtime_state

        assert self._hidden is not None
        # Where ranks cannot share out the text, it lies behind the video in one piece.
        shares = self._ranks if get_runtime_state().split_text_embed_in_sp else 1
        return shown_tokens(*self._hidden, tokens, shares, device)


@lru_cache(maxsize=16)
def shown_tokens(
    size: Size, edge: tuple[int, int], tokens: int, shares: int, device: torch.device
) -> torch.Tensor:
    """Which tokens of a sequence are words or part of the video: int64 indices.

    Args:
        size: of the video.
        edge: (rows, columns) that were added to it.
        tokens: of the whole sequence: edge and text as well.
        shares: into how many pieces it was cut: [video, text] each, one behind the other.
        device: where the indices are needed.
    """
    video = pad(torch.ones(size, dtype=torch.bool), (0, edge[1], 0, edge[0])).reshape(shares, -1)
    text = torch.ones(shares, tokens // shares - video.shape[1], dtype=torch.bool)
    return torch.cat([video, text], dim=1).flatten().nonzero().flatten().to(device)
