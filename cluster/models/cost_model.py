"""What a video costs before it is rendered: FLOPs, memory, seconds, and videos a GPU makes a day.

Counts the matrix products of a transformer of double and single stream blocks, as HunyuanVideo's
is: for N tokens of width d in L blocks, 24 N d^2 + 4 N^2 d each. How much of a GPU's peak is
reached on one GPU was measured here (docs/performance.md). Larger gangs lose as much against one as
in xDiT's published times of HunyuanVideo (720x1280, 129 frames, 50 steps, on 1, 2, 4 and 8 H100:
1904, 925, 514 and 338 s), which are the pessimistic row. The figures are for such GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# FLOP/s of an H100 in bfloat16, without sparsity.
PEAK = 989e12
# Gang size -> share of the peak in xDiT's measurements; larger gangs wait more for each other.
XDIT = {1: 0.320, 2: 0.330, 4: 0.297, 8: 0.226}
# On one GPU, text without padding and attention without a mask: eager, and with compiled blocks.
MEASURED = {"eager": 0.44, "compiled": 0.57}
EAGER, COMPILED = (
    {size: share * reached / XDIT[1] for size, reached in XDIT.items()}
    for share in (MEASURED["eager"], MEASURED["compiled"])
)
# So many activations of a token are alive at once where a block's are most, in bfloat16: measured
# on an H100 at 640x480x65 and 960x544x65, blocks not compiled; compiled ones take a third less.
ALIVE = 18
# Beside them in a ring: keys and values that come and go, and what their parts came to, in float32.
RING = 8
GIB = 2**30
DAY_S = 86_400.0
# By so much the figures may be off: gangs that are nearer to each other are as good.
ABOUT = 0.05


@dataclass(frozen=True)
class Transformer:
    """A transformer's size.

    Attributes:
        blocks: double and single stream ones together.
        width: d, of a token.
        text_tokens: that every forward has beside those of the video.
        velocity: numbers that come out for a token.
    """

    blocks: int
    width: int
    text_tokens: int
    velocity: int

    @classmethod
    def of(cls, config: Mapping[str, Any], text_tokens: int) -> Transformer:
        """Reads a HunyuanVideo or FLUX transformer's configuration; KeyError for another's."""
        # FLUX.1 leaves open what equals what goes in.
        channels = config.get("out_channels") or config["in_channels"]
        return cls(
            blocks=config["num_layers"] + config["num_single_layers"],
            width=config["num_attention_heads"] * config["attention_head_dim"],
            text_tokens=text_tokens,
            velocity=channels * config["patch_size"] ** 2 * config.get("patch_size_t", 1),
        )

    def forward_flops(self, tokens: int) -> float:
        """FLOPs of one forward over so many tokens of video, those of the text added."""
        n, d = tokens + self.text_tokens, self.width
        return float(self.blocks * (24 * n * d**2 + 4 * n**2 * d))

    def forward_seconds(
        self, tokens: int, gang_size: int = 1, reached: Mapping[int, float] = EAGER
    ) -> float:
        """Seconds of one forward on a gang.

        Args:
            tokens: of the video.
            gang_size: GPUs that share it.
            reached: gang size -> share of the peak: XDIT, EAGER or COMPILED.
        """
        share = reached[max(size for size in reached if size <= gang_size)]
        return self.forward_flops(tokens) / (gang_size * PEAK * share)

    def activation_bytes(self, tokens: int, gang_size: int = 1, ring: bool = False) -> float:
        """Memory a GPU takes beyond the weights while it denoises.

        Args:
            tokens: of the video, which ranks share.
            gang_size: how many they are.
            ring: some of them pass keys and values around.
        """
        alive = ALIVE + RING if ring else ALIVE
        return 2.0 * alive * (tokens / gang_size + self.text_tokens) * self.width


@dataclass(frozen=True)
class Estimate:
    """A video on a gang.

    Attributes:
        gang_size: GPUs that share it.
        seconds: of its computed steps, blocks compiled.
        pessimistic_s: the same by xDiT's published times.
        gib: memory of its fullest GPU, in GiB.
    """

    gang_size: int
    seconds: float
    pessimistic_s: float
    gib: float

    @property
    def gpu_hours(self) -> float:
        """GPU-hours a video takes, all GPUs of the gang together."""
        return self.seconds * self.gang_size / 3600

    @property
    def videos_a_gpu_day(self) -> float:
        return DAY_S / (self.seconds * self.gang_size)


def estimates(
    transformer: Transformer,
    tokens: int,
    forwards: float,
    memory: Callable[[int], float],
) -> list[Estimate]:
    """A video on gangs of 1, 2, 4 and 8 GPUs.

    Args:
        transformer: its size.
        tokens: of the video.
        forwards: of the transformer for a video.
        memory: gang size -> bytes that its fullest GPU holds.
    """
    return [
        Estimate(
            gang_size=size,
            seconds=forwards * transformer.forward_seconds(tokens, size, COMPILED),
            pessimistic_s=forwards * transformer.forward_seconds(tokens, size, XDIT),
            gib=memory(size) / GIB,
        )
        for size in XDIT
    ]


def recommended(choices: list[Estimate], memory_gib: float) -> Estimate | None:
    """The best of them for bulk work: the smallest that fits the memory and makes about as many
    videos a GPU as any other that does. None where none fits."""
    fitting = [choice for choice in choices if choice.gib <= memory_gib]
    most = max((choice.videos_a_gpu_day for choice in fitting), default=0.0)
    return next((one for one in fitting if one.videos_a_gpu_day >= (1 - ABOUT) * most), None)
