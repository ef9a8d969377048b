"""A profile of the denoising loop: what a skipped step runs and does not, what the hook holds."""

from collections import Counter
from itertools import accumulate

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
    return Counter(event.name() for event in profiled.profiler.kineto_results.events())


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


def peak(pipe) -> tuple[int, int]:
    """The most bytes that were allocated at once in a call without decoding; its latents' bytes."""
    arguments = {**tiny.DEFAULTS, "num_inference_steps": STEPS, "output_type": "latent"}
    arguments |= {"height": 160, "width": 160}  # so that latents are not lost among weights
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        latents = pipe(
            "a red circle", generator=torch.Generator().manual_seed(0), **arguments
        ).frames
    events = profiled.profiler.kineto_results.events()
    allocations = [event for event in events if event.name() == "[memory]"]
    allocations.sort(key=lambda event: event.start_ns())
    alive = accumulate(event.nbytes() for event in allocations)
    return max(alive), latents.numel() * latents.element_size()


def test_at_its_peak_a_run_holds_at_most_three_velocities_more_than_a_plain_one(pipe):
    peak(pipe)  # what is made once alone
    plain, latents = peak(pipe)
    apply_mean_cache(pipe, schedule(pipe, COMPUTED))
    hooked, _ = peak(pipe)
    remove_mean_cache(pipe)
    assert plain < hooked <= plain + 3 * latents
