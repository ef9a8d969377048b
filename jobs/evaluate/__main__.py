"""python -m jobs.evaluate"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._shared import cli
from jobs._shared.numbers import budgets, positive
from jobs.evaluate.settings import setting

if TYPE_CHECKING:
    from jobs.evaluate.workflow import Config


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.evaluate",
        "Renders held-out prompts in full, by each schedule and, if wanted, by other acceleration\n"
        "methods, all from the same noise, and says how close each comes and how fast it is.\n"
        "A job that was stopped is resumed by the same command.",
        "python -m jobs.evaluate --model tiny --prompts held-out.txt --schedules out/schedules "
        "--output out",
    )
    cli.add_output(result, "where evaluation.parquet and report.html go")
    cli.add_prompts(result)
    _add_methods(result)
    result.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="videos a prompt, each from its own noise (default 1)",
    )
    result.add_argument(
        "--reference-steps",
        type=positive,
        metavar="N",
        help="measure against a fine solution of so many steps too: a multiple of the grid's "
        "steps, such as 300",
    )
    cli.add_model(result)
    cli.add_lora(result, by_row=False)
    cli.add_fleet(result)
    return result


def _add_methods(result: argparse.ArgumentParser) -> None:
    """What is compared."""
    result.add_argument(
        "--schedules",
        metavar="DIR",
        help="the schedules that are compared: every *.json in a folder or s3://bucket/prefix",
    )
    result.add_argument(
        "--calibrations",
        metavar="DIR",
        help="compare calibrations, every *.parquet in a folder or s3://bucket/prefix, by the "
        "schedules that each gives for this very call: --steps, --height, --guidance-scale ... "
        "may be others than it was made under, and the table says what that costs",
    )
    result.add_argument(
        "--budgets",
        type=budgets,
        default="8,10,12",
        metavar="B,B,...",
        help="forward passes (NFE) a video for --calibrations (default 8,10,12)",
    )
    result.add_argument(
        "--settings",
        type=setting,
        nargs="+",
        default=(),
        metavar="NAME=VALUE,...",
        help="compare --calibrations under each of these settings, and print what carrying costs "
        "as a table, such as: --settings steps=50 steps=30 height=96,width=96; what a setting "
        "leaves out is as the flags say",
    )
    result.add_argument(
        "--strict",
        action="store_true",
        help="refuse to carry a calibration to another size, length, guidance or dtype",
    )
    result.add_argument(
        "--graph",
        metavar="DIR",
        help="the ROOT/graph of jobs.calibrate: adds the paper's method by execution rule and "
        "gamma, and secant, at the schedules' budgets; refuses the graph's own prompts",
    )
    result.add_argument(
        "--baselines",
        action="store_true",
        help="compare with other acceleration methods too, each over its own knob; with --graph "
        "also those that calibrate on its trajectories (HunyuanVideo and gang size 1 only)",
    )


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.evaluate.workflow import Config

    return Config(
        output=options.output,
        prompts=options.prompts,
        prompt_column=options.prompt_column,
        model=cli.model_config(options),
        schedules=options.schedules,
        calibrations=options.calibrations,
        budgets=options.budgets,
        settings=tuple(options.settings),
        strict=options.strict,
        graph=options.graph,
        baselines=options.baselines,
        seeds=options.seeds,
        reference_steps=options.reference_steps,
        fleet=cli.fleet_config(options),
        dry_run=options.dry_run,
    )


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.evaluate import matrix, workflow

    config = configured(options)
    outcome = matrix.run(config) if config.settings else workflow.run(config)
    return cli.EXIT_FAILED_ITEMS if outcome.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run)


if __name__ == "__main__":
    sys.exit(main())
