"""Renders what is open, closes shards as they fill, and ends with `_SUCCESS` and a page."""

from __future__ import annotations

import secrets
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.fleet import driver as fleet
from cluster.fleet import metrics
from cluster.fleet.delivery import Delivery
from cluster.results import manifest
from cluster.results.manifest import Manifest, Success
from cluster.work import plan
from cluster.work.plan import WorkItem
from jobs._shared.progress import progress
from jobs.render.announcement import announce
from jobs.render.page import REPORT_KEY, write_page
from jobs.render.request import Prepared


def render(prepared: Prepared) -> Success | None:
    """Finishes the job; None of a dry run that is not finished."""
    store, items, config = prepared.store, prepared.items, prepared.config
    there = manifest.finished(store)
    if there is None:
        return _render(prepared, Manifest(store), items)
    last, success = there
    if config.retry_failed and success.failed:
        failed = manifest.failed_ids(store, success)
        again = [item for item in items if item.id in failed]
        return _render(prepared, Manifest(store, last.healing + 1), again, success)
    announce(prepared, items, [])
    if not (config.dry_run or store.exists(REPORT_KEY)):
        write_page(store)
    return success


def _render(
    prepared: Prepared,
    here: Manifest,
    items: Sequence[WorkItem],
    before: Success | None = None,
) -> Success | None:
    """Renders those of `items` that have no receipt here; None where nothing was to be done yet."""
    missing = here.open_shards(items)
    todo = [item for members in missing.values() for item in members]
    announce(prepared, items, todo)
    if prepared.config.dry_run:
        return None
    if todo:
        fleet.on_a_worker(partial(here.store.exists, plan.SPEC_KEY))
    plan.freeze(here.store, prepared.spec)
    shards = manifest.by_shard(items)
    left = Counter({shard: len(members) for shard, members in missing.items()})
    for shard in missing:
        if not left[shard]:  # a driver that was killed filled it and did not close it
            here.close_shard(shard, shards[shard])
    work = Delivery(here, prepared.model, prepared.schedule, prepared.config.audit, metrics.record)
    # Two drivers of one root meet as late as they can when each begins somewhere else.
    first = secrets.randbelow(len(todo)) if todo else 0
    tally = _Tally()
    with closing(
        fleet.run(work, todo[first:] + todo[:first], prepared.gangs, work.lost, tally.staffed)
    ) as results:
        for row in progress(results, len(todo), "videos", also=lambda: str(tally)):
            tally.add(row)
            if row["status"] == manifest.FAILED:
                print(f"\nfailed: {row['item_id']}: {row['error']}", file=sys.stderr)
            left[row["shard"]] -= 1
            if not left[row["shard"]]:
                here.close_shard(row["shard"], shards[row["shard"]])
    if tally.gang_s:
        print(f"goodput: {tally.goodput:.0%} of the gangs' time was denoising")
    success = here.finish(shards, before)
    print(f"report: {write_page(here.store)}")
    return success


@dataclass
class _Tally:
    """What has come so far, of this run of the job."""

    gangs: int = 0
    failed: int = 0
    denoise_s: float = 0.0
    gang_s: float = 0.0

    @property
    def goodput(self) -> float:
        """Share of the gangs' time in the denoising loop."""
        return self.denoise_s / self.gang_s

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts a row."""
        self.failed += row["status"] == manifest.FAILED
        self.denoise_s += row["metrics"].get("denoise_s", 0.0)
        self.gang_s += row["metrics"].get("gang_s", 0.0)

    def staffed(self, gangs: int) -> None:
        """Takes note of how many gangs there are."""
        self.gangs = gangs

    def __str__(self) -> str:
        gangs = f", {self.gangs} gang{'s' * (self.gangs > 1)}" if self.gangs else ""
        goodput = f", goodput {self.goodput:.0%}" if self.gang_s else ""
        return gangs + goodput + (f", {self.failed} failed" if self.failed else "")
