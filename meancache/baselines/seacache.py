"""SeaCache (arXiv:2602.18993) by diffusers' own hooks, which are told the step of the run.

diffusers' SeaCache asks for the step index, the noise level and the number of steps in
`cache_context`; a pipeline that gives none of them makes it compute every step. Here the context
is completed from the pipeline's scheduler, so that it really skips.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import SeaCacheConfig

from meancache.baselines.baseline import Baseline
from meancache.baselines.caches import enabled

SOURCE = f"diffusers {diffusers.__version__}, told the step"
# Without a limit on skips in a row, so that the threshold alone decides how much is computed.
NO_LIMIT = 0


def seacaches() -> list[Baseline]:
    """SeaCache over its threshold, from much compute to little."""
    return [
        Baseline("seacache", f"threshold {threshold:g}", SOURCE, partial(_cached, threshold))
        for threshold in (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
    ]


@contextmanager
def _cached(threshold: float, pipeline: Any) -> Iterator[dict[str, Any]]:
    config = SeaCacheConfig(
        threshold=threshold, max_consecutive_cached=NO_LIMIT, raw_vision_callback=_latents
    )
    transformer = pipeline.transformer
    with enabled(transformer, config):
        plain = transformer.cache_context

        def told(name: str, **known: Any) -> AbstractContextManager[None]:
            scheduler = pipeline.scheduler
            step = scheduler.step_index or 0
            there = {
                "step_index": step,
                "sigma": float(scheduler.sigmas[step]),
                "num_inference_steps": len(scheduler.timesteps),
            }
            return plain(name, **{**there, **known})

        transformer.cache_context = told
        try:
            yield {}
        finally:
            del transformer.cache_context


def _latents(
    module: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]
) -> list[torch.Tensor]:
    """What SeaCache judges by: the noisy latents of each sample, (C, F, H, W)."""
    return list(given["hidden_states"] if "hidden_states" in given else args[0])
