"""Decoding by other kernels gives the same frames."""

import pytest
import torch

from cluster.ranks.decoding import by_frames, convolved_by_frames, normalised, quicken, replicated
from meancache import tiny


@pytest.mark.parametrize("shape", [(1, 8, 3, 10, 12), (2, 8, 16, 16), (3, 8, 7), (1, 8, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_normalisation_is_torchs(shape, dtype):
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 8, eps=1e-6).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    given = 3 + 2 * torch.randn(shape).to(dtype)
    expected = norm(given)
    result = normalised(norm, given)
    assert result.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.04
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("padding", [(1, 1, 1, 1, 2, 0), (0, 0, 0, 0, 2, 0), (2, 1, 0, 3, 1, 1)])
def test_edges_are_replicated_as_by_torch(padding):
    given = torch.randn(2, 3, 4, 5, 6)
    expected = torch.nn.functional.pad(given, padding, mode="replicate")
    assert torch.equal(replicated(given, padding), expected)


@pytest.mark.parametrize("reach", [1, 3])
def test_a_convolution_by_frames_is_torchs(reach):
    conv = torch.nn.Conv3d(4, 6, (reach, 3, 3))
    given = torch.randn(2, 4, 5, 8, 9)
    with torch.no_grad():
        torch.testing.assert_close(convolved_by_frames(conv, given), conv(given))


def test_a_vae_decodes_by_frames_within_its_block_alone():
    vae = tiny.load().vae
    latents = torch.randn(1, vae.config.latent_channels, 3, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        with by_frames(vae):
            torch.testing.assert_close(vae.decode(latents).sample, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(vae.decode(latents).sample, expected)


def test_a_vae_decodes_the_same_frames():
    vae = tiny.load().vae
    latents = torch.randn(1, vae.config.latent_channels, 3, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        quicken(vae)
        torch.testing.assert_close(vae.decode(latents).sample, expected, atol=1e-5, rtol=1e-5)
