"""What is asked of a render."""

from __future__ import annotations

from dataclasses import dataclass

from jobs._shared.configs import DEFAULT_FLEET, FleetConfig, ModelConfig

REPORT_KEY = "report.html"


@dataclass(frozen=True)
class Config:
    """What is rendered, and how.

    Attributes:
        output: the root that videos and manifest go to.
        prompts: a file, a folder or a glob of prompts.
        model: what renders them.
        schedule: a file, or 'current' for that of the registry; None for every step, unless one of
            the next two is given.
        calibration: a file, from which each setting of the rows gets a schedule of its own.
        target_psnr: dB that a shipped schedule, or one of the calibration, must be predicted to
            reach, or None.
        budget: forwards of a run by the calibration, of a shipped schedule, or the registry's.
        strict: refuse to carry a calibration to anything but another grid.
        any_revision: take a calibration of another revision of the model.
        registry: the root of a refresh, for 'current'.
        audit: share of the items that are rendered in full too.
        compile: 'never', 'always', or 'auto': compile the blocks of the transformer on GPUs where
            the job is long enough to repay it.
        retry_failed: render the rows again that a finished job gave up.
        fleet: the gangs.
        dry_run: say what would be done, and stop.
        prompt_column: the column that holds the prompts.
        seeds: videos of each row.
        max_prompt_tokens: 'warn' or 'refuse', where a prompt is longer than what the model reads.
        append: add rows to a finished root, behind those that are there.
        attention: a backend of diffusers; None for the fastest of torch's own.
    """

    output: str
    prompts: str
    model: ModelConfig
    schedule: str | None = None
    calibration: str | None = None
    target_psnr: float | None = None
    budget: int | None = None
    strict: bool = False
    any_revision: bool = False
    registry: str | None = None
    audit: float = 0.0
    compile: str = "auto"
    retry_failed: bool = False
    fleet: FleetConfig = DEFAULT_FLEET
    dry_run: bool = False
    prompt_column: str = "prompt"
    seeds: int = 1
    max_prompt_tokens: str = "warn"
    append: bool = False
    attention: str | None = None
