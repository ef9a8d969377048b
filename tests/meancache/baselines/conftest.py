"""Baselines by method, and what a run of the embedded pipeline costs."""

from collections.abc import Callable

import pytest
import torch

PROMPTS = (
    "a red circle moving left on a dark background",
    "a blue square moving up on a light background",
)


@pytest.fixture(scope="session")
def latents(draw) -> Callable[..., torch.Tensor]:
    """Runs the embedded pipeline to its final latents; 12 steps where nothing else is said."""
    return lambda **changes: torch.from_numpy(draw(**changes))


@pytest.fixture(scope="session")
def counted(pipe, latents) -> Callable[..., tuple[torch.Tensor, int]]:
    """`latents`, and the floating point operations of the run's linear layers.

    They are most of what a step costs, and a hook on each layer counts them without the overhead
    of torch's FlopCounterMode, which sees every operation.
    """
    modules = [
        module
        for component in pipe.components.values()
        if isinstance(component, torch.nn.Module)
        for module in component.modules()
        if isinstance(module, torch.nn.Linear)
    ]

    def run(**changes) -> tuple[torch.Tensor, int]:
        operations = 0

        def count(layer: torch.nn.Linear, _, output: torch.Tensor) -> None:
            nonlocal operations
            operations += 2 * layer.in_features * output.numel()

        hooks = [module.register_forward_hook(count) for module in modules]
        try:
            result = latents(**changes)
            return result, operations
        finally:
            for hook in hooks:
                hook.remove()

    return run


@pytest.fixture(scope="session")
def runs(draw) -> list[Callable[..., object]]:
    """Two calibration runs of 12 steps."""

    def calibration(prompt: str, seed: int) -> Callable[..., object]:
        return lambda **changes: draw(**{"prompt": prompt, "seed": seed, **changes})

    return [calibration(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
