"""A TeaCache-style threshold, written from the paper (arXiv:2411.19108).

The timestep-modulated input of the first block tells how much the output will have changed. Its
relative L1 change, rescaled by a polynomial, is summed over steps; while the sum stays below a
threshold, all blocks are skipped, and what they added last time is added again. The first and
the last step always compute.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager

from meancache.baselines.baseline import Baseline, BaselineError
from meancache.hooks.outputs import velocity_of

SOURCE = "written from arXiv:2411.19108"
HOOK_NAME = "teacache_baseline"
DEGREE = 4
AS_IT_IS = (1.0, 0.0)
"""The polynomial x: the change of the input stands for that of the output."""

Tensors = tuple[torch.Tensor, torch.Tensor]


def teacaches() -> list[Baseline]:
    """The threshold on the change of the input as it is, which needs no calibration."""
    return _over_thresholds("teacache", AS_IT_IS, (0.05, 0.1, 0.15, 0.2, 0.3, 0.5))


def rescaled_teacaches(pipeline: Any, runs: Sequence[Callable[..., Any]]) -> list[Baseline]:
    """The threshold on the change of the output, as a polynomial of that of the input.

    The polynomial of degree 4 is fitted by least squares to the steps of the calibration runs.

    Raises:
        BaselineError: the transformer's first block has no modulated input.
    """
    inputs, outputs = np.concatenate([_changes(pipeline, run) for run in runs], axis=1)
    polynomial = tuple(np.polyfit(inputs, outputs, DEGREE).tolist())
    return _over_thresholds("teacache-rescaled", polynomial, (0.1, 0.15, 0.2, 0.3, 0.5, 0.8))


def _over_thresholds(
    method: str, polynomial: tuple[float, ...], thresholds: Sequence[float]
) -> list[Baseline]:
    return [
        Baseline(method, f"threshold {limit:g}", SOURCE, partial(_cached, polynomial, limit))
        for limit in thresholds
    ]


class _Memory(BaseState):
    """What one run in one cache context remembers from step to step."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, *args: Any, **kwargs: Any) -> None:
        self.modulated: torch.Tensor | None = None
        self.drift = 0.0
        self.entered: Tensors | None = None
        self.added: Tensors | None = None
        self.skips = False


class _FirstBlock(ModelHook):
    """Decides whether this step computes; on a skipped step answers for all the blocks."""

    _is_stateful = True

    def __init__(
        self, memories: StateManager, scheduler: Any, polynomial: tuple[float, ...], limit: float
    ) -> None:
        super().__init__()
        self.memories = memories
        self.scheduler = scheduler
        self.polynomial = polynomial
        self.limit = limit

    def new_forward(
        self,
        module: torch.nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensors:
        memory = self.memories.get_state()
        step = self.scheduler.step_index or 0
        if step == 0:
            memory.reset()
        modulated = _norm(module)(hidden_states, emb=temb)[0]
        if memory.modulated is not None:
            change = _relative_change(modulated, memory.modulated)
            memory.drift += max(float(np.polyval(self.polynomial, change)), 0.0)
        memory.modulated = modulated
        last = step == len(self.scheduler.timesteps) - 1
        memory.skips = memory.added is not None and memory.drift < self.limit and not last
        if memory.skips:
            image, text = memory.added
            return hidden_states + image, encoder_hidden_states + text
        memory.drift = 0.0
        memory.entered = (hidden_states, encoder_hidden_states)
        return self.fn_ref.original_forward(
            hidden_states, encoder_hidden_states, temb, *args, **kwargs
        )

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.memories.reset()
        return module


class _LaterBlock(ModelHook):
    """Passes its input on while steps are skipped; the last one notes what all blocks added."""

    def __init__(self, memories: StateManager, is_last: bool) -> None:
        super().__init__()
        self.memories = memories
        self.is_last = is_last

    def new_forward(
        self,
        module: torch.nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensors:
        memory = self.memories.get_state()
        if memory.skips:
            return hidden_states, encoder_hidden_states
        output = self.fn_ref.original_forward(hidden_states, encoder_hidden_states, *args, **kwargs)
        if self.is_last:
            memory.added = (output[0] - memory.entered[0], output[1] - memory.entered[1])
        return output


@contextmanager
def _cached(polynomial: tuple[float, ...], limit: float, pipeline: Any) -> Iterator[dict[str, Any]]:
    first, *later = _blocks(pipeline.transformer)
    _norm(first)
    memories = StateManager(_Memory)
    hooks: list[ModelHook] = [_FirstBlock(memories, pipeline.scheduler, polynomial, limit)]
    hooks += [_LaterBlock(memories, block is later[-1]) for block in later]
    registries = [HookRegistry.check_if_exists_or_initialize(block) for block in (first, *later)]
    root = HookRegistry.check_if_exists_or_initialize(pipeline.transformer)
    for registry, hook in zip(registries, hooks, strict=True):
        registry.register_hook(hook, HOOK_NAME)
    root.invalidate_child_registries_cache()
    try:
        yield {}
    finally:
        for registry in registries:
            registry.remove_hook(HOOK_NAME, recurse=False)
        root.invalidate_child_registries_cache()


def _blocks(transformer: Any) -> list[torch.nn.Module]:
    names = ("transformer_blocks", "single_transformer_blocks")
    blocks = [block for name in names for block in getattr(transformer, name, ())]
    if len(blocks) < 2:
        raise BaselineError(
            f"{type(transformer).__name__} has no list of `transformer_blocks`, which TeaCache "
            "skips; compare with diffusers' own caches instead"
        )
    return blocks


def _norm(block: torch.nn.Module) -> torch.nn.Module:
    norm = getattr(block, "norm1", None)
    if norm is None:
        raise BaselineError(
            f"{type(block).__name__} has no `norm1`, whose timestep-modulated output TeaCache "
            "judges by; compare with diffusers' own caches instead"
        )
    return norm


def _relative_change(after: torch.Tensor, before: torch.Tensor) -> float:
    return float((after - before).abs().mean() / before.abs().mean())


def _changes(pipeline: Any, run: Callable[..., Any]) -> np.ndarray:
    """(2, T - 1) relative L1 changes, step over step, of the modulated input and the output."""
    transformer = pipeline.transformer
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    watches = (
        _norm(_blocks(transformer)[0]).register_forward_hook(
            lambda _, __, output: inputs.append(output[0].clone())
        ),
        transformer.register_forward_hook(
            lambda _, __, output: outputs.append(velocity_of(output).clone())
        ),
    )
    try:
        run()
    finally:
        for watch in watches:
            watch.remove()
    return np.array(
        [
            [_relative_change(after, before) for before, after in itertools.pairwise(seen)]
            for seen in (inputs, outputs)
        ]
    )
