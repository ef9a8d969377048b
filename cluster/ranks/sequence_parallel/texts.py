"""Texts of any length in xDiT's Qwen-Image transformer.

Ranks share out the text's tokens as they do the image's. Where the number of ranks does not divide
them, xDiT fills up with zeros, and attention takes those for words. Here such a text stays whole:
every rank attends with all of its tokens, and hands on its own share of them.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

MODULE = "xfuser.model_executor.models.transformers.transformer_qwen"


def install() -> None:
    """Puts `Attention` between xDiT's Qwen-Image transformers and their attention, once."""
    module: Any = importlib.import_module(MODULE)
    if not isinstance(module.USP, Attention):
        attention = Attention(module.USP, module.get_sp_group())
        module.USP = attention
        # Where the rows of a text are counted for the last time before they are shared out.
        count = module.compute_text_seq_len_from_mask

        def counted(text: torch.Tensor, mask: Any) -> Any:
            attention.text_tokens = text.shape[1]
            return count(text, mask)

        module.compute_text_seq_len_from_mask = counted


class Attention:
    """xDiT's sequence-parallel attention over [text, image], for a text of any length.

    Attributes:
        text_tokens: of the forward that runs now, before they are shared out.

    Args:
        attention: xDiT's.
        group: the ranks that share the tokens.
    """

    def __init__(self, attention: Any, group: Any) -> None:
        self.attention = attention
        self.group = group
        self.text_tokens = 0

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """(B, heads, this rank's tokens, head size) of each, and of the result."""
        ranks, rank = self.group.world_size, self.group.rank_in_group
        missing = -self.text_tokens % ranks
        if not missing:
            return self.attention(query, key, value, **options)
        share = (self.text_tokens + missing) // ranks
        mine = torch.cat([one[:, :, :share] for one in (query, key, value)])
        texts = self.group.all_gather(mine, dim=2)[:, :, : self.text_tokens].chunk(3)
        query, key, value = (one[:, :, share:].contiguous() for one in (query, key, value))
        joint = dict(zip(("joint_query", "joint_key", "joint_value"), texts, strict=True))
        # In the order that xDiT's own transformers have them: it knows no other joint attention.
        result = self.attention(query, key, value, joint_strategy="front", **joint, **options)
        text, image = result[:, :, : self.text_tokens], result[:, :, self.text_tokens :]
        padded = torch.nn.functional.pad(text, (0, 0, 0, missing))
        return torch.cat([padded[:, :, rank * share : (rank + 1) * share], image], dim=2)
