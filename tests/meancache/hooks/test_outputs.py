"""Every form in which transformers return velocities, taken apart and put together again."""

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput

from meancache.hooks.outputs import velocities_of, velocity_of, with_velocities

A, B = torch.ones(2, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("output", "count"),
    [
        (A, 1),
        ((A,), 1),
        ((A, None), 1),
        (([A, B], {}), 2),  # a list of samples, as Z-Image has it
        (Transformer2DModelOutput(sample=A), 1),
        (AudioVisualModelOutput(sample=A, audio_sample=B), 2),
        ((A, torch.arange(3)), 1),  # indices are no velocity
    ],
)
def test_velocities_are_exchanged_and_the_form_stays(output, count):
    velocities = velocities_of(output)
    assert len(velocities) == count
    assert velocity_of(output) is A
    changed = with_velocities(output, [2 * velocity for velocity in velocities])
    assert type(changed) is type(output)
    for before, after in zip(velocities, velocities_of(changed), strict=True):
        assert torch.equal(after, 2 * before)
    if isinstance(output, tuple):
        assert len(changed) == len(output)
        if isinstance(output[0], list):
            assert changed[1] == output[1]
        else:
            assert changed[1:] == output[1:]
    elif not isinstance(output, torch.Tensor):
        assert torch.equal(changed.sample, 2 * A)


def test_an_output_without_a_tensor_is_refused():
    with pytest.raises(TypeError, match="returned a NoneType without a tensor"):
        velocities_of(None)
