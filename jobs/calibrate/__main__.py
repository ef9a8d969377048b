"""python -m jobs.calibrate"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._shared import cli
from jobs._shared.numbers import not_negative, positive
from meancache.carrying import LEVELS_BELOW

if TYPE_CHECKING:
    from jobs.calibrate.workflow import Config


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.calibrate",
        "Runs prompts in full and measures how stable each possible jump between steps is.\n"
        "The result, ROOT/calibration.parquet, gives schedules for runs of any steps and size\n"
        "(jobs.render --calibration, jobs.solve --steps); ROOT/graph is what jobs.solve fits\n"
        "schedules on for this very setting. About 10 prompts do.\n"
        "Keep them apart from the prompts you will judge the schedules on.",
        "python -m jobs.calibrate --model tiny --prompts prompts.txt --seeds 1 --output out",
    )
    cli.add_output(result, "where the graph goes")
    cli.add_prompts(result)
    result.add_argument(
        "--seeds",
        type=positive,
        default=5,
        metavar="N",
        help="trajectories a prompt, each from its own noise (default 5, as in the paper)",
    )
    result.add_argument(
        "--levels-below",
        type=not_negative,
        default=LEVELS_BELOW,
        metavar="N",
        help="noise levels to record below the last step too, each at half the time of the one "
        "before, so that runs of more steps or a smaller shift are within reach (default "
        f"{LEVELS_BELOW}, as many forwards more a trajectory)",
    )
    cli.add_model(result)
    cli.add_lora(result, by_row=False)
    cli.add_fleet(result)
    return result


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.calibrate.workflow import Config

    return Config(
        output=options.output,
        prompts=options.prompts,
        prompt_column=options.prompt_column,
        model=cli.model_config(options),
        seeds=options.seeds,
        levels_below=options.levels_below,
        fleet=cli.fleet_config(options),
        dry_run=options.dry_run,
    )


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.calibrate import workflow

    outcome = workflow.run(configured(options))
    return cli.EXIT_FAILED_ITEMS if outcome.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run)


if __name__ == "__main__":
    sys.exit(main())
