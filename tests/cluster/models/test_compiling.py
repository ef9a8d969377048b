"""When compiling repays itself, by the figures that were measured on an H100."""

import pytest

from cluster.models.compiling import ALWAYS, FIRST_S, NEVER, ON_GPU, SAVED, decided, repays
from cluster.models.cost_model import Transformer

HUNYUAN = Transformer(blocks=60, width=3072, text_tokens=256, velocity=64)
TOKENS = 17 * 40 * 30  # 640x480, 65 frames
FORWARD_S = HUNYUAN.forward_seconds(TOKENS)


def test_a_job_is_compiled_from_the_forward_on_that_repays_it():
    enough = FIRST_S / (SAVED * FORWARD_S)
    assert not repays(HUNYUAN, {TOKENS: enough * 0.99}, 1, 1)
    assert repays(HUNYUAN, {TOKENS: enough * 1.01}, 1, 1)


def test_gangs_share_what_is_saved_and_each_of_them_compiles():
    enough = {TOKENS: 1.01 * FIRST_S / (SAVED * FORWARD_S)}
    assert not repays(HUNYUAN, enough, 1, 2)
    assert repays(HUNYUAN, {TOKENS: 2 * enough[TOKENS]}, 1, 2)


def test_every_size_of_the_output_is_compiled_for_itself():
    enough = 1.01 * FIRST_S / (SAVED * FORWARD_S)
    assert not repays(HUNYUAN, {TOKENS: enough / 2, TOKENS + 1: enough / 2}, 1, 1)


@pytest.mark.parametrize("forwards", [{}, {TOKENS: 1e9}])
def test_nothing_is_concluded_for_a_transformer_that_is_not_known(forwards):
    assert not repays(None, forwards, 1, 1)


def test_who_says_never_or_always_is_not_overruled():
    assert [decided("never", worth) for worth in (False, True)] == [NEVER, NEVER]
    assert [decided("always", worth) for worth in (False, True)] == [ALWAYS, ALWAYS]
    assert [decided("auto", worth) for worth in (False, True)] == [NEVER, ON_GPU]
