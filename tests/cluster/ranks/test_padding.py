"""Texts without their padding: the same outputs, and no mask in attention."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from cluster.models.pipelines import PIPELINES
from cluster.ranks.padding import cut_padding
from meancache.hooks.pipelines import transformers_of
from tests.support import small_pipelines

# Of the 6 tokens that its call gives, 4 are real, and of a second text's, none.
REAL = 4
PADDED = {
    "HunyuanVideo": {"prompt_attention_mask": 6},
    "HunyuanVideo with true guidance": {
        "prompt_attention_mask": 6,
        "negative_prompt_attention_mask": 6,
    },
    "HunyuanVideo-1.5": {"prompt_embeds_mask": 6, "negative_prompt_embeds_mask": 6},
    "HunyuanVideo image to video, token replace": {"prompt_attention_mask": 6},
    "HunyuanVideo-1.5 image to video": {
        "prompt_embeds_mask": 6,
        "negative_prompt_embeds_mask": 6,
    },
    "LTX-Video": {"prompt_attention_mask": 6, "negative_prompt_attention_mask": 6},
    "LTX-Video image to video": {
        "prompt_attention_mask": 6,
        "negative_prompt_attention_mask": 6,
    },
    "Qwen-Image": {"prompt_embeds_mask": 6},
    "Qwen-Image with renormalised guidance": {"prompt_embeds_mask": 6},
}
SECOND = dict.fromkeys(
    ("HunyuanVideo-1.5", "HunyuanVideo-1.5 image to video"),
    ("prompt_embeds_mask_2", "negative_prompt_embeds_mask_2"),
)
# Pipelines that call the transformer of one that is tried, and in the same way.
ALIKE = {"QwenImageEditPipeline", "QwenImageEditPlusPipeline"}


def masks(name: str) -> dict[str, torch.Tensor]:
    known = small_pipelines.CASES[name].arguments
    found = {}
    for argument in PADDED[name]:
        found[argument] = known[argument].clone()
        found[argument][:, REAL:] = 0
    for argument in SECOND.get(name, ()):
        found[argument] = torch.zeros_like(known[argument])
    return found


class Attentions(TorchFunctionMode):
    """Notes the mask and the number of keys of each attention of some transformers."""

    def __init__(self, transformers) -> None:
        super().__init__()
        self.seen: list[tuple[bool, int]] = []
        self.inside = False
        for transformer in transformers:  # encoders of texts and pictures have masks of their own
            transformer.register_forward_pre_hook(lambda *_: self.enter(True))
            transformer.register_forward_hook(lambda *_: self.enter(False))

    def enter(self, inside: bool) -> None:
        self.inside = inside

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if self.inside and function is torch.nn.functional.scaled_dot_product_attention:
            mask = (kwargs or {}).get("attn_mask", args[3] if len(args) > 3 else None)
            self.seen.append((mask is not None, args[1].shape[-2] if len(args) > 1 else 0))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PADDED)
def test_a_text_without_its_padding_gives_the_same_and_attention_no_mask(name):
    small = small_pipelines.build(name)
    padded = small.draw(**masks(name))
    kind = PIPELINES[type(small.pipe).__name__]
    for transformer in transformers_of(small.pipe):
        cut_padding(transformer, kind.masked_texts)
    with Attentions(transformers_of(small.pipe)) as attentions:
        cut = small.draw(**masks(name))
    torch.testing.assert_close(cut, padded, atol=1e-5, rtol=1e-5)
    assert attentions.seen
    assert not any(masked for masked, _ in attentions.seen)


def test_texts_of_unequal_lengths_keep_their_mask_and_lose_the_padding_of_the_longest():
    small = small_pipelines.build("HunyuanVideo")
    known = small.case.arguments
    both = {
        name: torch.cat([known[name], known[name]])
        for name in ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
    }
    both["prompt_attention_mask"][0, 3:] = 0
    both["prompt_attention_mask"][1, 5:] = 0
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    padded = small.draw(**both, generator=seeds)
    (transformer,) = transformers_of(small.pipe)
    cut_padding(transformer, PIPELINES["HunyuanVideoPipeline"].masked_texts)
    lengths = []
    transformer.context_embedder.register_forward_pre_hook(
        lambda _, given: lengths.append(given[0].shape[1])
    )
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    cut = small.draw(**both, generator=seeds)
    torch.testing.assert_close(cut, padded, atol=1e-5, rtol=1e-5)
    assert set(lengths) == {5}


def test_a_mask_with_a_gap_is_kept():
    small = small_pipelines.build("Qwen-Image")
    mask = torch.tensor([[1, 1, 0, 1, 0, 0]])
    plain = small.draw(prompt_embeds_mask=mask)
    (transformer,) = transformers_of(small.pipe)
    cut_padding(transformer, PIPELINES["QwenImagePipeline"].masked_texts)
    torch.testing.assert_close(small.draw(prompt_embeds_mask=mask), plain, atol=1e-5, rtol=1e-5)


def test_every_pipeline_that_masks_its_padding_is_tried_here():
    tried = {type(small_pipelines.CASES[name].make()).__name__ for name in PADDED}
    assert tried | ALIKE == {name for name, kind in PIPELINES.items() if kind.masked_texts}
