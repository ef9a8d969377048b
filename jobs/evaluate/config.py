"""What is asked of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from jobs._shared.configs import DEFAULT_FLEET, FleetConfig, ModelConfig
from jobs.evaluate.settings import Setting


@dataclass(frozen=True)
class Config:
    """What is compared, on what.

    Attributes:
        output: the root that the table and the page go to.
        prompts: a file of held-out prompts.
        model: what renders them.
        schedules: a folder of schedules, or None.
        calibrations: a folder of calibration files, each of which gives a schedule of each of
            `budgets` for the very setting of the model's call, or None.
        budgets: of the calibrations.
        settings: under which the calibrations are compared (`jobs.evaluate.matrix`); none for that
            of the model's call alone.
        strict: refuse to carry a calibration to anything but another grid.
        graph: the ROOT/graph of a calibration, for the methods that need one; or None.
        baselines: compare with other acceleration methods too.
        seeds: videos a prompt.
        reference_steps: of a fine solution to measure against too, or None.
        fleet: the gangs.
        dry_run: say what would be done, and stop.
        prompt_column: the column that holds the prompts.
    """

    output: str
    prompts: str
    model: ModelConfig
    schedules: str | None = None
    calibrations: str | None = None
    budgets: tuple[int, ...] = (8, 10, 12)
    settings: tuple[Setting, ...] = ()
    strict: bool = False
    graph: str | None = None
    baselines: bool = False
    seeds: int = 1
    reference_steps: int | None = None
    fleet: FleetConfig = DEFAULT_FLEET
    dry_run: bool = False
    prompt_column: str = "prompt"
