"""Ranks beyond a model's heads pass keys and values around a ring, and draw what one draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.builders import rank_builder
from cluster.gang import Gang
from cluster.plan import plan_items
from cluster.prompts import Prompt
from cluster.rendering import RenderRequest
from cluster.xdit import degrees
from tests.cluster import ranks


@given(st.integers(1, 64), st.integers(1, 64))
def test_ulysses_takes_all_ranks_that_heads_can_be_dealt_to_and_a_ring_the_rest(ranks_, heads):
    ulysses, ring = degrees(ranks_, heads)
    assert ulysses * ring == ranks_
    possible = [size for size in range(1, ranks_ + 1) if ranks_ % size == heads % size == 0]
    assert ulysses == max(possible)


def test_hunyuan_video_needs_no_ring_on_the_gpus_of_a_node_and_the_small_wan_does():
    assert degrees(8, 24) == (8, 1)
    assert degrees(8, 12) == (4, 2)


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


@pytest.fixture(scope="module")
def gang_of_three(model):
    with Gang(rank_builder(model), 3) as gang:
        yield gang
