"""python -m jobs.verify ROOT: re-hashes everything that a render root's manifest names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.results import garbage, manifest, verification
from cluster.store import Store, open_store
from jobs._shared import cli as _cli
from jobs._shared.numbers import finite, share
from jobs._shared.progress import progress

GRACE_H = 24.0


@dataclass(frozen=True)
class Prepared:
    """A root that can be read, and what to do with it."""

    store: Store
    share: float
    collect: bool
    grace_h: float


def prepare(options: argparse.Namespace) -> Prepared:
    """Opens the root, and finds out whether it can be read at all."""
    store = open_store(options.root)
    store.exists(manifest.SUCCESS_KEY)
    return Prepared(store, options.sample, options.gc, options.grace)


def perform(prepared: Prepared) -> int:
    """Reads every object; names those that are missing or damaged."""
    store = prepared.store
    checked = problems = 0
    steps = verification.expected_steps(store)
    for findings in progress(verification.verify(store, prepared.share), steps, "files", first=""):
        checked += len(findings)
        for uri, problem in findings:
            if problem is not None:
                problems += 1
                print(f"{uri} {problem}")
    print(f"{checked} objects checked, {problems} of them missing or damaged")
    if prepared.collect and problems:
        print("nothing is removed before what is missing or damaged has been seen to")
    elif prepared.collect:
        freed = removed = 0
        for _, size in garbage.collect(store, prepared.grace_h * 3600):
            removed, freed = removed + 1, freed + size
        print(f"{removed} videos that nothing names removed, {freed / 1e6:.1f} MB")
    return _cli.EXIT_ERROR if problems else 0


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
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
        help="read this share of the receipts and videos, drawn at random, such as 0.01 "
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
        default=GRACE_H,
        metavar="HOURS",
        help=f"how old such a video must be to be removed (default {GRACE_H:g})",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)
