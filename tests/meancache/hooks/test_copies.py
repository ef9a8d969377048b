"""Copies, pickles and quantised models run their own weights."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from diffusers import SD3Transformer2DModel
from ray import cloudpickle

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from tests.support.pipeline_support import independent
from tests.support.small_pipelines import STEPS, Small, build, quiet

EDGES = [
    {"start": 0, "stop": 4, "weights": {0: 1.0}},
    {"start": 4, "stop": STEPS, "weights": {0: -0.5, 4: 1.5}},
]


@pytest.fixture
def small() -> Small:
    small = build("SD3")
    small.draw()
    return small


@pytest.fixture
def schedule(small) -> Schedule:
    return Schedule.from_edges(Grid.from_scheduler(small.pipe.scheduler).sigmas, EDGES)


def torch_saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "cloudpickle": lambda module: pickle.loads(cloudpickle.dumps(module)),
    "torch.save": torch_saved,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("ran", [False, True], ids=["before a run", "after one"])
def test_a_copy_runs_its_own_weights_and_says_that_it_follows_nothing(small, schedule, copied, ran):
    hook = apply_mean_cache(small.pipe, schedule)
    want = small.draw()
    with pytest.warns(UserWarning, match="follows none itself and computes every step: call"):
        twin = copied(small.pipe.transformer)
    assert type(twin) is SD3Transformer2DModel
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.3)
    reference = build("SD3")
    with torch.no_grad():
        for parameter in reference.pipe.transformer.parameters():
            parameter.mul_(1.3)
    other = Small(
        small.case,
        quiet(type(reference.pipe)(**{**reference.pipe.components, "transformer": twin})),
    )
    before = hook.forwards
    assert torch.equal(other.draw(), reference.draw())
    assert hook.forwards == before
    # The original still follows, and the copy may follow a schedule of its own.
    assert torch.equal(small.draw(), want)
    own = apply_mean_cache(other.pipe, schedule)
    got = other.draw()
    remove_mean_cache(other.pipe)
    assert own.forwards == len(EDGES)
    torch.testing.assert_close(got, independent(other.draw, schedule), atol=1e-5, rtol=1e-4)


def test_weights_are_saved_without_the_schedule(small, schedule, tmp_path):
    apply_mean_cache(small.pipe, schedule)
    small.pipe.transformer.save_pretrained(tmp_path)
    loaded = SD3Transformer2DModel.from_pretrained(tmp_path)
    for name, tensor in small.pipe.transformer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def quantised(module: torch.nn.Module) -> None:
    torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, inplace=True)


@pytest.mark.parametrize("first", ["quantised", "schedule"])
def test_quantising_before_or_after(small, schedule, first):
    hook = None
    if first == "schedule":
        hook = apply_mean_cache(small.pipe, schedule)
    quantised(small.pipe.transformer)
    if hook is None:
        hook = apply_mean_cache(small.pipe, schedule)
    got = small.draw()
    assert hook.forwards == len(EDGES)
    remove_mean_cache(small.pipe)
    torch.testing.assert_close(got, independent(small.draw, schedule), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("first", ["casting", "schedule"])
def test_layerwise_casting_before_or_after(small, schedule, first):
    def cast():
        small.pipe.transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
        )

    if first == "casting":
        cast()
    hook = apply_mean_cache(small.pipe, schedule)
    if first == "schedule":
        cast()
    got = small.draw()
    assert hook.forwards == len(EDGES)
    remove_mean_cache(small.pipe)
    torch.testing.assert_close(got, independent(small.draw, schedule), atol=1e-5, rtol=1e-4)
