"""What a video costs: counted against torch's own counter, and against xDiT's published times."""

import dataclasses

import diffusers
import pytest
import torch
from accelerate import init_empty_weights
from torch.utils.flop_counter import FlopCounterMode

from cluster.models.cost_model import COMPILED, EAGER, XDIT, Transformer, estimates, recommended

HUNYUAN = Transformer(blocks=60, width=3072, text_tokens=256, velocity=64)
TOKENS_720P = 33 * 45 * 80  # 1280x720, 129 frames


def memory(gang_size: int) -> float:
    """Bytes on a GPU: 42 GB of weights, and activations."""
    return 42e9 + HUNYUAN.activation_bytes(TOKENS_720P, gang_size)


def test_flops_of_a_forward_are_those_that_torch_counts():
    config = {
        **{"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 3},
        **{"num_single_layers": 5, "rope_axes_dim": (16, 24, 24), "text_embed_dim": 32},
        **{"pooled_projection_dim": 32, "num_refiner_layers": 1},
    }
    with torch.device("meta"):
        transformer = diffusers.HunyuanVideoTransformer3DModel(**config)
        inputs = {
            "hidden_states": torch.empty(1, 16, 5, 32, 32),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 64, 32),
            "encoder_attention_mask": torch.ones(1, 64),
            "pooled_projections": torch.empty(1, 32),
            "guidance": torch.empty(1),
        }
    tokens = 5 * 16 * 16
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        transformer(**inputs)
    # What is left out, the embeddings in and out and the texts' refiner, grows with N d alone.
    expected = Transformer.of(transformer.config, text_tokens=64).forward_flops(tokens)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("gpus", "seconds"), [(1, 1904), (2, 925), (4, 514), (8, 338)])
def test_seconds_are_those_that_xdit_measured_on_h100s(gpus, seconds):
    taken = 50 * HUNYUAN.forward_seconds(TOKENS_720P, gpus, XDIT)
    assert taken == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize(
    ("size", "reached", "seconds"),
    [
        ((40, 30), EAGER, 1.37),
        ((60, 34), EAGER, 3.02),
        ((40, 30), COMPILED, 1.06),
        ((60, 34), COMPILED, 2.43),
    ],
)
def test_seconds_of_65_frames_are_those_that_were_measured_here(size, reached, seconds):
    taken = HUNYUAN.forward_seconds(17 * size[0] * size[1], 1, reached)
    assert taken == pytest.approx(seconds, rel=0.05)


def test_a_budget_of_ten_makes_five_times_the_videos():
    full, fast = (estimates(HUNYUAN, TOKENS_720P, forwards, memory) for forwards in (50, 10))
    for slow, quick in zip(full, fast, strict=True):
        assert quick.videos_a_gpu_day == pytest.approx(5 * slow.videos_a_gpu_day)


def test_larger_gangs_are_sooner_done_and_smaller_ones_make_more():
    choices = estimates(HUNYUAN, TOKENS_720P, 10, memory)
    assert [one.gang_size for one in choices] == sorted(XDIT)
    assert [one.seconds for one in choices] == sorted(
        (one.seconds for one in choices), reverse=True
    )
    assert choices[-1].videos_a_gpu_day < choices[0].videos_a_gpu_day
    assert [one.gib for one in choices] == sorted((one.gib for one in choices), reverse=True)


def test_what_is_recommended_makes_about_as_many_videos_as_any():
    choices = estimates(HUNYUAN, TOKENS_720P, 10, memory)
    best = recommended(choices, 80)
    most = max(one.videos_a_gpu_day for one in choices)
    assert best.videos_a_gpu_day > 0.95 * most
    slow = dataclasses.replace(choices[0], seconds=1.1 * choices[0].seconds)
    assert recommended([slow, *choices[1:]], 80).gang_size == 2


def test_the_smallest_gang_that_fits_the_memory_is_recommended():
    choices = estimates(HUNYUAN, TOKENS_720P, 10, memory)
    assert recommended(choices, 80).gang_size == 1
    tight = (choices[0].gib + choices[1].gib) / 2
    assert recommended(choices, tight).gang_size == 2
    assert recommended(choices, 30) is None


def test_other_transformers_are_not_guessed_at():
    with pytest.raises(KeyError):
        Transformer.of({"num_layers": 30}, 256)


def test_the_real_transformer_has_the_size_that_the_model_counts():
    with init_empty_weights():
        transformer = diffusers.HunyuanVideoTransformer3DModel()
    assert Transformer.of(transformer.config, 256) == HUNYUAN
