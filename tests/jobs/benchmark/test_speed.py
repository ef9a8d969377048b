"""The benchmark's measurements, on the embedded model: who takes turns, and what is counted."""

import math

import pytest
import torch

from cluster.ranks.random_weights import SCALED, random_model
from cluster.ranks.renderer import Renderer
from jobs.benchmark import speed

STEPS = 6


@pytest.fixture(scope="module")
def arguments(model):
    return {**model.defaults, "num_inference_steps": STEPS}


@pytest.fixture(scope="module")
def renderer(model):
    return Renderer(model, 0, 1, "")


@pytest.mark.parametrize("budget", [1, 5, 10, 50])
def test_an_even_schedule_computes_its_budget_and_weighs_three_velocities(model, budget):
    schedule = speed.even_schedule(model.grid(50).sigmas, budget)
    assert schedule.nfe == budget
    for edge in schedule.edges:
        assert math.isclose(sum(edge.weights.values()), 1)
    assert len(schedule.edges[-1].weights) == min(3, budget)


def test_a_turn_is_every_part_of_a_video(renderer, arguments):
    for schedule in (None, speed.even_schedule(renderer.model.grid(STEPS).sigmas, 2)):
        turn = speed.turn(renderer, arguments, schedule)
        assert len(turn.steps) == STEPS - 1
        assert 0 < sum(turn.steps) < turn.loop
        assert turn.video == turn.text + turn.loop + turn.decode + turn.file
    assert speed.matmul_rate(renderer, 64) > 0


def test_a_steady_state_delivers_videos_with_all_stages_at_work(model, arguments):
    schedule = speed.even_schedule(model.grid(STEPS).sigmas, 2)
    steady = speed.steady_state(model, arguments, schedule, videos=2)
    assert steady["seconds"] > 0
    assert steady["attention"] == "native"
    # Forwards at their fastest are a part of the loop, and the loop of the gang's time.
    means = steady["means"]
    assert 0 < means["ideal_s"] <= means["denoise_s"] <= means["gang_s"]
    assert steady["goodput"] == pytest.approx(means["ideal_s"] / means["gang_s"])


def test_random_weights_are_the_same_in_every_process_and_draw_a_video():
    model = random_model(SCALED, "float32")
    arguments = {**model.defaults, "num_inference_steps": 2}
    whole = Renderer(model, 0, 1, "")
    encoders = Renderer(model, 0, 1, "", without=("transformer",))
    texts = encoders.encode_prompt(speed.PROMPT, arguments)
    denoised = Renderer(model, 0, 1, "", without=("text_encoder", "tokenizer")).denoise(
        speed.PROMPT, 0, arguments, texts=texts
    )
    frames = encoders.decode(denoised.latents, arguments)
    assert (frames == whole.render(speed.PROMPT, 0, arguments).frames).all()
    assert torch.get_default_dtype() == torch.float32
