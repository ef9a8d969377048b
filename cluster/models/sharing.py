"""Whether the ranks of a gang can share out what a call draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.models.files import ModelError
from cluster.models.pipelines import PIPELINES

if TYPE_CHECKING:
    from cluster.models.model import Model

# The most GPUs that a node has, and so the largest gang that is advised.
MOST_GPUS = 16


def check_gang(model: Model, arguments: Mapping[str, Any], gang_size: int) -> None:
    """Refuses arguments of a call whose tokens a gang of more than one rank cannot share.

    Raises:
        ModelError: names the sizes of gangs that can.
    """
    if model.kind.parallel is None or not model.shares:
        able = ", ".join(name for name, kind in PIPELINES.items() if kind.parallel)
        raise ModelError(
            f"gang size {gang_size} is not for {model.id}: the ranks of a gang cannot share a "
            f"{model.pipeline} here; use --gang-size 1, or one of {able}"
        )
    tokens = model.tokens(arguments)
    if not _shares(model, tokens, gang_size):
        frames = f"x{arguments['num_frames']}" if "num_frames" in arguments else ""
        sizes = [size for size in range(1, MOST_GPUS + 1) if _shares(model, tokens, size)]
        raise ModelError(
            f"gang size {gang_size} does not divide the {tokens} tokens of "
            f"{arguments['width']}x{arguments['height']}{frames}; use "
            f"{', '.join(map(str, sizes))}, or another size of the output"
        )
    text = arguments.get("max_sequence_length", 0)
    if model.kind.shares_padded_text and text % gang_size:
        raise ModelError(
            f"gang size {gang_size} does not divide the {text} tokens that {model.id} pads its "
            f"texts to; use one of {_divisors(text)}"
        )


def check_image(model: Model, width: int, height: int, gang_size: int) -> None:
    """Refuses an image whose own tokens a gang cannot share.

    Raises:
        ModelError: names the sizes of gangs that can.
    """
    of_image = model.kind.image_tokens
    if of_image is not None and (tokens := of_image((height, width))) % gang_size:
        sizes = [size for size in range(1, MOST_GPUS + 1) if tokens % size == 0]
        raise ModelError(
            f"gang size {gang_size} does not divide the {tokens} tokens of an image of "
            f"{width}x{height}; use one of {', '.join(map(str, sizes))}"
        )


def _shares(model: Model, tokens: int, gang_size: int) -> bool:
    # A ring cannot pad a video of any size (`ranks.sequence_parallel.videos`).
    any_video = model.kind.shares_any_video and model.degrees(gang_size)[1] == 1
    return any_video or tokens % gang_size == 0


def _divisors(number: int) -> str:
    return ", ".join(str(size) for size in range(1, number + 1) if number % size == 0)
