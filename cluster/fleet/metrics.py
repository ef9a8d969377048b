"""What a gang's leader tells Prometheus of each item it has committed.

Through Ray: every node of a cluster serves them at its metrics port, with `ray_` before the names
here and `_total` after those of counters. One instance a process, since Ray adds up by process.
Knows rows of a manifest, and nothing of how they came about.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from cluster.results.manifest import stage_seconds


class ItemMetrics:
    """Counts the items of this process; `of_this_process` returns the one that there is.

    Leaders have several items in flight at once, so threads may share it.
    """

    def __init__(self) -> None:
        self._items = Counter(
            "meancache_items", "Items committed, by status: ok or failed", ("status",)
        )
        self._retries = Counter("meancache_retries", "Attempts beyond the first at these items")
        self._forwards = Counter("meancache_forwards", "Forwards of the transformer in ok items")
        # No histogram: Ray exports its sums rounded to the middles of its buckets.
        self._stages = Counter(
            "meancache_stage_seconds", "Seconds of each stage of ok items", ("stage",)
        )
        self._goodput = Gauge(
            "meancache_goodput",
            "Share of a gang's time at ok items that forwards take at their fastest",
        )
        self._swaps = Counter(
            "meancache_adapter_swaps", "Times that a gang changed its LoRA adapters for an item"
        )
        self._store_retries = Counter(
            "meancache_store_retries", "Requests to the store that had to be repeated"
        )
        self._lock = threading.Lock()
        self._ideal_s = self._gang_s = 0.0
        self._repeated = 0

    def record(self, row: Mapping[str, Any], store_retries: int) -> None:
        """Counts an item that this process has committed.

        Args:
            row: as its receipt holds it.
            store_retries: `Store.retries` of the item's store, which only grows.
        """
        seconds = stage_seconds(row)
        with self._lock:
            for stage, taken in seconds.items():
                _add(self._stages, taken, stage=stage)
            _add(self._retries, row["attempts"] - 1)
            _add(self._forwards, row["nfe"] or 0)
            _add(self._swaps, row.get("adapter_swaps", 0))
            _add(self._store_retries, store_retries - self._repeated)
            self._repeated = max(store_retries, self._repeated)
            self._ideal_s += seconds.get("ideal", 0.0)
            self._gang_s += seconds.get("gang", 0.0)
            if self._gang_s:
                self._goodput.set(self._ideal_s / self._gang_s)
            self._items.inc(tags={"status": row["status"]})


@functools.cache
def of_this_process() -> ItemMetrics:
    """The process's own counts, from its first item on."""
    return ItemMetrics()


def record(row: Mapping[str, Any], store_retries: int) -> None:
    """Counts an item of this process; a `delivery.Committed`."""
    of_this_process().record(row, store_retries)


def _add(counter: Counter, value: float, **tags: str) -> None:
    if value > 0:  # Ray refuses to add nothing
        counter.inc(value, tags=tags)
