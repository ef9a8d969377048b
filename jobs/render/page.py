"""The page of a render job: what it rendered, how fast, what failed, how to render any row again.

A pure function of the manifest and the videos, so that a resumed job writes the same page. It is
derived and may be replaced; nothing that is committed is. However many rows there are, it holds a
sample of the videos and sums of the rest.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.results import attempts, manifest, rounds
from cluster.results.datasets import dataset
from cluster.results.manifest import at_once
from cluster.store import Store, StoreError
from jobs._shared import pages
from jobs._shared.calibrations import carried_words
from jobs._shared.progress import QUIET_S, counted, duration, progress
from jobs.render.config import REPORT_KEY
from jobs.render.gallery import Chosen, Sample, choose, sample
from jobs.render.settings import schedules_in
from jobs.render.times import STAGES, goodput, known, measures, seconds, stages, throughput

# How many reasons are told, how many items of each, and how many failed attempts are read.
REASONS, NAMED, ATTEMPTS_READ = 12, 3, 500
LONGEST_TEXT = 240


@dataclass(frozen=True)
class Reason:
    """Why something failed, how often, and for which rows, in their users' words."""

    text: str
    count: int
    rows: Sequence[str]


def write_page(store: Store) -> str:
    """Writes the page of a finished job; returns where it is.

    Raises:
        StoreError: the manifest cannot be read, or the page not be written.
    """
    there = manifest.finished(store)
    if there is None:
        raise StoreError(f"{store.uri(manifest.SUCCESS_KEY)} does not exist: finish the job first")
    success = there[1]
    read = dataset.read_parts(store, success)
    parts = progress(read, len(success.parts), "parts", after_s=QUIET_S)
    tried = attempts.recorded(store, ATTEMPTS_READ)
    again = any(map(rounds.round_of, (key for key, _ in success.parts)))
    chosen = choose(parts, success.rows, {item for item, _ in tried}, again)
    failed = [row for key, _ in success.failures for row in manifest.read_part(store, key)]
    spec = rounds.specification(store)
    samples = at_once(lambda row: sample(store, row), [*chosen.worst, *chosen.spread])
    root = store.uri(REPORT_KEY).removesuffix(f"/{REPORT_KEY}")
    page = render_page(root, spec, chosen, samples, failed, tried)
    store.put(REPORT_KEY, page.encode())
    return store.uri(REPORT_KEY)


def render_page(
    root: str,
    spec: Mapping[str, Any],
    chosen: Chosen,
    samples: Sequence[Sample],
    failed: Sequence[Mapping[str, Any]],
    failed_attempts: Sequence[tuple[str, str]],
) -> str:
    """The page as HTML text.

    Args:
        root: of the job, for the commands.
        spec: the content of its job.json.
        chosen: what was read of the manifest.
        samples: the gallery.
        failed: rows that were given up.
        failed_attempts: (item id, reason) of attempts that failed, even if a later one did not.
    """
    rows = chosen.slim
    environment = pages.environment("render")
    environment.filters.update(
        plain=plain, seconds=seconds, size=size, counted=counted, carried=carried_words
    )
    times = np.sort(rows["created_at"].cast(pa.int64()).to_numpy()) / 1e6
    tries = Counter(rows["attempts"].to_pylist())
    schedules = schedules_in(spec)
    names = chosen.names | {row["item_id"]: (row["prompt_id"], row["prompt"]) for row in failed}
    return environment.get_template("render.html").render(
        root=root,
        quoted=shlex.quote(root),
        model=spec["model"],
        arguments=spec["arguments"],
        schedules=schedules,
        rows=rows.num_rows,
        image=not spec["model"]["fps"],
        bytes=int(known(rows["bytes"]).sum()),
        nfe=np.unique(known(rows["nfe"])).astype(int).tolist(),
        busy=duration(sum(known(rows[name]).sum() for name in STAGES)),
        goodput=goodput(rows),
        throughput=throughput(times),
        stages=stages(rows),
        measures=measures(rows),
        retried=sorted((tried, count) for tried, count in tries.items() if tried > 1),
        failed=len(failed),
        given_up=_reasons(((row["item_id"], row["error"]) for row in failed), names),
        attempts_read=len(failed_attempts),
        attempts_more=len(failed_attempts) == ATTEMPTS_READ,
        reasons=_reasons(failed_attempts, names),
        samples=samples,
        worst=len(chosen.worst),
    )


def plain(text: str) -> str:
    """Text of any origin as a page repeats it: one line, printable, not too long."""
    line = "".join(one if one.isprintable() else " " for one in text[: LONGEST_TEXT + 1])
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT].rstrip()}…"


def size(count: int) -> str:
    """Bytes as people say them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _reasons(
    failures: Iterable[tuple[str, str | None]], names: Mapping[str, tuple[str, str]]
) -> list[Reason]:
    """Equal reasons as one, the most frequent first."""
    items: dict[str, list[str]] = {}
    for item, reason in failures:
        items.setdefault(reason or "unknown", []).append(item)
    ordered = sorted(items.items(), key=lambda one: (-len(one[1]), one[0]))
    return [
        Reason(text, len(ids), [_named(item, names) for item in sorted(set(ids))[:NAMED]])
        for text, ids in ordered[:REASONS]
    ]


def _named(item: str, names: Mapping[str, tuple[str, str]]) -> str:
    """A row as its user knows it; by its item's id where it is in no table."""
    if item not in names:
        return f"item {item}"
    prompt_id, prompt = names[item]
    return f"{prompt_id}: {prompt}"
