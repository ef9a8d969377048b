"""Which attention a rank takes."""

import pytest
import torch

from cluster.models.model import ModelError
from cluster.ranks.attention import NATIVE, choose_attention
from cluster.ranks.renderer import Renderer
from tests.support import small_pipelines

CPU = torch.device("cpu")


def test_a_cpu_has_one_attention_and_tries_none():
    transformer = small_pipelines.hunyuan_transformer()
    assert choose_attention(transformer, None, CPU) == NATIVE


def test_what_is_asked_for_is_set_and_named(model):
    arguments = {**model.defaults, "num_inference_steps": 2}
    asked = Renderer(model, 0, 1, "", attention="_native_math")
    denoised = asked.denoise("a red circle", 0, arguments)
    assert denoised.attention == "_native_math"
    plain = Renderer(model, 0, 1, "").denoise("a red circle", 0, arguments)
    assert plain.attention == NATIVE


def test_what_is_not_installed_or_not_known_is_refused():
    transformer = small_pipelines.hunyuan_transformer()
    with pytest.raises(
        ModelError, match=r"'_flash_3' cannot be used: .*not usable.*leave --attention out"
    ):
        choose_attention(transformer, "_flash_3", CPU)
    with pytest.raises(ModelError, match="must be one of"):
        choose_attention(transformer, "fastest", CPU)
