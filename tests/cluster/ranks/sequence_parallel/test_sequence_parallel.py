"""Ranks beyond a model's heads pass keys and values around a ring, and draw what one draws."""

import sys

import pytest
import torch

from cluster.fleet.gang import Gang
from cluster.ranks import RenderRequest, rank_builder
from cluster.ranks.sequence_parallel import _import_xfuser, attention_backend
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from tests.support import ranks


@pytest.mark.parametrize(
    ("backend", "ring", "dtype", "expected"),
    [
        ("gloo", 1, torch.float32, "sdpa"),
        ("gloo", 2, torch.float32, "sdpa_flash"),
        ("nccl", 1, torch.bfloat16, None),
        ("nccl", 2, torch.bfloat16, "cudnn"),
        ("nccl", 1, torch.float32, "sdpa"),
    ],
)
def test_attention_knows_the_dtype_and_in_a_ring_its_log_sum_exp(backend, ring, dtype, expected):
    assert attention_backend(backend, ring, dtype) == expected


def test_a_ring_of_gpus_in_float32_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"use --dtype bfloat16, or a --gang-size that divides"):
        attention_backend("nccl", 2, torch.float32)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle moving left on a dark background",
        "red circle moving left on a dark background",  # one token less
    ],
)
def test_three_ranks_of_a_model_of_four_heads_draw_what_one_draws(
    model, gang_of_one, gang_of_three, prompt
):
    arguments = {**model.defaults, "num_inference_steps": 4}
    model.check_arguments(arguments, 3)
    asked = RenderRequest(plan_items([Prompt(1, prompt, "p", 3)], model, arguments)[0], None)
    alone, shared = gang_of_one.run(ranks.latents, asked), gang_of_three.run(ranks.latents, asked)
    torch.testing.assert_close(shared, alone, atol=2e-4, rtol=0)


def test_on_a_cpu_xdit_needs_none_of_what_only_gpus_have(monkeypatch):
    for name in ("triton", "numba"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    for name in [name for name in sys.modules if name.partition(".")[0] in ("xfuser", "yunchang")]:
        monkeypatch.delitem(sys.modules, name)
    assert _import_xfuser().xFuserArgs


@pytest.fixture(scope="module")
def gang_of_three(model):
    with Gang(rank_builder(model), 3) as gang:
        yield gang
