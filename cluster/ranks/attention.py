"""Which of diffusers' attentions a rank uses: the fastest of torch's own on its GPU, by trial.

Without a mask they compute the same; which is fastest differs by GPU, torch and shape. Others, such
as FlashAttention 3 or an attention in fp8, are used where they are installed and asked for.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from cluster.models.model import ModelError
from meancache.json_values import shown

NATIVE = "native"
# torch's own: its choice by shape, and cuDNN's.
TRIED = (NATIVE, "_native_cudnn")
# Tokens of a trial: enough to fill a GPU, and a few milliseconds each.
TOKENS = 8192
TRIALS = 5
# cuDNN's must be so much faster than torch's own choice to be taken.
WORTH = 0.97


def choose_attention(transformer: Any, asked: str | None, device: torch.device) -> str:
    """Sets the attention of a transformer's blocks, and returns its name.

    Args:
        transformer: of diffusers, on its device.
        asked: a backend of diffusers, such as `_flash_3`; None for the fastest of TRIED.
        device: of the rank.

    Raises:
        ModelError: diffusers knows no such backend, or it cannot be used here.
    """
    name = asked
    if name is None:
        name = _fastest(transformer, device) if device.type == "cuda" else NATIVE
    if name != NATIVE:
        try:
            transformer.set_attention_backend(name)
        except (ImportError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"attention {shown(name)} cannot be used: {reason}; leave --attention out for the "
                "fastest of torch's own"
            ) from error
    return name


def _fastest(transformer: Any, device: torch.device) -> str:
    config = transformer.config
    heads = config.get("num_attention_heads") or config.get("n_heads")
    size = config.get("attention_head_dim") or config["dim"] // heads
    given = torch.randn(3, 1, TOKENS, heads, size, device=device, dtype=transformer.dtype).unbind()
    taken = {name: seconds for name in TRIED if (seconds := _seconds(name, given)) is not None}
    best = min(taken, key=lambda name: taken[name], default=NATIVE)
    return best if taken.get(best, 0) < WORTH * taken.get(NATIVE, float("inf")) else NATIVE


def _seconds(name: str, given: tuple[torch.Tensor, ...]) -> float | None:
    """Median of some trials; None where the GPU or the dtype is not the backend's."""
    times = []
    try:
        for _ in range(TRIALS + 1):
            started = time.perf_counter()
            dispatch_attention_fn(*given, backend=name)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    except RuntimeError:
        return None
    return statistics.median(times[1:])
