"""The caches that diffusers ships, by its own hooks: `transformer.enable_cache(config)`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from meancache.baselines.baseline import Baseline, BaselineError, hushed

SOURCE = f"diffusers {diffusers.__version__}"
# What the settings are made for. TaylorSeer ends 6 to 13 dB lower without the last step of them.
FULL_STEPS = 50
# FasterCache needs the first timestep, 1000, outside: at first there is nothing to use again.
ALL_TIMESTEPS = (-1, 1000)


def caches() -> list[Baseline]:
    """Every cache of diffusers that needs no calibration, over its knob."""
    return [
        *(
            _baseline("first-block-cache", f"threshold {threshold:g}", _first_block, threshold)
            for threshold in (0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.2)
        ),
        *(
            _baseline("taylorseer", f"cache_interval {interval}", _taylorseer, interval)
            for interval in (3, 4, 5, 6, 8, 10, 14)
        ),
        *(
            _baseline("pyramid-attention-broadcast", f"skip range {skip}", _pyramid, skip)
            for skip in (2, 3, 4, 6, 10)
        ),
        *(
            _baseline("fastercache", f"skip range {skip}", _faster, skip)
            for skip in (2, 3, 4, 6, 10)
        ),
    ]


def magcache(pipeline: Any, runs: Sequence[Callable[..., Any]], steps: int) -> list[Baseline]:
    """MagCache over its knobs, with the magnitude ratios of this pipeline's own runs.

    Args:
        pipeline: the pipeline that `runs` render through.
        runs: each renders one calibration trajectory; ratios are averaged over them.
        steps: T, the denoising steps of each run, and of the runs that follow.

    Raises:
        BaselineError: a run has another number of steps.
    """
    ratios = magnitude_ratios(pipeline, runs, steps)
    return [
        _baseline(
            "magcache", f"threshold {threshold:g}, K {skips}", _magcache, ratios, threshold, skips
        )
        for threshold, skips in ((0.03, 1), (0.06, 2), (0.12, 3), (0.24, 5), (0.5, 8), (1.0, 12))
    ]


def magnitude_ratios(
    pipeline: Any, runs: Sequence[Callable[..., Any]], steps: int
) -> tuple[float, ...]:
    """MagCache's own calibration: mean ratios of the blocks' residual, step over step before.

    Returns:
        T ratios, the first of them 1.
    """
    config = MagCacheConfig(calibrate=True, num_inference_steps=steps)
    found = []
    for run in runs:
        # Printing is the one way in which diffusers gives them out.
        with enabled(pipeline.transformer, config), redirect_stdout(io.StringIO()) as said:
            run()
        lists = re.findall(r"^\[[-+.e\d, ]+\]$", said.getvalue(), flags=re.MULTILINE)
        if len(lists) != 1:
            raise BaselineError(
                f"MagCache printed {len(lists)} lists of ratios in a calibration run of {steps} "
                f"steps, where one was due: let every run take {steps} steps, one forward each"
            )
        found.append(json.loads(lists[0]))
    return tuple(np.mean(found, axis=0).tolist())


def _baseline(method: str, setting: str, config: Callable[..., Any], *knobs: Any) -> Baseline:
    return Baseline(method, setting, SOURCE, partial(_cached, config, knobs))


@contextmanager
def _cached(
    config: Callable[..., Any], knobs: tuple[Any, ...], pipeline: Any
) -> Iterator[dict[str, Any]]:
    with enabled(pipeline.transformer, config(pipeline, *knobs)):
        yield {}


@contextmanager
def enabled(transformer: Any, config: Any) -> Iterator[None]:
    if not hasattr(transformer, "enable_cache"):
        raise BaselineError(
            f"{type(transformer).__name__} has no enable_cache, so diffusers has no caches for it; "
            "compare with solvers instead"
        )
    if transformer.is_cache_enabled:
        raise BaselineError(
            f"{type(transformer).__name__} has a cache enabled already; call its disable_cache() "
            "before applying a baseline"
        )
    with hushed("diffusers.hooks.faster_cache"):
        transformer.enable_cache(config)
    try:
        yield
    finally:
        transformer.disable_cache()


def _first_block(pipeline: Any, threshold: float) -> FirstBlockCacheConfig:
    return FirstBlockCacheConfig(threshold=threshold)


def _taylorseer(pipeline: Any, interval: int) -> TaylorSeerCacheConfig:
    # The default extrapolates attention alone, and still runs every MLP; the paper does both.
    return TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_after_step=FULL_STEPS - 1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[
            r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
            r"single_transformer_blocks\.\d+\.proj_out",
        ],
        skip_predict_identifiers=[r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"],
    )


def _pyramid(pipeline: Any, skip: int) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=skip,
        spatial_attention_timestep_skip_range=ALL_TIMESTEPS,
        current_timestep_callback=lambda: pipeline.current_timestep,
    )


def _faster(pipeline: Any, skip: int) -> FasterCacheConfig:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=skip,
        spatial_attention_timestep_skip_range=ALL_TIMESTEPS,
        # Without this it looks for both branches of guidance in one batch, and raises.
        is_guidance_distilled=True,
        attention_weight_callback=_half,
        current_timestep_callback=lambda: pipeline.current_timestep,
    )


def _half(attention: torch.nn.Module) -> float:
    """FasterCache's own default weight of the extrapolation, said so that it does not warn."""
    return 0.5


def _magcache(
    pipeline: Any, ratios: tuple[float, ...], threshold: float, skips: int
) -> MagCacheConfig:
    return MagCacheConfig(
        threshold=threshold,
        max_skip_steps=skips,
        retention_ratio=0.1,
        num_inference_steps=len(ratios),
        mag_ratios=list(ratios),
    )
