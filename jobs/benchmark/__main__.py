"""python -m jobs.benchmark: how fast this machine renders, and what skipping steps saves.

On a GPU the full-size HunyuanVideo, on a CPU the same graph scaled down, both with random weights:
speed does not depend on them. Needs no Ray. `python -m jobs.benchmark scale` measures what a job
costs around the model instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs._shared.numbers import positive
from jobs.benchmark import workflow
from jobs.benchmark.workflow import SHAPES


def configured(options: argparse.Namespace) -> workflow.Config:
    """The workflow's configuration by these flags."""
    return workflow.Config(
        options.shape, options.repeats, options.videos, options.compile, options.json
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["scale"]:
        from jobs.benchmark import scale  # with Ray

        return scale.main(given[1:])
    workflow.run(configured(parser().parse_args(given)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    result = argparse.ArgumentParser(
        prog="python -m jobs.benchmark",
        description=__doc__,
        epilog="example: python -m jobs.benchmark --shape 544p --json figures.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--shape", choices=SHAPES["full"], default="544p", help="of the video (default: 544p)"
    )
    result.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="runs of each kind (default: 3)"
    )
    result.add_argument(
        "--videos", type=positive, default=12, metavar="N", help="in steady state (default: 12)"
    )
    result.add_argument(
        "--compile", action="store_true", help="with the blocks of the transformer compiled"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return result


if __name__ == "__main__":
    sys.exit(main())
