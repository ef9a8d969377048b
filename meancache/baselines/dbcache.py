"""DBCache of cache-dit, with and without its TaylorSeer calibrator.

cache-dit is an optional extra, imported only where it is used. It patches the pipeline's class,
so do not run other pipelines of that class in the process while such a baseline is applied.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from meancache.baselines.baseline import Baseline, BaselineError, hushed

INSTALL = "pip install 'meancache-ray[baselines]'"


def is_installed() -> bool:
    """Whether cache-dit can be imported."""
    return importlib.util.find_spec("cache_dit") is not None


def dbcaches() -> list[Baseline]:
    """DBCache over its threshold, plain and with TaylorSeer; none where cache-dit is absent."""
    if not is_installed():
        return []
    return [
        Baseline(
            method,
            f"residual_diff_threshold {threshold:g}",
            f"cache-dit {version('cache-dit')}",
            partial(_cached, threshold, taylorseer),
        )
        for method, taylorseer in (("dbcache", False), ("dbcache-taylorseer", True))
        for threshold in (0.08, 0.12, 0.16, 0.2, 0.24, 0.3, 0.4)
    ]


@contextmanager
def _cached(threshold: float, taylorseer: bool, pipeline: Any) -> Iterator[dict[str, Any]]:
    if not is_installed():
        raise BaselineError(f"DBCache needs cache-dit, which is not installed: {INSTALL}")
    import cache_dit

    transformer = pipeline.transformer
    forward = vars(transformer).get("forward")
    children = dict(transformer.named_children())
    with hushed("CACHE_DIT"):
        cache_dit.enable_cache(
            pipeline,
            cache_config=cache_dit.DBCacheConfig(
                # The fewest blocks that it can judge by, so that it saves the most.
                Fn_compute_blocks=1,
                Bn_compute_blocks=0,
                max_warmup_steps=4,
                residual_diff_threshold=threshold,
            ),
            calibrator_config=(
                cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylorseer else None
            ),
        )
        try:
            yield {}
        finally:
            # Its own removal binds `forward` to the instance for good, or fails where a hook of
            # diffusers has put a partial there.
            del transformer._original_forward
            cache_dit.disable_cache(pipeline)
            if forward is None:
                del transformer.forward
            else:
                transformer.forward = forward
            # Every run of it takes the lists of blocks out and puts them back in another order,
            # by which other caches would then know the first block from the last.
            transformer._modules.clear()
            transformer._modules.update(children)
