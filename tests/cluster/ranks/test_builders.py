"""How ranks are built: what a GPU cannot hold is refused, and what is tight is moved to and fro."""

import argparse
import pickle
import re

import numpy as np
import pytest
import torch

from cluster.fleet import driver as fleet
from cluster.fleet.gang import Gang
from cluster.models.kinds import DENOISERS, TEXT
from cluster.models.memory_plan import Demand, MemoryPlanError
from cluster.ranks import (
    RenderRequest,
    denoise_item,
    denoiser_builder,
    encode_prompt,
    encoders_builder,
    rank_builder,
)
from cluster.ranks.memory import component_bytes, gpu_bytes
from cluster.ranks.renderer import Renderer
from cluster.work.plan import WorkItem, plan_items
from cluster.work.prompts import Prompt
from jobs._shared import cli
from tests.support.pretended_gpus import EncodersOnGpus, OnGpus

GIB = 2**30


@pytest.fixture
def tight(model) -> int:
    """Bytes of a GPU that holds the embedded model's gang, and its encoders if that makes room."""
    demand = Demand(model, component_bytes(model), model.defaults, 2, encoders_size=1)
    resident, offloaded = (sum(demand.parts(0, moved).values()) for moved in (False, True))
    assert offloaded < resident
    return int(resident + offloaded) // 2


def nothing(gang: Gang, item: int) -> None:
    """An item's work that should not be reached."""


@pytest.mark.usefixtures("shared_cluster")
def test_a_gang_that_its_gpus_cannot_hold_ends_the_job_in_a_sentence_at_its_first_start(
    model, tmp_path, capsys
):
    build = OnGpus(model, TEXT, model.defaults, 1, memory=GIB, starts=tmp_path)

    def job(_: argparse.Namespace) -> int:
        return len(list(fleet.run(nothing, [1, 2, 3], fleet.Gangs(build, 1, 1, 1))))

    assert cli.run_job(argparse.ArgumentParser(), [], job) == cli.EXIT_REFUSED
    said = capsys.readouterr().err
    assert re.search(r"(?m)^error: .*needs 2\.\d GiB on the GPU of rank 0, which has 1", said)
    assert "resumes" not in said
    assert len(list(tmp_path.iterdir())) == 1


def test_a_machine_without_a_gpu_and_a_job_of_unknown_size_refuse_nothing(model):
    denoiser_builder(model, model.defaults).check(0, 1, None)
    denoiser_builder(model).check(0, 1, 1)
    assert not encoders_builder(model, model.defaults).offloads(0, 1, None)
    assert not encoders_builder(model).offloads(0, 1, 1)
    if not torch.cuda.is_available():
        assert gpu_bytes(0) is None


def test_encoders_make_room_where_the_gang_beside_them_needs_it(model, tight):
    encoders = encoders_builder(model, model.defaults, 2)
    assert encoders.offloads(0, 1, tight)
    assert not encoders.offloads(0, 1, 80 * GIB)
    gang = denoiser_builder(model, model.defaults)
    gang.check(0, 2, tight)  # rank 0 reckons with it
    gang.check(1, 2, tight)
    with pytest.raises(MemoryPlanError):
        gang.check(0, 2, GIB)
    with pytest.raises(MemoryPlanError):
        encoders.offloads(0, 1, GIB)


def test_ranks_that_hold_the_whole_pipeline_are_refused_too(model):
    with pytest.raises(MemoryPlanError, match="no shape and no gang size would fit"):
        rank_builder(model, model.defaults).check(1, 2, GIB)


@pytest.fixture
def item(model) -> WorkItem:
    arguments = {**model.defaults, "num_inference_steps": 2}
    return plan_items([Prompt(1, "a red circle moving left", "p", 3)], model, arguments)[0]


def test_offloaded_encoders_encode_and_decode_the_same(model, item, tight):
    builder = EncodersOnGpus(model, item.arguments, 2, memory=tight)
    resident, offloaded = encoders_builder(model)(0, 1, ""), builder(0, 1, "")
    there, _ = encode_prompt(offloaded, item)
    for one, other in zip(tensors(encode_prompt(resident, item)[0]), tensors(there), strict=True):
        assert torch.equal(one, other)
    denoised = denoise_item(denoiser_builder(model)(0, 1, ""), RenderRequest(item, None, there))
    for _ in range(2):  # the second time, its components have been away
        frames = offloaded.decode(denoised.latents, item.arguments)
        assert np.array_equal(frames, resident.decode(denoised.latents, item.arguments))


def test_each_component_of_offloaded_encoders_is_sent_for_when_it_works_and_sent_back(model, item):
    encoders = Renderer(model, 0, 1, "", DENOISERS, offloaded=True)
    sent_for = spied(encoders.pipeline)
    texts = encoders.encode_prompt(item.prompt, item.arguments)
    assert sent_for == ["text_encoder", "text_encoder_2"]
    # As at the end of a pipeline's call all go back, and wait to be sent for anew.
    sent_for = spied(encoders.pipeline)
    denoised = denoise_item(denoiser_builder(model)(0, 1, ""), RenderRequest(item, None, texts))
    encoders.decode(denoised.latents, item.arguments)
    assert sent_for == ["vae"]


def tensors(texts: bytes) -> list[torch.Tensor]:
    return [one for one in torch.utils._pytree.tree_leaves(pickle.loads(texts)) if one is not None]


def spied(pipeline) -> list[str]:
    """Names of the components that accelerate's hooks move to the device, as they are moved."""
    names: list[str] = []
    for name in ("text_encoder", "text_encoder_2", "vae"):
        hook = getattr(pipeline, name)._hf_hook
        move = hook.pre_forward

        def told(*given, name=name, move=move, **named):
            names.append(name)
            return move(*given, **named)

        hook.pre_forward = told
    return names
