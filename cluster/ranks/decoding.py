"""Decoding without slow kernels of torch: two on a GPU, one on a CPU.

Of HunyuanVideo's decoding on an H200, torch 2.11, 35% was the moments of group normalisation, which
run on one multiprocessor a group, and 18% was replicating the edges of a convolution's input. Both
are computed here by kernels that fill the GPU. Padding is the same to the bit; normalisation adds
up in another order, in float32 as before.

On a CPU most of it is convolutions over frames, rows and columns. As convolutions over rows and
columns alone, of frames stacked with their neighbours, the embedded model decodes in less than half
the time, in huge pages too. Their sums are rounded in another way: fits are scored by them, and no
video is rendered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoCausalConv3d

from cluster.ranks.split_call import replaced

# Pieces that a channel is cut into, where its size allows: a GPU has more than a hundred
# multiprocessors, and a layer may have as few groups as 32.
PIECES = 64


def quicken(vae: torch.nn.Module) -> None:
    """Replaces, in place, how a VAE's decoder normalises groups and replicates edges."""
    decoder: Any = vae.decoder
    for module in decoder.modules():
        if isinstance(module, torch.nn.GroupNorm) and module.affine:
            module.forward = partial(normalised, module)  # type: ignore[method-assign]
        elif isinstance(module, HunyuanVideoCausalConv3d) and module.pad_mode == "replicate":
            module.forward = partial(_convolved, module)


@contextmanager
def by_frames(vae: torch.nn.Module) -> Iterator[None]:
    """Within it, the convolutions of a decoder of HunyuanVideo's kind go over stacked frames."""
    decoder: Any = vae.decoder
    with ExitStack() as stack:
        for module in decoder.modules():
            if isinstance(module, HunyuanVideoCausalConv3d):
                conv = module.conv
                if {*conv.stride, *conv.dilation} == {1} and not any(conv.padding):
                    convolve = partial(convolved_by_frames, conv)
                    stack.enter_context(replaced(conv, "forward", convolve))
        yield


def convolved_by_frames(conv: torch.nn.Conv3d, given: torch.Tensor) -> torch.Tensor:
    """What `conv`, of stride 1 and without padding, returns for `given`, (B, C, F, H, W)."""
    batch, channels, _, height, width = given.shape
    outs, _, reach, *window = conv.weight.shape
    stacked = given.unfold(2, reach, 1).permute(0, 2, 5, 1, 3, 4)
    frames = stacked.shape[1]
    weight = conv.weight.transpose(1, 2).reshape(outs, reach * channels, *window)
    result = torch.nn.functional.conv2d(
        stacked.reshape(batch * frames, reach * channels, height, width), weight, conv.bias
    )
    return result.reshape(batch, frames, *result.shape[1:]).transpose(1, 2).contiguous()


def normalised(norm: torch.nn.GroupNorm, given: torch.Tensor) -> torch.Tensor:
    """Group normalisation: what `norm` returns for `given`, (B, C, ...), in its dtype."""
    batch, channels = given.shape[:2]
    given = given.contiguous()
    numbers = math.prod(given.shape[2:])
    pieces = math.gcd(numbers, PIECES)
    parts = given.view(batch * norm.num_groups, -1, numbers // pieces)
    count = parts.shape[1] * parts.shape[2]
    mean = parts.sum(dim=2, dtype=torch.float32).sum(dim=1) / count
    squares = torch.linalg.vector_norm(parts, dim=2, dtype=torch.float32).square().sum(dim=1)
    variance = (squares / count - mean.square()).clamp(min=0)

    def each(values: torch.Tensor, repeats: int) -> torch.Tensor:
        return values.repeat_interleave(repeats)

    a_group = channels // norm.num_groups * pieces
    # Inference of batch normalisation is an affine map of each channel, computed in float32.
    result = torch.nn.functional.batch_norm(
        given.view(1, batch * channels * pieces, numbers // pieces),
        each(mean, a_group),
        each(variance, a_group),
        each(norm.weight.float().repeat(batch), pieces),
        each(norm.bias.float().repeat(batch), pieces),
        training=False,
        eps=norm.eps,
    )
    return result.view(given.shape)


def replicated(given: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
    """As torch.nn.functional.pad with mode 'replicate': (..., F, H, W) and six widths, those of W
    first."""
    left, right, top, bottom, front, back = padding
    frames, height, width = given.shape[-3:]
    larger = (frames + front + back, height + top + bottom, width + left + right)
    result = given.new_empty(*given.shape[:-3], *larger)
    planes = result[..., front : front + frames, :, :]
    rows = planes[..., top : top + height, :]
    rows[..., left : left + width] = given
    rows[..., :left] = given[..., :1]
    rows[..., left + width :] = given[..., -1:]
    planes[..., :top, :] = rows[..., :1, :]
    planes[..., top + height :, :] = rows[..., -1:, :]
    result[..., :front, :, :] = planes[..., :1, :, :]
    result[..., front + frames :, :, :] = planes[..., -1:, :, :]
    return result


def _convolved(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    convolved: torch.Tensor = module.conv(replicated(hidden_states, module.time_causal_padding))
    return convolved
