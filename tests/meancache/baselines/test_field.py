"""The velocity field of calibration runs, against the pipeline itself."""

import pytest
import torch

from meancache.baselines import BaselineError
from meancache.baselines.field import Field


def test_its_full_runs_are_the_pipelines(pipe, runs):
    reference = Field(pipe, runs).reference()
    assert reference.shape[:2] == (13, 2)
    ends = torch.stack([torch.from_numpy(run()) for run in runs])
    torch.testing.assert_close(reference[-1], ends, atol=2e-5, rtol=1e-4)


def test_a_run_is_stopped_before_it_computes_anything(pipe, runs):
    ran: list[None] = []
    counting = pipe.transformer.proj_out.register_forward_hook(lambda *_: ran.append(None))
    Field(pipe, runs)
    counting.remove()
    assert not ran


def test_gradients_reach_the_latents_and_spare_the_model(pipe, runs):
    field = Field(pipe, runs)
    latents = field.noise.clone().requires_grad_()
    with field.frozen():
        field(latents, 0.5).sum().backward()
    assert latents.grad.abs().sum() > 0
    assert all(p.requires_grad and p.grad is None for p in pipe.transformer.parameters())


def test_runs_that_are_none_or_unlike_or_elsewhere_are_refused(pipe, runs):
    with pytest.raises(BaselineError, match="at least one"):
        Field(pipe, [])
    with pytest.raises(BaselineError, match="noise levels"):
        Field(pipe, [runs[0], lambda: runs[1](num_inference_steps=5)])
    with pytest.raises(BaselineError, match="shapes"):
        Field(pipe, [runs[0], lambda: runs[1](width=96)])
    with pytest.raises(BaselineError, match="without calling"):
        Field(pipe, [lambda: None])
