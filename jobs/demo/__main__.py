"""python -m jobs.demo"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._shared import cli

if TYPE_CHECKING:
    from jobs.demo.workflow import Config


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.demo",
        "Shows all of it on the embedded model: renders a first video by a schedule that ships\n"
        "with the project, then makes its own: calibrates, solves, renders held-out prompts at\n"
        "10 of 50 forward passes on a gang of 2 ranks, verifies, compares with the full runs, and\n"
        "ends with the path of a report. Takes a few minutes on two cores.",
        "python -m jobs.demo --output out",
    )
    cli.add_output(result, "where everything goes")
    return result


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.demo.workflow import Config

    return Config(options.output)


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.demo import workflow

    outcome = workflow.run(configured(options))
    if outcome.page is not None:
        return 0
    return cli.EXIT_FAILED_ITEMS if outcome.failed else cli.EXIT_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run)


if __name__ == "__main__":
    sys.exit(main())
