"""python -m jobs.replay"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._shared import cli
from jobs._shared.numbers import positive

if TYPE_CHECKING:
    from jobs.replay.workflow import Config


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.replay",
        "Renders a row of a jobs.render again, from what its root holds, and says whether it\n"
        "comes out the same, byte for byte, or how far from it in dB. Exit code 0 if it is the\n"
        "same, 1 if not.",
        "python -m jobs.replay out 0123456789abcdef0123456789abcdef --output again.mp4",
    )
    result.add_argument("root", metavar="ROOT", help="the --output of a jobs.render")
    result.add_argument(
        "item_id", metavar="ITEM_ID", help="the row's item_id, as the manifest and report.html show"
    )
    result.add_argument(
        "--output", metavar="FILE", help="write the video there too; never over another file"
    )
    result.add_argument(
        "--gang-size",
        type=positive,
        metavar="N",
        help="ranks that share the video (default: as many as then)",
    )
    return result


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.replay.workflow import Config

    return Config(options.root, options.item_id, options.output, options.gang_size)


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.replay import workflow

    outcome = workflow.run(configured(options))
    return 0 if outcome.same else cli.EXIT_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run, resumes=False)


if __name__ == "__main__":
    sys.exit(main())
