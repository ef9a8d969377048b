"""Trains the VAE: first the decoder on measured latents, then the encoder to measure them.

Both see freshly drawn videos of the training captions only.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLHunyuanVideo

from meancache.tiny.captions import TRAIN
from meancache.tiny.latents import measure
from meancache.tiny.shapes import random_centres, render
from meancache.tiny.training.progress import Progress

# Sampled latents are never quite those of a drawn video; the decoder has to forgive as much.
_LATENT_NOISE = 0.08


def drawn_batches(batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless random training videos (batch, 3, F, H, W) in [-1, 1]."""
    while True:
        chosen = torch.randint(len(TRAIN), (batch,), generator=generator).tolist()
        centres = random_centres(batch, generator)
        yield render([TRAIN[index] for index in chosen], centres) * 2 - 1


def _optimise(
    parameters: list[torch.nn.Parameter], iterations: int, rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    warm_up = max(1, min(50, iterations // 10))

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * max(0.02, 1 - step / iterations) ** 0.7

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_decoder(
    vae: AutoencoderKLHunyuanVideo,
    iterations: int,
    batch: int,
    rate: float,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> None:
    """Fits `vae.decode` to draw videos from their measured latents. Changes the VAE in place."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer, schedule = _optimise(parameters, iterations, rate)
    batches = drawn_batches(batch, generator)
    for step in range(iterations):
        videos = next(batches)
        latents = measure(videos)
        latents = latents + _LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents.to(device), return_dict=False)[0]
        error = decoded - videos.to(device)
        # The L1 part keeps edges sharp, which is what the shape is read from.
        loss = error.square().mean() + 0.1 * error.abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.step("decoder", step, iterations, error.square().mean().item())


def train_encoder(
    vae: AutoencoderKLHunyuanVideo,
    iterations: int,
    batch: int,
    rate: float,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> None:
    """Fits the mean of `vae.encode` to the measured latents. Changes the VAE in place."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(vae.encoder.parameters())
    optimizer, schedule = _optimise(parameters, iterations, rate)
    batches = drawn_batches(batch, generator)
    for step in range(iterations):
        videos = next(batches).to(device)
        mean = vae.encode(videos).latent_dist.mean
        loss = (mean - measure(videos)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.step("encoder", step, iterations, loss.item())
