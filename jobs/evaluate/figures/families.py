"""Which methods share a colour."""

from __future__ import annotations

from jobs.evaluate.table import PAPER

_FAMILIES = {
    "fitted": "fitted",
    "secant": "fitted",
    PAPER: "paper",
    "euler": "solver",
    "unipc": "solver",
    "dpm-solver++": "solver",
    "optimal-stepsize": "solver",
    "refined": "refined",
}


def family(method: str) -> str:
    """The name of a method's colour: who is ours, the paper's, a solver, a cache."""
    return _FAMILIES.get(method, "cache")
