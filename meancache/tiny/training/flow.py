"""The teacher: flow matching on measured latents, with captions dropped for guidance.

The scheduler's convention: z = (1 - sigma) x + sigma noise, velocity = noise - x, and sigma falls
from 1 to 0.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import HunyuanVideoTransformer3DModel

from meancache.tiny.captions import Caption
from meancache.tiny.latents import MOMENTS, measure
from meancache.tiny.shapes import random_centres, render
from meancache.tiny.training.progress import Progress

GUIDANCE_RANGE = (1.0, 8.0)  # scales the transformer's guidance embedding is trained on
_CAPTION_DROPOUT = 0.1
# Weights of elements do not move the minimum of a squared error, which is the mean velocity. They
# decide what is learnt first: shapes show in the moments, and were learnt last by far.
_MOMENT_WEIGHT = 4.0


@dataclass(frozen=True)
class TextEmbeddings:
    """What the transformer reads of N captions: tokens (N, 10, 64) and pooled (N, 64)."""

    tokens: torch.Tensor
    pooled: torch.Tensor

    def __getitem__(self, index: torch.Tensor) -> TextEmbeddings:
        return TextEmbeddings(self.tokens[index], self.pooled[index])

    def dropped(self, where: torch.Tensor) -> TextEmbeddings:
        """The same, all zeros (no caption) in the rows where the mask (N,) is true."""
        keep = (~where).to(self.tokens.dtype)
        return TextEmbeddings(self.tokens * keep[:, None, None], self.pooled * keep[:, None])

    def nothing(self) -> TextEmbeddings:
        """As many rows of no caption."""
        return TextEmbeddings(torch.zeros_like(self.tokens), torch.zeros_like(self.pooled))


@dataclass(frozen=True)
class LatentBank:
    """Measured latents (N, 8, T, H, W) of drawn videos and, per video, its caption's index (N,)."""

    latents: torch.Tensor
    caption: torch.Tensor

    @classmethod
    def draw(cls, captions: tuple[Caption, ...], videos_each: int, seed: int) -> LatentBank:
        """Draws each caption `videos_each` times, at random places."""
        generator = torch.Generator().manual_seed(seed)
        latents = [
            measure(render([caption] * videos_each, random_centres(videos_each, generator)) * 2 - 1)
            for caption in captions
        ]
        return cls(torch.cat(latents), torch.arange(len(captions)).repeat_interleave(videos_each))

    def to(self, device: torch.device) -> LatentBank:
        return LatentBank(self.latents.to(device), self.caption.to(device))


def shifted(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Moves sigmas in [0, 1] toward 1, as the scheduler does: s u / (1 + (s - 1) u)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def stratified_sigmas(
    count: int, shift: float, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """(count,) sigmas: a uniform draw from each of `count` equal strata, shuffled, then shifted."""
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return shifted(strata / count, shift).to(device)


def velocity(
    transformer: HunyuanVideoTransformer3DModel,
    latents: torch.Tensor,
    sigma: torch.Tensor,
    text: TextEmbeddings,
    guidance: torch.Tensor,
) -> torch.Tensor:
    """The transformer's velocity for latents (B, C, T, H, W) at sigma (B,), guidance scale (B,)."""
    output = transformer(
        hidden_states=latents,
        timestep=sigma * 1000,
        encoder_hidden_states=text.tokens,
        encoder_attention_mask=torch.ones(text.tokens.shape[:2], device=latents.device),
        pooled_projections=text.pooled,
        guidance=guidance * 1000,
        return_dict=False,
    )
    return output[0]


def weighted_square(error: torch.Tensor) -> torch.Tensor:
    """Mean square of a velocity error (B, C, T, H, W), the moment channels weighing more."""
    weight = error.new_ones(error.shape[1])
    weight[MOMENTS] = _MOMENT_WEIGHT
    return (error.square().mean(dim=(0, 2, 3, 4)) * weight).sum() / weight.sum()


@torch.no_grad()
def guided_velocity(
    transformer: HunyuanVideoTransformer3DModel,
    latents: torch.Tensor,
    sigma: torch.Tensor,
    text: TextEmbeddings,
    guidance: torch.Tensor,
) -> torch.Tensor:
    """Classifier-free guidance: v_u + g (v_c - v_u), both halves in one forward."""
    nothing = text.nothing()
    both = TextEmbeddings(
        torch.cat([text.tokens, nothing.tokens]), torch.cat([text.pooled, nothing.pooled])
    )
    with_caption, without = velocity(
        transformer, latents.repeat(2, 1, 1, 1, 1), sigma.repeat(2), both, guidance.repeat(2)
    ).chunk(2)
    return without + guidance[:, None, None, None, None] * (with_caption - without)


@torch.no_grad()
def sample(
    velocity_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    steps: int,
    shift: float,
) -> torch.Tensor:
    """Euler from noise (B, C, T, H, W) to latents; velocity_of takes latents and sigma (B,)."""
    sigmas = shifted(torch.linspace(1, 0, steps + 1), shift).tolist()
    latents = noise
    for sigma, following in itertools.pairwise(sigmas):
        at = torch.full((len(noise),), sigma, device=noise.device)
        latents = latents + (following - sigma) * velocity_of(latents, at)
    return latents


class Optimiser:
    """Muon on the blocks' matrices and AdamW at half its rate elsewhere, with a running average.

    `average` holds the exponential moving average of the weights: what is kept of a phase.
    """

    def __init__(
        self, transformer: HunyuanVideoTransformer3DModel, steps: int, rate: float, decay: float
    ) -> None:
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in transformer.named_parameters():
            in_block = "transformer_blocks" in name or "refiner_blocks" in name
            (matrices if in_block and parameter.ndim == 2 else others).append(parameter)
        self._transformer = transformer
        self._parameters = [*matrices, *others]
        self._optimizers = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate / 2, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        warm_up = max(1, min(40, steps // 10))

        def factor(step: int) -> float:
            falling = 0.5 * (1 + math.cos(math.pi * step / steps))
            return min(1.0, (step + 1) / warm_up) * max(0.01, falling)

        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in self._optimizers
        ]
        self._decay = decay
        self._steps = 0
        self.average = copy.deepcopy(transformer).requires_grad_(False)

    def step(self, loss: torch.Tensor) -> None:
        """Backward, clip, update, and move the average."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        # Early on a long memory would hold the initial weights.
        decay = min(self._decay, self._steps / (self._steps + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self._transformer.parameters()), 1 - decay
            )


def train_teacher(
    transformer: HunyuanVideoTransformer3DModel,
    bank: LatentBank,
    text: TextEmbeddings,
    iterations: int,
    batch: int,
    rate: float,
    shift: float,
    seed: int,
    progress: Progress,
    watch: Callable[[HunyuanVideoTransformer3DModel, int], None],
) -> HunyuanVideoTransformer3DModel:
    """Flow matching on the bank; returns the averaged transformer.

    The guidance embedding gets random scales, so the teacher learns to ignore what the student
    will use. `watch` is called with the average and the iteration now and then.
    """
    device = bank.latents.device
    generator = torch.Generator().manual_seed(seed)
    optimiser = Optimiser(transformer, iterations, rate, decay=0.998)
    low, high = GUIDANCE_RANGE
    for step in range(iterations):
        chosen = torch.randint(len(bank.latents), (batch,), generator=generator).to(device)
        clean = bank.latents[chosen]
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = stratified_sigmas(batch, shift, generator, device)
        guidance = (low + (high - low) * torch.rand(batch, generator=generator)).to(device)
        dropped = (torch.rand(batch, generator=generator) < _CAPTION_DROPOUT).to(device)
        level = sigma[:, None, None, None, None]
        output = velocity(
            transformer,
            (1 - level) * clean + level * noise,
            sigma,
            text[bank.caption[chosen]].dropped(dropped),
            guidance,
        )
        loss = weighted_square(output - (noise - clean))
        optimiser.step(loss)
        progress.step("teacher", step, iterations, loss.item())
        watch(optimiser.average, step + 1)
    return optimiser.average
