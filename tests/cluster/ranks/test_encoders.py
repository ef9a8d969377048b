"""Encoders of several ranks: rank 0 encodes prompts, all decode, to the same pixels as one."""

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cluster.fleet.delivery import Delivery
from cluster.fleet.gang import Gang, GangTaskError
from cluster.fleet.staged_gang import StagedGang
from cluster.ranks import decode_item, encode_prompt, encoders_builder, encoders_size
from cluster.ranks.renderer import Renderer
from cluster.results.manifest import Manifest
from cluster.store import open_store
from cluster.work.plan import WorkItem, plan_items
from cluster.work.prompts import Prompt
from tests.support import tiled_vaes

ENCODERS = {"text_encoder", "text_encoder_2"}


@pytest.fixture(scope="module", params=[2, 3])
def encoders(model, request) -> Iterator[Gang]:
    with Gang(encoders_builder(model), request.param) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def whole(model) -> Renderer:
    """The embedded model, in this process."""
    return Renderer(model, 0, 1, "")


def asked(model, **size: int) -> WorkItem:
    arguments = {**model.defaults, "num_inference_steps": 1, **size}
    return plan_items([Prompt(1, "a red circle", "p", 3)], model, arguments)[0]


def drawn(whole: Renderer, item: WorkItem) -> tuple[bytes, WorkItem]:
    return whole.denoise(item.prompt, item.seed, item.arguments).latents, item


@pytest.mark.parametrize(
    "size",
    [
        {},  # of one tile
        {"num_frames": 37},  # 2, one after the other
        {"width": 416, "num_frames": 5},  # 2, side by side
    ],
)
def test_it_decodes_what_one_process_does(model, encoders, whole, size):
    item = asked(model, **size)
    latents, _ = drawn(whole, item)
    frames, seconds = encoders.run(decode_item, (latents, item))
    assert np.array_equal(frames, whole.decode(latents, item.arguments))
    assert seconds > 0


def test_texts_are_read_by_rank_0_which_alone_has_encoders(model, encoders, whole):
    item = asked(model)
    texts, _ = encoders.run(encode_prompt, item)
    expected = whole.encode_prompt(item.prompt, item.arguments)
    torch.testing.assert_close(pickle.loads(texts), pickle.loads(expected), atol=0, rtol=0)
    others = [{"vae"}] * (encoders.world_size - 1)
    assert encoders.run(tiled_vaes.components, None) == [{"vae"} | ENCODERS, *others]


def test_a_rank_that_dies_in_its_tile_fails_the_task_and_the_next_has_new_ranks(
    model, encoders, whole
):
    latents = drawn(whole, asked(model, num_frames=37))
    before = encoders.pids
    with pytest.raises(GangTaskError, match="rank 1 died with exit code -9"):
        encoders.run(tiled_vaes.decode_and_die_on_rank_1, latents)
    frames, _ = encoders.run(decode_item, latents)
    assert frames.shape == (37, 64, 64, 3)
    assert not set(encoders.pids) & set(before)


def test_the_same_file_is_delivered_whatever_the_encoders_ranks(
    model, encoders, gang_of_one, tmp_path
):
    item = asked(model, num_frames=37)
    rows = [
        Delivery(Manifest(open_store(str(tmp_path / folder))), model, None)(staged, item)
        for folder, staged in [
            ("one", StagedGang(gang_of_one, gang_of_one)),
            ("several", StagedGang(gang_of_one, encoders)),
        ]
    ]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert rows[0]["sha256"] == rows[1]["sha256"]


def test_it_has_the_ranks_of_the_gang_where_something_is_decoded_in_tiles(model):
    small, long = asked(model).arguments, asked(model, num_frames=37).arguments
    assert encoders_size(model, [small], 4) == 1
    assert encoders_size(model, [small, long], 4) == 4
    assert encoders_size(model, [long], 1) == 1
