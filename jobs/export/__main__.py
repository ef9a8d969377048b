"""python -m jobs.export"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._shared import cli

if TYPE_CHECKING:
    from jobs.export.workflow import Config


FORMATS = ("videofolder", "webdataset", "parquet")
WHERE_EXAMPLE = "metrics.denoise_s < 2.5 and 'circle' in prompt"


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.export",
        "Copies the videos and rows of a finished jobs.render, or those that meet a condition, to\n"
        "a layout that Hugging Face datasets, WebDataset, DuckDB, Polars and others read. Every\n"
        "video is checked against its sha256. An export that was stopped is resumed by the same\n"
        "command; a finished one writes nothing again.",
        "python -m jobs.export out --format videofolder --output dataset \\\n"
        f'      --where "{WHERE_EXAMPLE}"',
    )
    result.add_argument("root", metavar="ROOT", help="the --output of a finished jobs.render")
    result.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="videofolder: metadata.parquet above the videos (or pictures); webdataset: tars of "
        "video, prompt and row; parquet: the rows alone",
    )
    cli.add_output(result, "where the files go, hf://datasets/OWNER/NAME for a dataset on the Hub,")
    result.add_argument(
        "--where",
        metavar="EXPR",
        help="only rows that meet a condition on columns and metrics, of == != < <= > >= in, "
        f'is None, and, or, not; such as "{WHERE_EXAMPLE}"',
    )
    result.add_argument(
        "--unfinished",
        action="store_true",
        help="of a render that is still on its way, or was stopped, take the rows that its "
        "manifest has so far; later ones go to another --output",
    )
    return result


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.export.workflow import Config

    return Config(options.root, options.format, options.output, options.where, options.unfinished)


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.export import workflow

    workflow.run(configured(options))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run)


if __name__ == "__main__":
    sys.exit(main())
