"""What is asked of a refresh."""

from __future__ import annotations

from dataclasses import dataclass

from jobs._shared.configs import DEFAULT_FLEET, FleetConfig, ModelConfig


@dataclass(frozen=True)
class Config:
    """What is calibrated again, and what it is judged by.

    Attributes:
        output: the root of registry, runs and page.
        model: what is calibrated.
        prompts: a prompts file; None to roll back.
        held_out: a file of prompts to judge by; None for a third of `prompts`.
        seeds: trajectories, and held-out videos, a prompt.
        budgets: forwards a video may take.
        window: of how many dates the trajectories make the graph.
        night: the date of the run, YYYY-MM-DD; None for today, or to resume an unfinished run.
        search: full videos that each budget's search of the steps may take; None for as many as
            are worth it with the trajectories that there are.
        audits: roots of renders with audits, to look back on.
        rollback: restore the previous schedule of each budget instead.
        fleet: the gangs.
        dry_run: say what would be done, and stop.
        prompt_column: the column that holds the prompts.
    """

    output: str
    model: ModelConfig
    prompts: str | None = None
    held_out: str | None = None
    seeds: int = 1
    budgets: tuple[int, ...] = (10,)
    window: int = 7
    night: str | None = None
    search: int | None = None
    audits: tuple[str, ...] = ()
    rollback: bool = False
    fleet: FleetConfig = DEFAULT_FLEET
    dry_run: bool = False
    prompt_column: str = "prompt"
