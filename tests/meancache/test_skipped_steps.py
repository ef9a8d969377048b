"""A profile of the denoising loop: what a skipped step runs, and what it does not."""

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from meancache import Schedule, apply_mean_cache, remove_mean_cache, tiny
from meancache.grid import Grid

STEPS = 12
COMPUTED = [0, 3, 4, 9]
# What makes the host wait for the device.
WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item")


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, steps: int = STEPS) -> Counter[str]:
    """How often each operator runs in a call without decoding."""
    arguments = {**tiny.DEFAULTS, "num_inference_steps": steps, "output_type": "latent"}
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        pipe("a red circle", generator=torch.Generator().manual_seed(0), **arguments)
    return Counter({event.key: event.count for event in profiled.key_averages()})


def schedule(pipe, computed: list[int]) -> Schedule:
    """For the grid of the pipeline's last call."""
    sigmas = Grid.from_scheduler(pipe.scheduler).sigmas
    edges = []
    for k, (start, stop) in enumerate(zip(computed, [*computed[1:], STEPS], strict=True)):
        known = computed[max(0, k - 2) : k + 1]
        weights = {str(step): 1 / len(known) for step in known}
        edges.append({"start": start, "stop": stop, "weights": weights})
    return Schedule.from_edges(sigmas, edges)


def test_no_operator_of_the_transformer_runs_on_a_skipped_step_and_none_waits(pipe):
    run(pipe)  # what is done once alone
    half, full = run(pipe, STEPS // 2), run(pipe)
    apply_mean_cache(pipe, schedule(pipe, COMPUTED))
    fast = run(pipe)
    remove_mean_cache(pipe)
    for name in ("aten::addmm", "aten::scaled_dot_product_attention", "aten::layer_norm"):
        # The text encoders run once, the transformer in every step that is computed.
        each = (full[name] - half[name]) / (STEPS // 2)
        assert each > 0
        assert fast[name] == full[name] - each * (STEPS - len(COMPUTED)), name
    for name in WAITS:
        assert fast[name] <= full[name], name
