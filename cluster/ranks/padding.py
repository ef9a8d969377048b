"""Texts without their padding, so that attention needs no mask.

Pipelines pad texts to a fixed length and mask what they added. A mask costs attention half as much
again on an H100, for tokens that change nothing: here texts are cut to their real tokens before
the transformer sees them. Texts of several prompts are cut to the longest; where all are equally
long there is no mask either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15AttnProcessor2_0,
)
from torch.utils.weak import WeakTensorKeyDictionary

# Embeddings of a picture, which a text-to-video call of HunyuanVideo-1.5 gives as zeros to mask.
NO_PICTURE = "image_embeds"


def cut_padding(transformer: torch.nn.Module, texts: Mapping[str, str]) -> None:
    """Lets a transformer take padded texts and compute with their real tokens alone, in place.

    Outputs are the same up to the rounding of sums.

    Args:
        transformer: of diffusers or xDiT.
        texts: name of the forward's argument with embeddings, (B, N, d) -> name of that with their
            mask, (B, N): 1 for real tokens, which come first.
    """
    padding = _Padding(texts, needs_masks=hasattr(transformer, "context_embedder"))
    transformer.register_forward_pre_hook(padding.cut, with_kwargs=True)
    for name, module in transformer.named_modules():
        processor = _UNMASKED.get(type(getattr(module, "processor", None)))
        if name == "context_embedder":
            module.register_forward_pre_hook(padding.unmask, with_kwargs=True)
        elif processor is not None:
            module.processor = processor(padding)


class _Padding:
    """What one transformer's forwards do with the masks of their texts.

    Attributes:
        masked: texts of the forward that runs now differ in length, and attention needs the mask.

    Args:
        texts: as `cut_padding` has them.
        needs_masks: the forward computes with the masks itself, and cannot be given None.
    """

    def __init__(self, texts: Mapping[str, str], needs_masks: bool) -> None:
        self.masked = False
        self._texts = texts
        self._needs_masks = needs_masks
        # To look at a mask is to wait for the GPU, and all steps of a run have the same.
        self._lengths: Any = WeakTensorKeyDictionary()

    def cut(self, module: torch.nn.Module, given: Any, named: dict[str, Any]) -> Any:
        """A forward pre-hook of the transformer: cuts its texts."""
        masks = {text: named.get(mask) for text, mask in self._texts.items()}
        known = {text: mask for text, mask in masks.items() if mask is not None}
        lengths = {text: self._length(mask) for text, mask in known.items()}
        self.masked = any(shortest < longest for shortest, longest in lengths.values())
        changed = dict(named)
        for text, (_, longest) in lengths.items():
            changed[text] = named[text][:, :longest]
            mask = known[text][:, :longest]
            keeps = self._needs_masks or self.masked
            changed[self._texts[text]] = mask if keeps else None
        picture = named.get(NO_PICTURE)
        if picture is not None and not self.masked and self._length(picture)[1] == 0:
            changed[NO_PICTURE] = picture[:, :0]
        return given, changed

    def unmask(self, module: torch.nn.Module, given: Any, named: dict[str, Any]) -> Any:
        """A forward pre-hook of HunyuanVideo's text embedder (x, timestep, mask): takes the mask
        away where it hides nothing."""
        return (given[:2], {}) if not self.masked and len(given) == 3 else (given, named)

    def _length(self, mask: torch.Tensor) -> tuple[int, int]:
        """(fewest, most) real tokens of a prompt; (0, 0) for embeddings of zeros."""
        if mask not in self._lengths:
            real = mask.flatten(2).any(dim=2) if mask.ndim > 2 else mask.bool()
            counts = real.sum(dim=1).tolist()
            places = torch.arange(1, real.shape[1] + 1, device=real.device)
            if int((real * places).max()) > max(counts):  # not all at the beginning
                counts = [*counts, int((real * places).max())]
            self._lengths[mask] = min(counts), max(counts)
        found: tuple[int, int] = self._lengths[mask]
        return found


class _Unmasked(HunyuanVideoAttnProcessor2_0):
    """Attention of HunyuanVideo's blocks; their mask counts only where it hides something."""

    def __init__(self, padding: _Padding) -> None:
        super().__init__()
        self._padding = padding

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        mask = attention_mask if self._padding.masked else None
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)


class _Unmasked15(HunyuanVideo15AttnProcessor2_0):
    """The same of HunyuanVideo-1.5, whose own processor cannot do without a mask."""

    def __init__(self, padding: _Padding) -> None:
        super().__init__()
        self._padding = padding

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        if self._padding.masked or encoder_hidden_states is None:
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        tokens = hidden_states.shape[1]
        joint = []
        for video, text, norms in (
            (attn.to_q, attn.add_q_proj, (attn.norm_q, attn.norm_added_q)),
            (attn.to_k, attn.add_k_proj, (attn.norm_k, attn.norm_added_k)),
            (attn.to_v, attn.add_v_proj, (None, None)),
        ):
            own = video(hidden_states).unflatten(2, (attn.heads, -1))
            theirs = text(encoder_hidden_states).unflatten(2, (attn.heads, -1))
            if norms[0] is not None:
                own = norms[0](own)
                if image_rotary_emb is not None:
                    own = apply_rotary_emb(own, image_rotary_emb, sequence_dim=1)
            if norms[1] is not None:
                theirs = norms[1](theirs)
            joint.append(torch.cat([own, theirs], dim=1))
        attended = dispatch_attention_fn(
            *joint, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        attended = attended.flatten(2, 3).to(joint[0].dtype)
        hidden = attn.to_out[1](attn.to_out[0](attended[:, :tokens]))
        return hidden, attn.to_add_out(attended[:, tokens:])


_UNMASKED: Mapping[Any, Any] = {
    HunyuanVideoAttnProcessor2_0: _Unmasked,
    HunyuanVideo15AttnProcessor2_0: _Unmasked15,
}
