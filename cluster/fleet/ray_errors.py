"""Ray's errors, which are often pages, in one sentence."""

from __future__ import annotations

import re

from ray.exceptions import RayError, RuntimeEnvSetupError

from cluster.fleet.errors import FleetError
from cluster.fleet.runtime_environment import FIX

# Ray colours what it quotes of other processes.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# The last line of a traceback: the class of the exception and its message.
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b: .+")
# What pip, uv and others say last, behind the pages of the command that ran them.
_FAILED = re.compile(r"^(?:ERROR|error|Error): .+")


def told(error: Exception) -> str:
    """One sentence of what Ray says, which is often pages: the reason, without the advice.

    Ray's first line says what failed. Where a later line is the end of a traceback, the reason is
    there, or in what an installer that failed has said behind it.
    """
    text = _COLOUR.sub("", str(error)).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line for line in lines[1:] if _RAISED.match(line)]
    installer = [line for line in lines[1:] if _FAILED.match(line)]
    if raised and installer:
        return f"{lines[0].rstrip('.:')}: {installer[-1].partition(': ')[2].rstrip('.')}"
    if raised:
        return f"{lines[0].partition(', ray::')[0].rstrip('.:')}: {raised[-1].rstrip('.')}"
    return " ".join(lines).partition(" Some common causes")[0].rstrip(".")


def setup_error(error: RayError) -> FleetError | None:
    """The refusal for an error that no leader and no node can help; None for all others."""
    if isinstance(error, RuntimeEnvSetupError):
        return FleetError(f"{told(error)}: {FIX}")
    return None
