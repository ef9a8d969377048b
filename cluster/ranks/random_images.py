"""FLUX.1 with random weights, whole or scaled down: speed does not depend on their values.

Transformer, VAE and the pipeline's code are the real ones. There are no text encoders: its texts
are random embeddings of the real shapes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from cluster.models.cost_model import Transformer
from cluster.models.model import Model
from cluster.models.pipelines import PIPELINES
from cluster.ranks.loading import load_pipeline
from cluster.ranks.split_call import pack

Config = Mapping[str, Any]

# The sizes of black-forest-labs/FLUX.1-dev.
FULL: Config = {
    **{"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24},
    **{"joint_attention_dim": 4096, "pooled_projection_dim": 768},
}
# About a thousandth of it.
SCALED: Config = {
    **{"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 4},
    **{"joint_attention_dim": 64, "pooled_projection_dim": 64},
}
_BOTH: Config = {
    **{"patch_size": 1, "in_channels": 64, "attention_head_dim": 128, "guidance_embeds": True},
    "axes_dims_rope": (16, 56, 56),
}
_VAE: Config = {
    **{"latent_channels": 16, "norm_num_groups": 32, "sample_size": 1024, "layers_per_block": 2},
    **{"scaling_factor": 0.3611, "shift_factor": 0.1159},
    **{"use_quant_conv": False, "use_post_quant_conv": False},
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_CHANNELS = {True: (128, 256, 512, 512), False: (32, 32, 64, 64)}
_SCHEDULER: Config = {
    **{"shift": 3.0, "use_dynamic_shifting": True, "num_train_timesteps": 1000},
    **{"base_shift": 0.5, "max_shift": 1.15},
    **{"base_image_seq_len": 256, "max_image_seq_len": 4096},
}


@dataclass(frozen=True)
class RandomFlux(Model):
    """A `Model` whose weights are drawn where they are needed, and lie in no file.

    Attributes:
        sizes: of the transformer.
        whole: the VAE is of the real size.
    """

    sizes: Any = None
    whole: bool = False

    def texts(self, seed: int) -> bytes:
        """The texts of a call, as `Renderer.encode_prompt` has them."""
        length, dtype = self.defaults["max_sequence_length"], getattr(torch, self.dtype)
        noise = torch.Generator().manual_seed(seed)

        def embeddings(*shape: int) -> torch.Tensor:
            return torch.randn(1, *shape, generator=noise).to(dtype)

        words = embeddings(length, self.sizes["joint_attention_dim"])
        pooled = embeddings(self.sizes["pooled_projection_dim"])
        return pack({"encode_prompt": [(words, pooled, torch.zeros(length, 3, dtype=dtype))]})


def random_flux(whole: bool, side: int, dtype: str) -> RandomFlux:
    """A FLUX.1 of square images.

    Args:
        whole: of the real size; else scaled down.
        side: of an image, in pixels.
        dtype: name of the torch dtype it runs in.
    """
    sizes = FULL if whole else SCALED
    length = 512 if whole else 64
    kind = PIPELINES["FluxPipeline"]
    own = {"height": side, "width": side, "max_sequence_length": length}
    return RandomFlux(
        id="random",
        source="",
        revision="",
        pipeline="FluxPipeline",
        dtype=dtype,
        fps=0.0,
        defaults={**kind.arguments, **own},
        num_heads=sizes["num_attention_heads"],
        patch=(1, 16),
        temporal_compression=1,
        tile=None,
        scheduler=_SCHEDULER,
        transformer=Transformer.of({**_BOTH, **sizes}, length),
        sizes=sizes,
        whole=whole,
    )


@load_pipeline.register
def _(model: RandomFlux, device: torch.device, without: Collection[str] = ()) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, model.dtype))
    torch.manual_seed(0)
    try:
        with device:
            transformer = diffusers.FluxTransformer2DModel(**_BOTH, **model.sizes).eval()
            channels = _CHANNELS[model.whole]
            vae = diffusers.AutoencoderKL(**_VAE, block_out_channels=channels).eval()
    finally:
        torch.set_default_dtype(before)
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(model.scheduler)),
        vae=vae,
        transformer=transformer,
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
