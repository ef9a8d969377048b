"""python -m jobs.solve"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from jobs._shared import cli
from jobs._shared.numbers import budgets, finite, positive
from meancache.methods import METHODS
from meancache.schedule import EXECUTIONS

if TYPE_CHECKING:
    from jobs.solve.workflow import Config


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = cli.job_parser(
        "jobs.solve",
        "Solves which of the steps run the transformer, for every budget at once, and what the\n"
        "others use instead.\n\n"
        "  fitted  (default) positions with the history a run will have, weights fitted on the\n"
        "          states that it visits; runs the model on some of the graph's trajectories\n"
        "  secant  the same kind of positions, weights from the noise levels alone; no model\n"
        "  paper   MeanCache as published: costs of eq. 13, path of eq. 15; no model\n\n"
        "With --steps, --shift or a size the calibration is carried to those runs, in a second\n"
        "and without a model.",
        "python -m jobs.solve --graph out/graph --budgets 8,10,12 --output out/schedules",
    )
    cli.add_output(result, "where the schedules go, as METHOD-bBUDGET.json")
    which = result.add_mutually_exclusive_group(required=True)
    which.add_argument("--graph", metavar="DIR", help="the ROOT/graph of jobs.calibrate")
    which.add_argument(
        "--calibration", metavar="FILE", help="its calibration.parquet, which is enough as well"
    )
    result.add_argument(
        "--budgets",
        type=budgets,
        default="8,10,12,15",
        metavar="B,B,...",
        help="forward passes (NFE) a video may take (default 8,10,12,15)",
    )
    result.add_argument("--method", choices=METHODS, default="fitted", help="default: fitted")
    result.add_argument(
        "--gamma",
        type=float,
        metavar="G",
        help="how strongly single bad jumps are avoided (default: for paper its Table 4, 3 for "
        "HunyuanVideo, 4 for others; for secant 2; for fitted the better of 1 and 2)",
    )
    result.add_argument(
        "--execution",
        choices=EXECUTIONS,
        help="how the paper's jumps are run: 'jump' (default) is its eq. 10, 'fine-step' what its "
        "authors' scripts do",
    )
    _add_setting(result)
    _add_fitting(result)
    cli.add_fleet(result, gangs="1, as each runs the reference trajectories for itself")
    return result


def _add_setting(parser: argparse.ArgumentParser) -> None:
    """The runs that the schedules are for."""
    group = parser.add_argument_group(
        "setting of the runs, where it is another than the calibration's (no model is run then)"
    )
    for flag, kind, words in (
        ("--steps", positive, "denoising steps"),
        ("--shift", finite, "shift of the noise levels"),
        ("--height", positive, "pixels"),
        ("--width", positive, "pixels"),
        ("--num-frames", positive, "frames of a video"),
        ("--guidance-scale", finite, "scale of the guidance"),
        ("--true-cfg-scale", finite, "scale of guidance in two forwards"),
    ):
        group.add_argument(flag, type=kind, metavar="N", help=words)
    group.add_argument("--dtype", metavar="DTYPE", help="float32, bfloat16, ...")
    group.add_argument(
        "--strict",
        action="store_true",
        help="refuse to carry the calibration to another size, length, guidance or dtype",
    )
    group.add_argument(
        "--any-revision",
        action="store_true",
        help="take a calibration of another revision of the model",
    )


def _add_fitting(parser: argparse.ArgumentParser) -> None:
    """What method `fitted` alone takes."""
    group = parser.add_argument_group("method fitted")
    group.add_argument(
        "--trajectories",
        type=positive,
        metavar="N",
        help="how many of the graph's trajectories to fit on (default 10, with --search 40)",
    )
    group.add_argument(
        "--search",
        type=positive,
        metavar="VIDEOS",
        help="search the computed steps on calibration runs, with the forwards of so many full "
        "videos for each budget (worth it for large jobs, from 100 on; default: no search)",
    )
    group.add_argument(
        "--reference-steps",
        type=positive,
        metavar="N",
        help="aim at the exact flow, by a reference of so many steps (a multiple of the graph's, "
        "such as 300), instead of at the run of the graph's own steps",
    )
    group.add_argument(
        "--target-psnr",
        type=finite,
        metavar="DB",
        help="write only the smallest of the budgets whose fidelity reaches this",
    )


def configured(options: argparse.Namespace) -> Config:
    """The workflow's configuration by these flags."""
    from jobs.solve.carried import Setting
    from jobs.solve.workflow import Config

    return Config(
        graph=options.graph,
        calibration=options.calibration,
        setting=Setting(**{one.name: getattr(options, one.name) for one in fields(Setting)}),
        strict=options.strict,
        any_revision=options.any_revision,
        output=options.output,
        budgets=options.budgets,
        method=options.method,
        gamma=options.gamma,
        execution=options.execution,
        trajectories=options.trajectories,
        reference_steps=options.reference_steps,
        search=options.search,
        target_psnr=options.target_psnr,
        fleet=cli.fleet_config(options),
        dry_run=options.dry_run,
    )


def run(options: argparse.Namespace) -> int:
    """Runs the workflow; returns the exit code."""
    from jobs.solve import workflow

    outcome = workflow.run(configured(options))
    if outcome.unreached is not None:
        print(f"error: {outcome.unreached}; nothing was written", file=sys.stderr)
        return cli.EXIT_ERROR
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run_job(parser(), argv, run)


if __name__ == "__main__":
    sys.exit(main())
