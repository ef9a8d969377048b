"""The latent space: eight fixed linear measurements of each cell of 4 frames x 8 x 8 pixels.

Training an autoencoder end to end for so small a decoder does not converge in the time at hand.
Giving the latents a meaning beforehand does: a decoder learns to draw from them, an encoder to
measure them, and the flow is trained without either.
"""

from __future__ import annotations

import torch

CHANNELS = 8
MOMENTS = slice(6, 8)  # the channels that hold first moments
CELL = 8  # pixels, height and width
GROUP = 4  # frames a latent frame stands for; the first stands for one, as in HunyuanVideo
# The moments say which part of a cell is covered, hence which shape it is. The gain lifts them
# from 0.04 of the colours' spread to 0.4, where noise hides them no sooner than the colours.
MOMENT_GAIN = 8.0


def _cell_mean(frames: torch.Tensor) -> torch.Tensor:
    """(..., H, W) -> (..., H / CELL, W / CELL)."""
    height, width = frames.shape[-2] // CELL, frames.shape[-1] // CELL
    return frames.unflatten(-1, (width, CELL)).unflatten(-3, (height, CELL)).mean(dim=(-3, -1))


def measure(videos: torch.Tensor) -> torch.Tensor:
    """Latents (B, 8, 1 + (F - 1) / 4, H / 8, W / 8) of videos (B, 3, F, H, W) in [-1, 1].

    Channels: mean red, green, blue of the group's first frame; the same of its last two frames;
    8 times the first moments, along x and along y, of the brightness of the last two frames.
    """
    height, width = videos.shape[-2:]
    offset = (torch.arange(CELL, device=videos.device) + 0.5) / (CELL / 2) - 1
    along_x = offset.repeat(width // CELL)
    along_y = offset.repeat(height // CELL)[:, None]
    latents = []
    for group in (videos[:, :, :1], *videos[:, :, 1:].split(GROUP, dim=2)):
        last = group[:, :, -2:].mean(dim=2)
        brightness = last.mean(dim=1, keepdim=True)
        latents.append(
            torch.cat(
                [
                    _cell_mean(group[:, :, 0]),
                    _cell_mean(last),
                    MOMENT_GAIN * _cell_mean(brightness * along_x),
                    MOMENT_GAIN * _cell_mean(brightness * along_y),
                ],
                dim=1,
            )
        )
    return torch.stack(latents, dim=2)
