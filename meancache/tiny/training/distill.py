"""The student: one forward that gives what guidance gives with two, as the released model does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from diffusers import HunyuanVideoTransformer3DModel

from meancache.tiny.training.flow import (
    GUIDANCE_RANGE,
    LatentBank,
    Optimiser,
    TextEmbeddings,
    guided_velocity,
    stratified_sigmas,
    velocity,
    weighted_square,
)
from meancache.tiny.training.progress import Progress

USUAL_GUIDANCE = 6.0  # the scale of HunyuanVideo's pipeline; drawn more often than the others
_USUAL_SHARE = 0.4


def distill(
    teacher: HunyuanVideoTransformer3DModel,
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
    """A student that answers guidance scale g with the teacher's v_u + g (v_c - v_u).

    Starts from the teacher; returns the averaged student. `watch` as in `train_teacher`.
    """
    device = bank.latents.device
    generator = torch.Generator().manual_seed(seed)
    student = copy.deepcopy(teacher).requires_grad_(True)
    optimiser = Optimiser(student, iterations, rate, decay=0.995)
    low, high = GUIDANCE_RANGE
    for step in range(iterations):
        chosen = torch.randint(len(bank.latents), (batch,), generator=generator).to(device)
        clean = bank.latents[chosen]
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = stratified_sigmas(batch, shift, generator, device)
        guidance = low + (high - low) * torch.rand(batch, generator=generator)
        guidance[torch.rand(batch, generator=generator) < _USUAL_SHARE] = USUAL_GUIDANCE
        guidance = guidance.to(device)
        level = sigma[:, None, None, None, None]
        noisy = (1 - level) * clean + level * noise
        captions = text[bank.caption[chosen]]
        target = guided_velocity(teacher, noisy, sigma, captions, guidance)
        loss = weighted_square(velocity(student, noisy, sigma, captions, guidance) - target)
        optimiser.step(loss)
        progress.step("student", step, iterations, loss.item())
        watch(optimiser.average, step + 1)
    return optimiser.average
