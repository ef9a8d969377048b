"""Renders what is open, closes shards as they fill, and ends with `_SUCCESS` and a page."""

from __future__ import annotations

import secrets
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from threading import Thread
from typing import Any

from cluster.fleet.beginning import begin
from cluster.fleet.delivery import Delivery
from cluster.results import manifest, rounds
from cluster.results.appending import share, shared
from cluster.results.manifest import Manifest, Success
from cluster.results.parts import SCHEMA, SCHEMA_1
from cluster.store import Store
from cluster.work import pictures, plan
from cluster.work.adapters import grouped
from cluster.work.plan import WorkItem
from cluster.work.rows import TOKENS, RowPlan
from jobs._shared.progress import QUIET_S, Staffing, counted, progress
from jobs.render.announcement import announce
from jobs.render.config import REPORT_KEY
from jobs.render.request import Prepared
from meancache.json_values import canonical_json, shown

# Shards whose items are sorted together where several go into one forward.
TOGETHER = 16
# Below this share of goodput its sentence says where the rest went.
LOW = 0.8


def render(prepared: Prepared) -> Success | None:
    """Finishes the job; None of a dry run that is not finished."""
    store, items, config = prepared.store, prepared.items, prepared.config
    there = manifest.finished(store)
    if there is None:
        return _render(prepared, Manifest(store), items)
    last, success = there
    number = prepared.plan.round
    if number > last.retry_round:
        return _render(prepared, Manifest(store, number), items, success)
    if number:
        rounds.begin(store, number, prepared.spec)  # which finds it, if it is this one
    failed = manifest.failed_items(store, success) if config.retry_failed else set()
    again = [item for item in items if (item.shard, item.id) in failed]
    if again:
        retry = Manifest(store, last.retry_round + 1)
        return _render(prepared, retry, again, success, rounds.retry(number))
    announce(prepared, items, [])
    if not (config.dry_run or store.exists(REPORT_KEY)):
        _write_page(store)
    return success


def _render(
    prepared: Prepared,
    here: Manifest,
    items: Sequence[WorkItem],
    before: Success | None = None,
    says: Mapping[str, Any] | None = None,
) -> Success | None:
    """Renders those of `items` that have no receipt here; None where nothing was to be done yet.

    Args:
        prepared: the request.
        here: the round.
        items: of it.
        before: what the rounds before it came to.
        says: what the round says of itself, where that is not the plan's specification.
    """
    planned = prepared.plan
    missing = here.open_shards(items)
    todo = [item for members in missing.values() for item in members]
    held = shared(here.store, before, todo) if before and says is None and todo else {}
    todo = [item for item in todo if item.id not in held]
    announce(prepared, items, todo, len(held))
    if prepared.config.dry_run:
        return None
    if todo:
        begin(prepared.gangs)
        Thread(target=import_module, args=("jobs.render.page",), daemon=True).start()  # meanwhile
    from cluster.fleet import driver as fleet  # with Ray
    from cluster.fleet import metrics

    _freeze(here, before, says, prepared.spec)
    _keep_images(prepared)
    prepared.adapters.keep(here.store)
    missing = _share(here, missing, held)
    shards = manifest.by_shard(items)
    schema = SCHEMA_1 if planned.earlier else SCHEMA  # all parts of a dataset are alike
    close = partial(here.close_shard, beside=planned.beside, schema=schema, first=planned.first)
    left = Counter({shard: len(members) for shard, members in missing.items()})
    for shard in missing:
        if not left[shard]:  # a driver that was killed filled it and did not close it
            close(shard, shards[shard])
    work = Delivery(here, prepared.model, prepared.schedule, prepared.config.audit, metrics.record)
    # Two drivers of one root meet as late as they can when each begins somewhere else.
    first = secrets.randbelow(len(todo)) if todo else 0
    staffing, tally = Staffing(), _Tally()
    todo = _ordered(prepared, todo[first:] + todo[:first])
    with closing(
        fleet.run(work, todo, prepared.gangs, work.lost, staffing.staffed, here.store)
    ) as results:
        for row in progress(results, len(todo), "videos", also=lambda: f"{staffing}{tally}"):
            tally.add(row)
            if row["status"] == manifest.FAILED:
                print(f"\nfailed: {named(row)}: {row['error']}", file=sys.stderr)
            left[row["shard"]] -= 1
            if not left[row["shard"]]:
                close(row["shard"], shards[row["shard"]])
    tally.say()
    success = here.finish(shards, before)
    _write_page(here.store)
    return success


def _ordered(prepared: Prepared, todo: list[WorkItem]) -> list[WorkItem]:
    """What is handed out, in an order that spares gangs changes and fills their batches."""
    if prepared.config.fleet.batch == 1:
        return grouped(todo)
    return grouped(todo, _alike(prepared.plan), TOGETHER)


def _alike(planned: RowPlan) -> Callable[[WorkItem], tuple[str, int]]:
    """What items have in common that can go into one forward: their settings, and about how long
    their texts are."""
    tokens = None if planned.beside is None else planned.beside[TOKENS[1]].to_pylist()

    def key(item: WorkItem) -> tuple[str, int]:
        length = None if tokens is None else tokens[item.index - planned.first]
        return canonical_json(item.arguments).decode(), length or 0

    return key


def _freeze(
    here: Manifest,
    before: Success | None,
    says: Mapping[str, Any] | None,
    spec: Mapping[str, Any],
) -> None:
    """Writes what this round is, the first that a job leaves in its root."""
    if before is None:
        plan.freeze(here.store, spec)
    else:
        rounds.begin(here.store, here.retry_round, says or spec)


def _share(
    here: Manifest, missing: Mapping[int, list[WorkItem]], held: Mapping[str, str]
) -> dict[int, list[WorkItem]]:
    """Commits the items whose videos are there, by their receipts; returns what is missing then."""
    found = [item for members in missing.values() for item in members if item.id in held]
    manifest.at_once(lambda item: share(here, item, held[item.id]), found)
    return {
        shard: [item for item in members if item.id not in held]
        for shard, members in missing.items()
    }


def _keep_images(prepared: Prepared) -> None:
    """Copies the rows' images under the root, where leaders find them."""
    images = [one.image for one in prepared.prompts if one.image is not None]
    if images:
        shown_ = partial(progress, what="images", after_s=QUIET_S)
        pictures.keep(prepared.store, images, prepared.prompts.files, shown_)


def _write_page(store: Store) -> None:
    from jobs.render.page import write_page  # with PyAV and Pillow, which no start waits for

    write_page(store)


def named(row: Mapping[str, Any]) -> str:
    """A row as its user knows it: by prompt_id and prompt."""
    return f"prompt_id {shown(row['prompt_id'])}, {shown(row['prompt'])} (item {row['item_id']})"


@dataclass
class _Tally:
    """What has come so far, of this run of the job."""

    failed: int = 0
    rendered: int = 0
    ideal_s: float = 0.0
    gang_s: float = 0.0
    swaps: int = 0
    batches: float = 0.0

    @property
    def goodput(self) -> str:
        """The share of the gangs' time that forwards take at their fastest, in a sentence."""
        share = self.ideal_s / self.gang_s
        rest = "; the rest was waiting, and what ran beside the forwards" if share < LOW else ""
        each = self.gang_s / max(1, self.rendered), self.ideal_s / max(1, self.rendered)
        return (
            f"goodput: {share:.0%} of the gangs' time was forwards at their fastest, "
            f"{each[1]:.2f} of {each[0]:.2f} s a video{rest}"
        )

    def say(self) -> None:
        """Prints what is worth it at the end."""
        if self.gang_s:
            print(self.goodput)
        if self.swaps:
            print(f"adapters: gangs changed them {counted(self.swaps, 'time')}")
        if 0 < self.batches < self.rendered:
            print(f"batches: {self.rendered / self.batches:.1f} images a forward")

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts a row."""
        self.failed += row["status"] == manifest.FAILED
        self.rendered += row["status"] == manifest.OK
        self.swaps += row.get("adapter_swaps") or 0
        if row["status"] == manifest.OK:
            self.batches += 1 / row.get("batch", 1)
        self.ideal_s += row["metrics"].get("ideal_s", 0.0)
        self.gang_s += row["metrics"].get("gang_s", 0.0)

    def __str__(self) -> str:
        return f", {self.failed} failed" if self.failed else ""
