"""python -m jobs.benchmark: how fast this machine renders, and what skipping steps saves.

On a GPU the full-size HunyuanVideo, on a CPU the same graph scaled down, both with random weights:
speed does not depend on them. Needs no Ray. `python -m jobs.benchmark scale` measures what a job
costs around the model instead, `python -m jobs.benchmark batch` images that share a forward.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs._shared.numbers import positive
from jobs.benchmark import workflow
from jobs.benchmark.workflow import SHAPES, STAGES


def configured(options: argparse.Namespace) -> workflow.Config:
    """The workflow's configuration by these flags."""
    return workflow.Config(
        options.shape,
        options.minutes,
        tuple(options.stages),
        options.json,
        options.repeats,
        options.videos,
        options.compile,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["scale"]:
        from jobs.benchmark import scale  # with Ray

        return scale.main(given[1:])
    if given[:1] == ["batch"]:
        from jobs.benchmark import batch

        return batch.main(given[1:])
    outcome = workflow.run(configured(parser().parse_args(given)))
    return 1 if outcome.failed else 0


def parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    result = argparse.ArgumentParser(
        prog="python -m jobs.benchmark",
        description=__doc__,
        epilog="example: python -m jobs.benchmark --minutes 5 --json figures.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--shape", choices=SHAPES["full"], default="480p", help="of the video (default: 480p)"
    )
    result.add_argument(
        "--minutes",
        type=positive,
        metavar="M",
        help="spend at most so many, on the most telling stages first (default: measure all)",
    )
    result.add_argument(
        "--stages",
        nargs="+",
        default=(),
        choices=STAGES,
        metavar="NAME",
        help=f"measure these alone, of {', '.join(STAGES)}",
    )
    result.add_argument(
        "--repeats",
        type=positive,
        metavar="N",
        help="runs of ten forwards, of which medians are given (default: 2)",
    )
    result.add_argument(
        "--videos",
        type=positive,
        metavar="N",
        help="videos with all stages at work (default: 5 on a GPU, 2 on a CPU)",
    )
    result.add_argument(
        "--compile",
        action="store_true",
        help="measure compiled blocks on a CPU too; on a GPU they are measured anyway",
    )
    result.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the figures there after every stage; where it is there, go on with it",
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
