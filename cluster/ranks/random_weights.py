"""HunyuanVideo with random weights, whole or scaled down: speed does not depend on their values.

The classes, the graph and the pipeline's code are the real ones; tokenizers, scheduler and what is
not named here are the embedded model's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
import transformers

from cluster.models.cost_model import Transformer
from cluster.models.model import Model, find_model
from cluster.ranks.loading import load_pipeline
from cluster.ranks.memory import component_bytes
from cluster.ranks.split_call import Outline
from meancache import tiny

Sizes = Mapping[str, Mapping[str, Any]]

# The sizes of hunyuanvideo-community/HunyuanVideo.
FULL: Sizes = {
    "transformer": {
        **{"in_channels": 16, "out_channels": 16, "attention_head_dim": 128},
        **{"num_attention_heads": 24, "num_layers": 20, "num_single_layers": 40},
        **{"num_refiner_layers": 2, "rope_axes_dim": [16, 56, 56]},
        **{"text_embed_dim": 4096, "pooled_projection_dim": 768},
    },
    "vae": {
        **{"latent_channels": 16, "layers_per_block": 2, "norm_num_groups": 32},
        **{"block_out_channels": [128, 256, 512, 512], "scaling_factor": 0.476986},
    },
    "text_encoder": {
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        **{"vocab_size": 128320},
    },
    "text_encoder_2": {
        **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
        **{"num_attention_heads": 12, "vocab_size": 49408},
    },
}
# About a five-hundredth of it: a forward takes some tenths of a second on a core.
SCALED: Sizes = {
    "transformer": {
        **{"attention_head_dim": 128, "rope_axes_dim": [16, 56, 56], "num_layers": 2},
        **{"num_single_layers": 4, "text_embed_dim": 64, "pooled_projection_dim": 64},
    },
    "vae": {},
    "text_encoder": {},
    "text_encoder_2": {},
}


@dataclass(frozen=True)
class RandomModel(Model):
    """A `Model` whose weights are drawn where they are needed, and lie in no file.

    Attributes:
        sizes: by component, what differs from the embedded model's configuration.
    """

    sizes: Any = None

    @property
    def text_tokens(self) -> int:
        """That every forward has beside those of the video."""
        return int(self.defaults["max_sequence_length"])


@load_pipeline.register
def _(model: RandomModel, device: torch.device, without: Collection[str] = ()) -> Any:
    """The pipeline on `device`, with the same weights every time."""
    dtype = getattr(torch, model.dtype)

    def make(name: str, where: torch.device, build: Callable[[dict[str, Any]], Any]) -> Any:
        """A component, the same whichever others there are."""
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with where:
                return build(_config(name, model.sizes)).eval()
        finally:
            torch.set_default_dtype(before)

    def make_text(name: str, kind: Any) -> Any:
        if name.startswith(tuple(without)):
            return None
        return make(name, device, lambda config: kind(kind.config_class(**config)))

    outlined = "transformer" in without
    transformer = make(
        "transformer",
        torch.device("meta") if outlined else device,
        diffusers.HunyuanVideoTransformer3DModel.from_config,
    )
    tokenizers = [
        transformers.AutoTokenizer.from_pretrained(tiny.WEIGHTS / name)
        for name in ("tokenizer", "tokenizer_2")
    ]
    pipeline = diffusers.HunyuanVideoPipeline(
        text_encoder=make_text("text_encoder", transformers.LlamaModel),
        tokenizer=tokenizers[0],
        transformer=None if outlined else transformer,
        vae=make("vae", device, diffusers.AutoencoderKLHunyuanVideo.from_config),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(model.scheduler)),
        text_encoder_2=make_text("text_encoder_2", transformers.CLIPTextModel),
        tokenizer_2=tokenizers[1],
    )
    if outlined:
        pipeline.transformer = Outline(transformer, dtype)
    pipeline.vae.enable_tiling(**model.kind.tiling)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_model(sizes: Sizes, dtype: str) -> RandomModel:
    """A HunyuanVideo of these sizes.

    Args:
        sizes: FULL or SCALED.
        dtype: name of the torch dtype it runs in.
    """
    known = find_model("tiny", dtype=dtype)
    fields = {name: getattr(known, name) for name in Model.__dataclass_fields__}
    model = RandomModel(**fields, sizes=sizes)
    heads = sizes["transformer"].get("num_attention_heads", known.num_heads)
    texts = 256 if sizes is FULL else 16
    return replace(
        model,
        id="random",
        revision="",
        num_heads=heads,
        defaults={**known.defaults, "max_sequence_length": texts},
        transformer=Transformer.of(_config("transformer", sizes), texts),
    )


@component_bytes.register
def _(model: RandomModel) -> dict[str, int]:
    dtype = getattr(torch, model.dtype)
    width = torch.empty((), dtype=dtype).element_size()
    builds: dict[str, Callable[[dict[str, Any]], Any]] = {
        "transformer": diffusers.HunyuanVideoTransformer3DModel.from_config,
        "vae": diffusers.AutoencoderKLHunyuanVideo.from_config,
        "text_encoder": lambda config: transformers.LlamaModel(transformers.LlamaConfig(**config)),
        "text_encoder_2": lambda config: transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**config)
        ),
    }
    found = {}
    for name, build in builds.items():
        with torch.device("meta"):
            module = build(_config(name, model.sizes))
        found[name] = width * sum(weights.numel() for weights in module.parameters())
    return found


def _config(name: str, sizes: Sizes) -> dict[str, Any]:
    config = json.loads((tiny.WEIGHTS / name / "config.json").read_text())
    return {**config, **sizes[name]}
