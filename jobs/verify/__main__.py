"""python -m jobs.verify"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._shared import cli
from jobs._shared.numbers import finite, share

if TYPE_CHECKING:
    from jobs.verify.workflow import Config


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.verify",
        "Reads every part, receipt and video that the manifest names, and compares sha256s.\n"
        "Exit code 0 if all is as it was committed, 1 naming what is not.",
        "python -m jobs.verify out",
    )
    result.add_argument("root", metavar="ROOT", help="the --output of a finished jobs.render")
    result.add_argument(
        "--sample",
        type=share,
        default=1.0,
        metavar="SHARE",
        help="read this share of the receipts and videos, chosen at random, such as 0.01 "
        "(default: all; the manifest's own files are always read)",
    )
    result.add_argument(
        "--gc",
        action="store_true",
        help="also delete videos without a receipt, left by attempts that were killed between a "
        "video and its receipt (see --grace)",
    )
    result.add_argument(
        "--grace",
        type=finite,
        default=24.0,
        metavar="HOURS",
        help="how old such a video must be to be removed (default 24)",
    )
    return result


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.verify.workflow import Config

    return Config(options.root, options.sample, options.gc, options.grace)


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.verify import workflow

    outcome = workflow.run(configured(options))
    return cli.EXIT_ERROR if outcome.problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run, resumes=False)


if __name__ == "__main__":
    sys.exit(main())
