"""Settings that calibrations are compared under: which of the call's arguments are others."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from jobs._shared.configs import ModelConfig
from jobs._shared.numbers import finite, positive

# What a setting may change, and how it is read.
NAMES = {
    "steps": positive,
    "height": positive,
    "width": positive,
    "num_frames": positive,
    "guidance_scale": finite,
    "true_cfg_scale": finite,
}


@dataclass(frozen=True)
class Setting:
    """Arguments of the model's call in the place of the flags'.

    Attributes:
        changes: (name, value) of `ModelConfig`'s fields, in the order of NAMES.
    """

    changes: tuple[tuple[str, int | float], ...]

    def __str__(self) -> str:
        """'height 96, width 96'."""
        return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.changes)

    @property
    def folder(self) -> str:
        """Its place below the output, of safe characters alone: 'height-96-width-96'."""
        return "-".join(f"{name.replace('_', '-')}-{value:g}" for name, value in self.changes)

    def of(self, model: ModelConfig) -> ModelConfig:
        """The model's configuration under this setting."""
        changes: dict[str, Any] = dict(self.changes)
        return replace(model, **changes)


def setting(text: str) -> Setting:
    """'steps=30' or 'height=96,width=96', for argparse's `type`."""
    changes: dict[str, int | float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in NAMES or not equals:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not NAME=VALUE with one of the names {', '.join(NAMES)}"
            )
        if name in changes:
            raise argparse.ArgumentTypeError(f"{text!r} gives {name} twice")
        try:
            changes[name] = NAMES[name](value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: {value!r} is no number") from None
    return Setting(tuple((name, changes[name]) for name in NAMES if name in changes))
