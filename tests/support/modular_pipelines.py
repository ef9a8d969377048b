"""Modular pipelines of diffusers on small parts, by their class names.

Their blocks for texts and for decoding are left out, so embeddings go in and latents come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.support.own_pipelines import OWN, QWEN_MASKS, SIZE, TEXT, flux2_vae, small_flux
from tests.support.small_pipelines import (
    CASES,
    DYNAMIC,
    FLUX,
    Case,
    flux,
    hunyuan15_parts,
    ltx_parts,
    noise,
    qwen_image,
    scheduler,
    sd3,
    wan21,
    wan22,
    wan_transformer,
    z_image,
)

# Blocks that encode a text or decode latents.
OUTER = ("text_encoder", "decode", "prompt_enhancer", "prompt_upsample", "prompt_upsampler")


def modular(name: str, parts: Callable[[], dict[str, Any]]) -> Callable[[], Any]:
    """The class with its own blocks, but those in OUTER, on some of the parts."""

    def make() -> Any:
        cls = getattr(diffusers, name)
        blocks = getattr(diffusers, cls.default_blocks_name)()
        for block in OUTER:
            blocks.sub_blocks.pop(block, None)
        pipe = cls(blocks=blocks)
        expected = {spec.name for spec in blocks.expected_components}
        pipe.update_components(
            **{key: part for key, part in parts().items() if key in expected and part is not None}
        )
        return pipe

    return make


def of(classic: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """The parts of a classic pipeline."""
    return lambda: dict(classic().components)


def wide(wan: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """Wan's parts for as many channels as a modular pipeline without a VAE expects."""
    names = ("transformer", "transformer_2")
    transformers = {name: wan_transformer(in_channels=16, out_channels=16) for name in names}
    return lambda: {"scheduler": wan().scheduler, **transformers}


def flux2_parts() -> dict[str, Any]:
    transformer = small_flux(
        "Flux2Transformer2DModel", timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4)
    )
    return {"transformer": transformer(), "vae": flux2_vae(), "scheduler": scheduler(**DYNAMIC)}


def case(name: str, parts: Callable[[], dict[str, Any]], arguments: Any, calls: int = 1) -> Case:
    return Case(modular(name, parts), arguments, calls=calls, modular=True)


def chosen(arguments: Any, *left_out: str) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in left_out}


QWEN = {**SIZE, **TEXT, **QWEN_MASKS}
WAN = {**SIZE, **TEXT, "num_frames": 5}
LTX = chosen(CASES["LTX-Video"].arguments, "guidance_scale", "guidance_rescale")
HUNYUAN15 = CASES["HunyuanVideo-1.5"].arguments
KREA2 = {
    **SIZE,
    "prompt_embeds": noise(1, 6, 3, 16),
    "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.bool),
    "negative_prompt_embeds": noise(1, 6, 3, 16, seed=8),
    "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.bool),
}
ERNIE = {
    **SIZE,
    "prompt_embeds": [noise(6, 16)],
    "negative_prompt_embeds": [noise(5, 16, seed=8)],
}

MODULAR: dict[str, Case] = {
    "FluxModularPipeline": case("FluxModularPipeline", of(flux), FLUX),
    "FluxKontextModularPipeline": case("FluxKontextModularPipeline", of(flux), FLUX),
    "Flux2ModularPipeline": case(
        "Flux2ModularPipeline", flux2_parts, {**SIZE, "prompt_embeds": noise(1, 6, 16)}
    ),
    "Flux2KleinModularPipeline": case(
        "Flux2KleinModularPipeline", flux2_parts, {**SIZE, "prompt_embeds": noise(1, 6, 16)}
    ),
    "Flux2KleinBaseModularPipeline": case(
        "Flux2KleinBaseModularPipeline", flux2_parts, {**SIZE, **TEXT}, calls=2
    ),
    "QwenImageModularPipeline": case("QwenImageModularPipeline", of(qwen_image), QWEN, calls=2),
    "WanModularPipeline": case("WanModularPipeline", wide(wan21), WAN, calls=2),
    "Wan22ModularPipeline": case("Wan22ModularPipeline", wide(wan22), WAN, calls=2),
    "ZImageModularPipeline": case(
        "ZImageModularPipeline",
        of(z_image),
        {
            **SIZE,
            "prompt_embeds": [noise(6, 16)],
            "negative_prompt_embeds": [noise(5, 16, seed=8)],
        },
    ),
    "StableDiffusion3ModularPipeline": case(
        "StableDiffusion3ModularPipeline",
        of(sd3),
        chosen(CASES["SD3"].arguments, "guidance_scale"),
        calls=2,
    ),
    "LTXModularPipeline": case("LTXModularPipeline", ltx_parts, LTX, calls=2),
    "HunyuanVideo15ModularPipeline": case(
        "HunyuanVideo15ModularPipeline", hunyuan15_parts, HUNYUAN15, calls=2
    ),
    "Krea2ModularPipeline": case(
        "Krea2ModularPipeline", of(OWN["Krea2Pipeline"].make), KREA2, calls=2
    ),
    "Krea2TurboModularPipeline": case(
        "Krea2TurboModularPipeline",
        of(OWN["Krea2Pipeline"].make),
        chosen(KREA2, "negative_prompt_embeds", "negative_prompt_embeds_mask"),
    ),
    "ErnieImageModularPipeline": case(
        "ErnieImageModularPipeline", of(OWN["ErnieImagePipeline"].make), ERNIE, calls=2
    ),
}
