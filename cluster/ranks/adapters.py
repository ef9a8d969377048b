"""The adapters on a rank's transformers: loaded when a video first wants them, kept for others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import safetensors.torch

from cluster.models.adapter_names import adapter_name
from meancache.hooks.pipelines import active_loras, transformers_of

# How many are on the transformers, in use or not: each takes memory.
KEPT = 4

Wanted = Sequence[tuple[str, float]]
"""(sha256, scale) of each."""


class RankAdapters:
    """What is loaded on a pipeline's transformers.

    Args:
        pipeline: with transformers, and diffusers' way to load adapters.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._active: tuple[str, ...] = ()

    def use(self, wanted: Wanted, read: Callable[[str], bytes]) -> bool:
        """Makes these the adapters of the next run.

        Args:
            wanted: all of them.
            read: sha256 -> the file of an adapter that is not loaded.

        Returns:
            Whether there were others before.

        Raises:
            ValueError: an adapter does not fit the transformers.
        """
        names = tuple(adapter_name(sha256, scale) for sha256, scale in wanted)
        if names == self._active:
            return False
        self._active = ()
        for (sha256, _), name in zip(wanted, names, strict=True):
            if name not in self._loaded:
                self._load(name, safetensors.torch.load(read(sha256)))
            self._loaded[name] = None
            self._loaded.move_to_end(name)
        if names:
            self._pipeline.enable_lora()
            self._pipeline.set_adapters(list(names), [scale for _, scale in wanted])
            self._check(names)
        else:
            self._pipeline.disable_lora()
        self._active = names
        spare = len(self._loaded) - max(KEPT, len(names))
        for name in list(self._loaded)[: max(0, spare)]:
            self._pipeline.delete_adapters(name)
            del self._loaded[name]
        return True

    def _load(self, name: str, weights: dict[str, Any]) -> None:
        try:
            self._pipeline.load_lora_weights(dict(weights), adapter_name=name)
            if getattr(self._pipeline, "transformer_2", None) is not None:
                second = {"load_into_transformer_2": True}
                self._pipeline.load_lora_weights(weights, adapter_name=name, **second)
        except Exception as error:  # of peft and diffusers, whatever they meet
            self._forget(name)
            raise ValueError(
                f"the adapter {name} does not fit {type(self._pipeline).__name__}: {error}"
            ) from error

    def _forget(self, name: str) -> None:
        for transformer in transformers_of(self._pipeline):
            if name in getattr(transformer, "peft_config", {}):
                remove: Any = transformer.delete_adapters
                remove(name)

    def _check(self, names: Sequence[str]) -> None:
        found = {one for part in transformers_of(self._pipeline) for one in active_loras(part)}
        missing = sorted(set(names) - found)
        if missing:
            raise ValueError(f"the adapters {', '.join(missing)} change nothing of the transformer")
