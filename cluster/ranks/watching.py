"""What is measured of a run: its denoising loop, its forwards, its FLOPs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cluster.media import video


def synchronized_now() -> float:
    """Seconds, after the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class LoopWatch:
    """Times the denoising loop, counts and times the transformer's calls, looks at what comes out.

    Attributes:
        count: outputs that the run makes.
        started: of the transformer's first call, in seconds.
        stopped: when the scheduler's last step was done.
    """

    count: int = 1
    started: float = math.nan
    stopped: float = math.nan
    _marks: list[Any] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Calls of the transformers, those that a schedule's hook answered included."""
        return len(self._marks) // 2

    @property
    def loop_s(self) -> float:
        """Wall time of the denoising loop."""
        return self.stopped - self.started

    def fastest_forward_s(self, computed: int) -> float:
        """The fastest of the calls that were computed, on this rank's device; nan where none was.

        Args:
            computed: how many they are; the hook answers the others in no time.
        """
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        seconds = sorted((_between(before, after) for before, after in pairs), reverse=True)
        return seconds[computed - 1] if 0 < computed <= len(seconds) else math.nan

    def on(self, transformers: Sequence[torch.nn.Module]) -> list[Any]:
        """Watches their forwards; returns what is to be removed in the end."""
        watching: list[Any] = []
        for transformer in transformers:
            watching.append(transformer.register_forward_pre_hook(self.before_forward))
            watching.append(transformer.register_forward_hook(self.after_forward))
        return watching

    def before_forward(self, *_: Any) -> None:
        """A forward pre-hook of the transformer."""
        if not self._marks:
            self.started = synchronized_now()
        self._marks.append(_mark())

    def after_forward(self, *_: Any) -> None:
        """A forward hook of the transformer."""
        self._marks.append(_mark())

    def after_step(
        self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """The pipeline's `callback_on_step_end`; changes nothing."""
        # Waiting for the device at every step would slow what is measured.
        if step + 1 == pipeline.num_timesteps:
            self.after_loop(tensors["latents"])
        return tensors

    def after_loop(self, result: torch.Tensor) -> None:
        """Takes the last step's latents."""
        self.stopped = synchronized_now()
        latents = result.float().cpu().numpy()
        for one in [latents] if self.count == 1 else latents:
            video.check_drawn("latents", one, one.shape)


def _mark() -> Any:
    """A moment of the device's work, without waiting for it."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(before: Any, after: Any) -> float:
    if isinstance(before, float):
        return float(after - before)
    return float(before.elapsed_time(after)) / 1e3  # of milliseconds


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of softmax(Q K^T) V for the shapes of Q, K and V."""
    return int(sdpa_flop_count(query, key, value))


def flop_counter() -> FlopCounterMode:
    """torch's counter, with what it leaves out: attention as it runs on a CPU."""
    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={cpu: _attention_flops})
