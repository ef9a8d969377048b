"""What differs between pipelines, as data: the columns of the table in `pipelines`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.models.grids import Mu, Spacing, even

Config = Mapping[str, Any]
Size = tuple[int, int]
"""(height, width) in pixels."""

# How the names of a pipeline's components begin: those that read and look, and those that denoise.
TEXT = ("text_encoder", "tokenizer", "image_encoder")
DENOISERS = ("transformer",)


@dataclass(frozen=True)
class Kind:
    """A pipeline class as the jobs see it.

    Attributes:
        arguments: of its call, that every run names, with the call's own defaults, taken where a
            user gives none; None where `size` or a guider says. With num_frames among them its
            outputs are videos, else images.
        optional: of its call, passed on where a user gives them.
        compression: the VAE's configuration -> (frames, pixels along an axis) of a latent.
        patch: the transformer's configuration -> (frames, pixels along an axis) of a token, in
            latents.
        heads: the transformer's configuration -> its attention heads.
        sides: height and width are multiples of so many tokens.
        fps: frames a second of its videos; 0 for images.
        size: (transformer's configuration, pixels of a latent) -> (height, width), for a call that
            leaves its defaults open.
        spacing: (steps, timesteps that the scheduler was trained on) -> the noise levels that its
            call gives the scheduler; None where the scheduler makes its own.
        shifts: its call shifts the noise levels with the number of tokens.
        mu: how far, where that is no line through two points of the scheduler's configuration.
        calls: the call's arguments -> forwards of a transformer in a step that is computed.
        guider: its guidance scale belongs to a component, not to its call.
        parallel: (module, class) of xDiT's sequence-parallel transformer, or None.
        tile: the VAE's configuration -> (frames, pixels along an axis) of the largest output that
            it decodes as one tile; None where it is not known.
        by_frames: the VAE decodes a tile a latent frame at a time.
        tiling: of the VAE's enable_tiling, where its tiles are not of the sizes that diffusers
            sets.
        shares_any_video: ranks whose number divides the heads share out a video of any number of
            tokens.
        shares_padded_text: xDiT's ranks share out a text of max_sequence_length tokens.
        masked_texts: of the transformer's forward: the argument with a text's embeddings -> that
            with its mask, where the pipeline pads texts and masks what it added.
        compiles: diffusers names the blocks of its transformer that repeat.
        adapters: diffusers loads LoRA adapters onto its transformer.
        takes_image: its call draws from an image, which every row brings.
        image_size: (transformer's configuration, pixels of a latent, (height, width) of the image)
            -> (height, width) of the output where a row says none; None where it is `arguments`'s,
            and an image is cropped to its shape.
        sized: its call takes a size; else `image_size` is always the output's.
        image_tokens: (height, width) of the image -> tokens that every forward has of it, beside
            those of the output, as ranks share them out.
        hidden_frames: the transformer's configuration -> frames at the beginning that are decoded
            and not shown.
        shares: the transformer's configuration -> whether xDiT's knows one of its kind, such as how
            it takes an image.
        derived: the call's arguments -> others that follow from them.
        sound: its videos have sound, which is not kept.
    """

    arguments: Mapping[str, Any]
    optional: tuple[str, ...]
    compression: Callable[[Config], tuple[int, int]]
    patch: Callable[[Config], tuple[int, int]]
    heads: Callable[[Config], int] = lambda transformer: transformer["num_attention_heads"]
    sides: int = 1
    fps: float = 0.0
    size: Callable[[Config, int], tuple[int, int]] | None = None
    spacing: Spacing | None = even
    shifts: bool = False
    mu: Mu | None = None
    calls: Callable[[Config], int] = lambda arguments: 1
    guider: bool = False
    parallel: tuple[str, str] | None = None
    tile: Callable[[Config], tuple[float, int]] | None = None
    by_frames: bool = False
    tiling: Mapping[str, int] = field(default_factory=dict)
    shares_any_video: bool = False
    shares_padded_text: bool = False
    masked_texts: Mapping[str, str] = field(default_factory=dict)
    compiles: bool = True
    adapters: bool = True
    takes_image: bool = False
    image_size: Callable[[Config, int, Size], Size] | None = None
    sized: bool = True
    image_tokens: Callable[[Size], int] | None = None
    hidden_frames: Callable[[Config], int] = lambda transformer: 0
    shares: Callable[[Config], bool] = lambda transformer: True
    derived: Callable[[Config], Config] = lambda arguments: {}
    sound: bool = False

    @property
    def is_image(self) -> bool:
        return "num_frames" not in self.arguments

    @property
    def takes(self) -> tuple[str, ...]:
        """All arguments of the call that a job passes on."""
        return (*self.arguments, *self.optional)
