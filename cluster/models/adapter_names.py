"""What adapters are called: in the arguments of a call, on a transformer and in conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Of the call's arguments: ((sha256, scale), ...).
LORA = "lora"


def adapter_name(sha256: str, scale: float) -> str:
    """Of an adapter at a scale; without dots, which no module may have in its name."""
    return f"{sha256[:16]}-{scale:g}".replace(".", "_")


def adapter_names(arguments: Mapping[str, Any]) -> list[str] | None:
    """Those of a call, sorted, as `meancache` finds them on its transformers; None for none."""
    given: Iterable[tuple[str, float]] = arguments.get(LORA) or ()
    return sorted(adapter_name(sha256, scale) for sha256, scale in given) or None
