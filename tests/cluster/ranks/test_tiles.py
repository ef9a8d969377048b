"""A VAE's tiles dealt over ranks: the frames of one process, bit for bit."""

from collections.abc import Iterator

import pytest
import torch

from cluster.fleet.gang import Gang
from tests.support import tiled_vaes

# (name, shape of the latents, tiles); see `tiled` for the sizes of their tiles.
LATENTS = [
    ("HunyuanVideo", (1, 4, 2, 4, 4), 1),
    ("HunyuanVideo", (1, 4, 5, 4, 4), 5),  # in time: at latent frames 0, 1, 2, 3, 4
    ("HunyuanVideo", (1, 4, 2, 6, 10), 8),  # in space: 2 rows of 4
    ("HunyuanVideo", (1, 4, 3, 7, 5), 18),  # in both: 3 times 3 rows of 2
    ("HunyuanVideo-1.5", (1, 4, 2, 2, 2), 1),
    ("HunyuanVideo-1.5", (1, 4, 2, 2, 3), 6),
    ("FLUX.1", (1, 4, 4, 4), 1),
    ("FLUX.1", (1, 4, 7, 7), 9),
    ("LTX-Video", (1, 4, 2, 2, 3), 6),
]
# Likewise, of decoders that are called once a latent frame.
BY_FRAMES = [
    ("Wan", (1, 4, 3, 4, 4), 1),
    ("Wan", (1, 4, 3, 7, 10), 12),
    ("Qwen-Image", (1, 4, 1, 6, 4), 4),
]


@pytest.fixture(scope="module", params=[1, 2, 3])
def gang(request) -> Iterator[Gang]:
    with Gang(tiled_vaes.Builder(), request.param) as ranks:
        yield ranks


@pytest.mark.parametrize(("name", "shape", "tiles"), LATENTS)
def test_ranks_that_share_tiles_decode_what_one_process_does(gang, name, shape, tiles):
    decoded = gang.run(tiled_vaes.decode, (name, shape, torch.float32))
    assert decoded.shared.shape[:2] == (1, 3)
    assert torch.equal(decoded.shared, decoded.alone)
    assert decoded.tiles == [
        len(range(rank, tiles, gang.world_size)) for rank in range(gang.world_size)
    ]


@pytest.mark.parametrize(("name", "shape", "tiles"), BY_FRAMES)
def test_all_frames_of_a_tile_are_of_one_rank_where_the_decoder_remembers_them(
    gang, name, shape, tiles
):
    decoded = gang.run(tiled_vaes.decode, (name, shape, torch.float32))
    assert torch.equal(decoded.shared, decoded.alone)
    assert decoded.tiles == [
        shape[2] * len(range(rank, tiles, gang.world_size)) for rank in range(gang.world_size)
    ]


def test_tiles_of_half_precision_travel_as_they_are(gang):
    decoded = gang.run(tiled_vaes.decode, ("HunyuanVideo", (1, 4, 3, 7, 5), torch.bfloat16))
    assert decoded.shared.dtype == torch.bfloat16
    assert torch.equal(decoded.shared, decoded.alone)
