"""The embedded model: a real, trained, small HunyuanVideo pipeline that runs on one CPU core.

    from meancache import tiny

    pipe = tiny.load()
    video = pipe("a red circle moving left on a dark background", **tiny.DEFAULTS).frames[0]

The classes are those of diffusers and transformers; only the sizes and the weights are ours.
`meancache.tiny.train` makes the weights, `meancache.tiny.training.measure` says how good they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import HunyuanVideoPipeline

__all__ = ["DEFAULTS", "WEIGHTS", "load"]

WEIGHTS: Path = Path(__file__).parent / "weights"
"""The folder in `save_pretrained` layout; give it to from_pretrained."""

DEFAULTS: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 50,
    "guidance_scale": 6.0,
    # 10 tokens are real; the pipeline's default of 256 gives the same video in twice the time.
    "max_sequence_length": 16,
}
"""Arguments of the pipeline's call that this model was trained for."""


def load(torch_dtype: torch.dtype | None = None) -> HunyuanVideoPipeline:
    """The pipeline, on the CPU, in the given dtype or float32. Needs no network.

    Torch then runs on one thread, unless OMP_NUM_THREADS says otherwise: videos so small are no
    faster with more, and many times slower where another process uses a core. No progress bars are
    shown, neither here nor by the pipeline, whose runs take about a second:
    `pipe.set_progress_bar_config(disable=False)` brings those back.

    Raises OSError where the weights folder is missing from the installation.
    """
    # They take seconds to import, and captions and sizes are useful without them.
    import torch
    from diffusers import HunyuanVideoPipeline

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    with _without_progress_bars():
        pipe = HunyuanVideoPipeline.from_pretrained(WEIGHTS, dtype=torch_dtype or torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Diffusers and transformers load without them, while open."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [one for one in libraries if one.is_progress_bar_enabled()]
    for one in shown:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in shown:
            one.enable_progress_bar()
