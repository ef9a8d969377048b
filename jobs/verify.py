"""python -m jobs.verify ROOT: re-hashes everything that a render root's manifest names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cluster import manifest
from cluster.store import Store, open_store
from jobs import _cli


def prepare(options: argparse.Namespace) -> Store:
    """Opens the root, and finds out whether it can be read at all."""
    store = open_store(options.root)
    store.exists(manifest.SUCCESS_KEY)
    return store


def perform(store: Store) -> int:
    """Reads every object; names those that are missing or damaged."""
    checked = 0
    problems = 0
    for uri, problem in manifest.verify(store):
        checked += 1
        if problem is not None:
            problems += 1
            print(f"{uri} {problem}")
    print(f"{checked} objects checked, {problems} of them missing or damaged")
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
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
