"""python -m jobs.render"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.models import compiling
from jobs._shared import cli
from jobs._shared.numbers import finite, not_negative, positive, share

if TYPE_CHECKING:
    from jobs.render.workflow import Config


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.render",
        "Renders every prompt to an mp4, or a png, lists them in a Parquet manifest, and shows\n"
        "the job on a page, report.html. A job that was stopped is resumed by the same command;\n"
        "a finished one renders nothing again.",
        "python -m jobs.render --model tiny --prompts prompts.txt --budget 10 --output out",
    )
    cli.add_output(result, "where videos and manifest go")
    cli.add_prompts(result, overrides=True)
    _add_rows(result)
    _add_schedule(result)
    result.add_argument(
        "--audit",
        type=share,
        metavar="SHARE",
        help="render this share of the items in full too, such as 0.01, and note psnr and ssim "
        "between both in the manifest's metrics",
    )
    cli.add_model(result)
    cli.add_lora(result)
    cli.add_fleet(result)
    _add_speed(result)
    group = result.add_argument_group("failures (a row is given up after 3 attempts)")
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="render the rows again that a finished job gave up; what is there stays as it is",
    )
    group.add_argument(
        "--max-failures",
        type=not_negative,
        default=0,
        metavar="N",
        help="end with exit code 0 with up to N failed rows (default 0: with any, it is 3)",
    )
    return result


def _add_speed(parser: argparse.ArgumentParser) -> None:
    """How fast it goes; none of it is part of what the job is."""
    parser.add_argument(
        "--batch",
        type=positive,
        default=1,
        metavar="N",
        help="images that go into one forward, at most (default 1): rows of the same settings "
        "with texts of the same length; for models that make images of text alone; not part of "
        "the job, as pixels differ by rounding alone",
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        choices=compiling.CHOICES,
        const="always",
        default="auto",
        help="compile the blocks of the transformer on each rank, during its first videos; 'auto', "
        "the default, does so on GPUs where the job is long enough to repay it; not part of the "
        "job, which is resumed with or without",
    )
    parser.add_argument(
        "--attention",
        metavar="NAME",
        help="the attention of gangs of one: a backend of diffusers such as _flash_3 or sage, "
        "installed on the nodes (default: the fastest of torch's own, by trial); not part of "
        "the job either, and named in each receipt",
    )


def _add_rows(parser: argparse.ArgumentParser) -> None:
    """How rows of the prompts become videos."""
    parser.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="videos of each row: a row's own seed and those after it, or N stable ones (default "
        "1)",
    )
    parser.add_argument(
        "--append",
        action="store_true",
        help="add rows to a finished ROOT, whose settings they have, as new shards behind what is "
        "there: those behind the root's rows, where --prompts begins with these, or else all of "
        "--prompts; rows that ask for pixels that are there share their videos",
    )
    parser.add_argument(
        "--max-prompt-tokens",
        choices=("warn", "refuse"),
        default="warn",
        help="what to do where the model reads only the beginning of a prompt: name the rows, or "
        "refuse them (default: warn)",
    )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    """The ways to say which steps are computed."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--schedule",
        metavar="FILE",
        help="which steps to compute (default: all of them); 'current' is the one that is current "
        "in --registry when the job begins, and stays the job's",
    )
    which.add_argument(
        "--calibration",
        metavar="FILE",
        help="solve a schedule of --budget forwards for each setting of the rows (steps, size, "
        "length, guidance) from this calibration, the calibration.parquet of jobs.calibrate; "
        "'current' is the one that is current in --registry",
    )
    parser.add_argument(
        "--target-psnr",
        type=finite,
        metavar="DB",
        help="use the fewest forwards that are predicted to come this close to the full run, as a "
        "mean over videos: of the schedules that ship, or of --calibration",
    )
    parser.add_argument(
        "--budget",
        type=int,
        metavar="B",
        help="forward passes (NFE) a video: with --calibration what it solves for, with --schedule "
        "current the registry's of that budget; alone, what ships for the model, a schedule of "
        "its default setting and a calibration for all others",
    )
    parser.add_argument(
        "--registry",
        metavar="ROOT",
        help="the --output of jobs.refresh, for --schedule or --calibration current",
    )

    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse to carry a calibration to another size, length, guidance or dtype; to other "
        "noise levels it is carried still",
    )
    parser.add_argument(
        "--any-revision",
        action="store_true",
        help="take a calibration of another revision of the model",
    )


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.render.workflow import Config

    return Config(
        output=options.output,
        prompts=options.prompts,
        model=cli.model_config(options),
        schedule=options.schedule,
        calibration=options.calibration,
        target_psnr=options.target_psnr,
        budget=options.budget,
        strict=options.strict,
        any_revision=options.any_revision,
        registry=options.registry,
        audit=options.audit or 0.0,
        compile=options.compile,
        retry_failed=options.retry_failed,
        fleet=cli.fleet_config(options),
        dry_run=options.dry_run,
        prompt_column=options.prompt_column,
        seeds=options.seeds,
        max_prompt_tokens=options.max_prompt_tokens,
        append=options.append,
        attention=options.attention,
    )


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.render import workflow

    outcome = workflow.run(configured(options))
    return cli.EXIT_FAILED_ITEMS if outcome.failed > options.max_failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run)


if __name__ == "__main__":
    sys.exit(main())
