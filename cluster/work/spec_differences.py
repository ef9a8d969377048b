"""In what two specifications of jobs differ, in the words of their users."""

from __future__ import annotations

import json
from typing import Any

from meancache.json_values import shown

# Keys of a specification as its user knows them, where they are not called the same.
_FLAGS = {"num_inference_steps": "steps"}
_WORDS = {
    "items": "the number of items",
    "rows": "the number of rows",
    "kind": "the kind of job",
    "model.id": "--model",
    "model.revision": "the model's revision",
    "model.dtype": "--dtype",
    "reference_steps": "--reference-steps",
    "calibrated_on": "the calibration of --graph",
}
# How many of the differences to another job a refusal names.
MOST_NAMED = 8


def named(there: Any, here: Any) -> str:
    """The differences of two JSON objects, '; ' between them, at most MOST_NAMED."""
    found = differences(there, here) or ["it is written in another way"]
    more = len(found) - MOST_NAMED
    return "; ".join([*found[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Each leaf in which two JSON objects differ, as '--flag is X there and Y here'."""
    if path == "schedule":
        return [] if there == here else [_other_schedule(there, here)]
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted({*there, *here}):
            name = key if key in here else shown(key)  # of a stranger's file
            found += differences(there.get(key), here.get(key), f"{path}.{name}" if path else name)
        return found
    if there == here and isinstance(there, type(here)):
        return []
    if path == "plan":
        return ["the prompts, or what their rows override, are others there"]
    if path == "prompts":
        return ["the rows' ids, their order or their other columns are others there"]
    return [f"{_in_words(path)} is {_short(there)} there and {_short(here)} here"]


def _in_words(path: str) -> str:
    """A key of a specification as its user knows it: mostly a flag."""
    room, _, name = path.rpartition(".")
    if room == "arguments":
        return f"--{_FLAGS.get(name, name).replace('_', '-')}"
    return _WORDS.get(path, path)


def _other_schedule(there: Any, here: Any) -> str:
    was, now = _schedule_in_words(there), _schedule_in_words(here)
    if was == now and isinstance(there, dict) and isinstance(here, dict):
        was, now = (f"{was}, id {shown(one.get('id'))}" for one in (there, here))
    return f"the schedule is {was} there and {now} here"


def _schedule_in_words(schedule: Any) -> str:
    """'fitted of 10 forwards'; of a stranger's file, whatever that is."""
    if schedule is None:
        return "none (every step)"
    if not isinstance(schedule, dict):
        return shown(schedule)
    return f"{shown(schedule.get('method'))} of {shown(schedule.get('budget'))} forwards"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
