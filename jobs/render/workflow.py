"""Prompts + a schedule -> mp4s and a Parquet manifest, each row once.

Resume is the same command: what has a receipt is done, everything else is open.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.results import manifest, rounds
from cluster.store import Store
from jobs._shared.progress import counted
from jobs._shared.roots import to_look_at
from jobs.render.config import REPORT_KEY, Config
from jobs.render.rendering import render
from jobs.render.request import Prepared, prepare

__all__ = ["Config", "Outcome", "Prepared", "prepare", "run", "write_page"]


@dataclass(frozen=True)
class Outcome:
    """What came of it, of a dry run as far as it is there.

    Attributes:
        rows: of the manifest.
        failed: rows that were given up.
    """

    rows: int = 0
    failed: int = 0


def run(config: Config) -> Outcome:
    """Renders what is open, closes shards as they fill, and ends with `_SUCCESS`."""
    prepared = prepare(config)
    success = render(prepared)
    if success is None:
        return Outcome()
    store = prepared.store
    shared = prepared.plan.round or prepared.plan.rows > len(prepared.items)
    rows = counted(success.rows, "row" if shared else "video")
    print(f"{rows}, {success.failed} failed: {store.uri(manifest.PARTS[:-1])}")
    if success.failed:
        print(
            f"the reasons are in {store.uri(manifest.FAILURES[:-1])}; the same command with "
            "--retry-failed renders those rows again"
        )
    if not prepared.plan.round and rounds.open_round(store) is not None:
        print("rows are being appended to it, or a retry was stopped: its own command finishes it")
    if not config.dry_run:
        print(f"report: {to_look_at(store, REPORT_KEY)}")
    return Outcome(success.rows, success.failed)


def write_page(store: Store) -> str:
    """Writes the page of a finished job; returns where it is. Raises StoreError."""
    from jobs.render import page  # with PyAV and Pillow

    return page.write_page(store)
