"""Which schedule each item of a job runs: one for all, or one for each setting of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.models.adapter_names import LORA, adapter_names
from cluster.models.model import CONDITIONS
from meancache.json_values import canonical_json
from meancache.schedule import Schedule

# The arguments of a call by which schedules differ; the text of a negative prompt does not count.
SETTING = ("num_inference_steps", *CONDITIONS, LORA)


@dataclass(frozen=True)
class ScheduleTable:
    """A schedule for each setting: steps, size, length and guidance of a call.

    Attributes:
        schedules: by `setting_key`, in the order in which the settings occur.
    """

    schedules: Mapping[str, Schedule]

    def to_json(self) -> list[dict[str, Any]]:
        """Every schedule whole, sorted by id; grid and conditions say what each is for."""
        each = {schedule.id: schedule for schedule in self.schedules.values()}
        return [each[identity].to_json() for identity in sorted(each)]


Chosen = Schedule | ScheduleTable | None
"""What a job computes its steps by; None computes all."""


def schedule_of(chosen: Chosen, arguments: Mapping[str, Any]) -> Schedule | None:
    """The schedule of a call with these arguments. Raises KeyError where a table has none."""
    if isinstance(chosen, ScheduleTable):
        return chosen.schedules[setting_key(arguments)]
    return chosen


def setting_key(arguments: Mapping[str, Any]) -> str:
    """What settings are told apart by, as a text."""
    setting = {name: arguments.get(name) for name in SETTING}
    setting["negative_prompt"] = arguments.get("negative_prompt") is not None
    return canonical_json(setting).decode()


def setting_words(arguments: Mapping[str, Any]) -> str:
    """A setting in words: '30 steps, 96x96x9, guidance 6'."""
    size = f"{arguments['width']}x{arguments['height']}"
    frames = f"x{arguments['num_frames']}" if "num_frames" in arguments else ""
    words = [f"{arguments['num_inference_steps']} steps", size + frames]
    for name in ("guidance_scale", "true_cfg_scale"):
        if arguments.get(name) is not None:
            words.append(f"{name.replace('_', ' ')} {arguments[name]:g}")
    names = adapter_names(arguments)
    if names:
        words.append(f"lora {' and '.join(names)}")
    return ", ".join(words)
