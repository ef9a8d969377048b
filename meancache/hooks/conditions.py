"""What can be read of a run before its first forward, to compare with what a schedule is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from meancache.errors import ScheduleError
from meancache.hooks.callers import Caller
from meancache.json_values import shown

SIZES = ("height", "width", "num_frames")
_SPATIAL = (
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
    "vae_scale_factor",
)
_TEMPORAL = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)


@dataclass(frozen=True)
class Difference:
    """A condition that the run does not meet.

    Attributes:
        name: 'height', 'guidance_scale', 'pipeline', 'lora', ...
        wanted: its value where the schedule or the calibration was made.
        found: its value in the run; None where the run has no such thing.
    """

    name: str
    wanted: Any
    found: Any


@dataclass(frozen=True)
class RunConditions:
    """A run, before its first forward.

    Attributes:
        pipeline: the class name of its pipeline; None in a loop without one.
        dtype: name of the dtype that the transformer is called with.
        lora: the names of the adapters in use, sorted.
        variables: the pipeline's variables, the innermost first; see `Caller.variables`.
        owner: the pipeline.
        sizes: every reading of height, width and num_frames, in pixels and frames.
    """

    pipeline: str | None
    dtype: str
    lora: list[str]
    owner: Any = None
    variables: list[dict[str, Any]] = field(default_factory=list, repr=False)
    sizes: Mapping[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, caller: Caller | None, dtype: torch.dtype, lora: list[str]) -> RunConditions:
        """The conditions of the run that `caller` is in the middle of."""
        name = str(dtype).removeprefix("torch.")
        if caller is None:
            return cls(None, name, lora)
        variables = caller.variables()
        if caller.call is not None:
            variables.append(dict(caller.call.arguments))
        owner = caller.pipeline
        return cls(type(owner).__name__, name, lora, owner, variables, _sizes(owner, variables))

    def differences(self, wanted: Mapping[str, Any]) -> list[Difference]:
        """The conditions in `wanted` that this run does not meet; None leaves one open.

        Texts (a negative prompt) are not compared, as pipelines are given embeddings in their
        place. In a loop without a pipeline only the dtype and the adapters can be read.
        """
        found = []
        for name, value in wanted.items():
            readings = None if value is None else self._readings(name, value)
            if readings is not None and value not in readings:
                found.append(Difference(name, value, readings[0] if readings else None))
        return found

    def _readings(self, name: str, wanted: Any) -> list[Any] | None:
        """What the run has for the name; None where it cannot be compared."""
        if name == "dtype":
            return [self.dtype, f"torch.{self.dtype}"]
        if name == "lora":
            return [self.lora] if _names(wanted) != self.lora else [wanted]
        if self.pipeline is None:
            return None
        if name == "pipeline":
            return [self.pipeline]
        if name in SIZES:
            return self.sizes[name] or None
        if isinstance(wanted, str):
            return None
        for variables in self.variables:
            if name in variables and not isinstance(variables[name], torch.Tensor):
                return [variables[name]]
        holders = (self.owner, getattr(self.owner, "guider", None))
        return [getattr(one, name) for one in holders if hasattr(one, name)]


def _sizes(owner: Any, variables: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Height, width and num_frames in every way that they can be read.

    The call's own variables are what was asked for, or what the pipeline made of it, but some
    reuse the names for latents. Latents that still have their axes, times the VAE's factors, are
    what is denoised, but some pipelines order their axes in another way.
    """
    found: dict[str, list[int]] = {name: [] for name in SIZES}
    for local in variables:
        for name, readings in found.items():
            if isinstance(local.get(name), int):
                readings.append(local[name])
    latents = next((one["latents"] for one in variables if "latents" in one), None)
    axes: tuple[int, ...] = latents.shape if isinstance(latents, torch.Tensor) else ()
    spatial, temporal = _factor(owner, _SPATIAL), _factor(owner, _TEMPORAL)
    if len(axes) in (4, 5) and spatial is not None:
        found["height"].append(axes[-2] * spatial)
        found["width"].append(axes[-1] * spatial)
    if len(axes) == 5 and temporal is not None:
        found["num_frames"].append((axes[2] - 1) * temporal + 1)
    return found


def _factor(owner: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(owner, name, None) for name in names)
    return next((factor for factor in found if isinstance(factor, int)), None)


def _names(lora: Any) -> list[str]:
    """The adapters that a condition names.

    Raises:
        ScheduleError: it does not name adapters.
    """
    names = [lora] if isinstance(lora, str) else lora
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ScheduleError(
            f"the schedule's condition lora is {shown(lora)}; it must be the names of adapters "
            "in a list, empty for none, or null where they are left open"
        )
    return sorted(names)
