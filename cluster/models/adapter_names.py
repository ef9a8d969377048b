"""What adapters are called: in the arguments of a call, on a transformer and in conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# The name of the argument of a call that holds its adapters: ((sha256, scale), ...).
LORA = "lora"


def adapter_name(sha256: str, scale: float) -> str:
    """What an adapter at a scale is called; no dots, which the names of modules may not have."""
    return f"{sha256[:16]}-{scale:g}".replace(".", "_")


def adapter_names(arguments: Mapping[str, Any]) -> list[str] | None:
    """The names of a call's adapters, sorted, as `meancache` finds them; None where it has none."""
    given: Iterable[tuple[str, float]] = arguments.get(LORA) or ()
    return sorted(adapter_name(sha256, scale) for sha256, scale in given) or None
