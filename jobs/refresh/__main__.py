"""python -m jobs.refresh"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from jobs._shared import cli
from jobs._shared.numbers import budgets, not_negative, positive

if TYPE_CHECKING:
    from jobs.refresh.workflow import Config


def _date(text: str) -> str:
    """A date, for argparse."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} must be a date such as 2026-11-21") from error


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.refresh",
        "Recalibrates, run after run: adds its trajectories to those of the last runs,\n"
        "fits a schedule for each budget, compares it with the current one on held-out prompts,\n"
        "and promotes it only if it is better by more than the standard error. Then\n"
        "  python -m jobs.render --schedule current --registry ROOT ...\n"
        "renders with what is current. A refresh that was stopped is resumed by the same command.",
        "python -m jobs.refresh --model tiny --prompts prompts.txt --output s3://bucket/refresh",
    )
    cli.add_output(result, "where the registry, the runs and report.html go")
    cli.add_prompts(result, required=False)
    result.add_argument(
        "--held-out",
        metavar="FILE",
        help="prompts to judge by, of the same kinds of file (default: a third of --prompts, "
        "chosen by their text, always the same)",
    )
    result.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="trajectories, and held-out videos, a prompt, each from its own noise (default 1)",
    )
    result.add_argument(
        "--budgets",
        type=budgets,
        default="10",
        metavar="B,B,...",
        help="forward passes (NFE) a video may take; each budget has a current schedule "
        "(default 10)",
    )
    result.add_argument(
        "--window",
        type=positive,
        default=7,
        metavar="N",
        help="of how many dates the trajectories make the schedules, this run's among them "
        "(default 7)",
    )
    _add_search(result)
    result.add_argument(
        "--night",
        type=_date,
        metavar="DATE",
        help="date of this run, YYYY-MM-DD (default: the unfinished run of this command, else "
        "today, UTC); a command has one run a date",
    )
    _add_looking_back(result)
    cli.add_model(result)
    cli.add_fleet(result)
    return result


def _add_search(parser: argparse.ArgumentParser) -> None:
    """--search."""
    parser.add_argument(
        "--search",
        type=not_negative,
        metavar="VIDEOS",
        help="search the computed steps on calibration runs, with the forwards of so many full "
        "videos for each budget; 0 for no search (default: 100 where the dates of the window have "
        "24 trajectories or more)",
    )


def _add_looking_back(parser: argparse.ArgumentParser) -> None:
    """--audits and --rollback."""
    parser.add_argument(
        "--audits",
        nargs="+",
        metavar="ROOT",
        help="roots of jobs.render --audit: the report says whether their fidelity is falling",
    )
    parser.add_argument(
        "--rollback",
        action="store_true",
        help="restore the previous schedule of each budget, and stop; needs the model's flags, and "
        "no --prompts",
    )


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.refresh.workflow import Config

    return Config(
        output=options.output,
        model=cli.model_config(options),
        prompts=options.prompts,
        prompt_column=options.prompt_column,
        held_out=options.held_out,
        seeds=options.seeds,
        budgets=options.budgets,
        window=options.window,
        night=options.night,
        search=options.search,
        audits=tuple(options.audits or ()),
        rollback=options.rollback,
        fleet=cli.fleet_config(options),
        dry_run=options.dry_run,
    )


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.refresh import workflow

    outcome = workflow.run(configured(options))
    if outcome.overtaken:
        return cli.EXIT_ERROR
    return cli.EXIT_FAILED_ITEMS if outcome.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run)


if __name__ == "__main__":
    sys.exit(main())
