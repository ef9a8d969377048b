"""What pipelines' configuration files say, and what follows from the arguments of their calls.

Small functions that the table of `pipelines` names: sizes of latents, tokens and outputs, and
forwards of a step. Reads configurations, never weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cluster.models.kinds import Config, Size
from meancache.json_values import is_number

# (width, height), as diffusers' own list of them has it.
KONTEXT_SIZES = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248)),
    *((880, 1184), (944, 1104), (1024, 1024), (1104, 944), (1184, 880), (1248, 832)),
    *((1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672)),
)


def with_a_negative_prompt(arguments: Config) -> int:
    scale, negative = arguments.get("true_cfg_scale"), arguments.get("negative_prompt")
    return 2 if negative is not None and above_one(scale) else 1


def above_one_of_guidance(arguments: Config) -> int:
    return 2 if above_one(arguments.get("guidance_scale")) else 1


def other_than_one_of_guidance(arguments: Config) -> int:
    return 1 if arguments.get("guidance_scale") == 1 else 2


def above_one(scale: Any) -> bool:
    return is_number(scale) and scale > 1


def named_ratios(vae: Config) -> tuple[int, int]:
    return vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]


def expansions(vae: Config) -> tuple[int, int]:
    return math.prod(vae["temporal_expansions"]), math.prod(vae["spatial_expansions"])


def image_blocks(vae: Config) -> tuple[int, int]:
    return 1, 2 ** (len(vae["block_out_channels"]) - 1)


def qwen_image_blocks(vae: Config) -> tuple[int, int]:
    return 1, 2 ** len(vae["temperal_downsample"])  # the key's own spelling


def wan_factors(vae: Config) -> tuple[int, int]:
    # Wan 2.1 checkpoints are older than the keys, whose defaults are theirs.
    return vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)


def ltx_ratios(vae: Config) -> tuple[int, int]:
    halved = 2 ** sum(vae["spatio_temporal_scaling"])
    temporal, spatial = (vae.get(f"{axis}_compression_ratio") for axis in ("temporal", "spatial"))
    return temporal or vae["patch_size_t"] * halved, spatial or vae["patch_size"] * halved


def cogview4_mu(scheduler: Config, tokens: int, steps: int) -> float:
    """How far CogView4 shifts its noise levels."""
    larger = math.sqrt(tokens / scheduler.get("base_image_seq_len", 256))
    return float(larger * scheduler.get("max_shift", 0.75) + scheduler.get("base_shift", 0.25))


def flux_2_mu(scheduler: Config, tokens: int, steps: int) -> float:
    """How far FLUX.2 shifts its noise levels: fitted by its authors, as diffusers has it."""
    large = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return large
    ten = 8.73809524e-05 * tokens + 1.89833333
    slope = (large - ten) / 190.0
    return slope * steps + (large - 200.0 * slope)


def patch_sizes(transformer: Config) -> tuple[int, int]:
    return transformer["patch_size_t"], transformer["patch_size"]


def one_frame(transformer: Config) -> tuple[int, int]:
    return 1, transformer["patch_size"]


def two_by_two(transformer: Config) -> tuple[int, int]:
    return 1, 2


def time_and_side(transformer: Config) -> tuple[int, int]:
    return tuple(transformer["patch_size"][:2])


def samples(transformer: Config, pixels: int) -> tuple[int, int]:
    return transformer["sample_size"] * pixels, transformer["sample_size"] * pixels


def of_128_latents(transformer: Config, pixels: int) -> tuple[int, int]:
    return 128 * pixels, 128 * pixels


def sample_size(vae: Config) -> tuple[int, int]:
    return 1, vae.get("sample_size", 32)


def hunyuan_video_15_size(transformer: Config, pixels: int, image: Size = (9, 16)) -> Size:
    """The size of the image's shape whose pixels are about target_size squared, as the pipeline's
    call has it: along the sizes of at most that many patches, the first that is closest and not
    narrower, of an upright image not wider."""
    patches = round((transformer["target_size"] / pixels) ** 2)
    height, width = image
    aspect, upright = height / width, height >= width
    rows, columns = patches, 1
    best, furthest = (0, 0), math.inf
    while rows > 0:
        surplus = round(rows / columns, 5) - aspect
        surplus = -surplus if upright else surplus
        if max(rows, columns) <= 4 * min(rows, columns) and 0 <= surplus < furthest:
            best, furthest = (rows, columns), surplus
        if (columns + 1) * rows <= patches:
            columns += 1
        else:
            rows -= 1
    if best == (0, 0):
        raise ValueError(
            f"target_size {transformer['target_size']} has no size for an image of {width}x{height}"
        )
    return best[0] * pixels, best[1] * pixels


def kontext_size(transformer: Config, pixels: int, image: Size) -> Size:
    """The size that FLUX.1 Kontext was trained on whose shape is the closest to the image's."""
    aspect = image[1] / image[0]
    _, width, height = min((abs(aspect - w / h), w, h) for w, h in KONTEXT_SIZES)
    return height, width


def of_a_megapixel(transformer: Config, pixels: int, image: Size) -> Size:
    """The size of the image's shape and about 1024 x 1024 pixels, as Qwen-Image-Edit has it."""
    ratio = image[1] / image[0]
    width = math.sqrt(1024 * 1024 * ratio)
    return max(1, round(width / ratio / 32)) * 32, max(1, round(width / 32)) * 32


def tokens_of(size: Callable[[Config, int, Size], Size]) -> Callable[[Size], int]:
    """Tokens of 16 x 16 pixels of an image that is resized so."""

    def tokens(image: Size) -> int:
        height, width = size({}, 8, image)
        return (height // 16) * (width // 16)

    return tokens


def hidden_by_concatenation(transformer: Config) -> int:
    return 4 if transformer.get("image_condition_type") == "latent_concat" else 0
