"""Audits in production: of a share of the items, how close the delivered video is to the full run.

Which items is a matter of their ids alone, so every driver, and every attempt, agrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from cluster.results.datasets import dataset
from cluster.results.manifest import PARTS, at_once
from cluster.results.parts import METRIC, first_of_each_item
from cluster.store import Store
from meancache.quality import MOST_DECIBELS, psnr, ssim

PSNR, SSIM = METRIC + "psnr", METRIC + "ssim"


@dataclass(frozen=True)
class Audit:
    """One audited row of a manifest.

    Attributes:
        item_id: of its video, which rows of several parts may share.
        schedule_id: what its video was rendered with.
        created_at: when, UTC.
        psnr: dB against the full run from the same noise.
        ssim: likewise.
    """

    item_id: str
    schedule_id: str
    created_at: datetime
    psnr: float
    ssim: float


def is_chosen(item_id: str, share: float) -> bool:
    """Whether an item is one of the `share` that are audited; ids are hashes, so a fair draw."""
    return int(item_id[:8], 16) < share * 16**8


def fidelity(frames: np.ndarray, full: np.ndarray) -> dict[str, float]:
    """What an audit adds to a row's metrics: psnr in dB and ssim, both (F, H, W, 3) uint8."""
    # A receipt is JSON, which has no infinity.
    return {"psnr": min(psnr(frames, full), MOST_DECIBELS), "ssim": ssim(frames, full)}


def read_audits(store: Store) -> list[Audit]:
    """The audited rows of a render root's manifest, by the time of their rendering.

    Raises:
        StoreError: a part cannot be read.
    """
    parts = at_once(lambda key: _of_part(store, key), list(store.list(PARTS)))
    audits = {one.item_id: one for part in reversed(parts) for one in part}
    return sorted(audits.values(), key=lambda one: one.created_at)


def _of_part(store: Store, key: str) -> list[Audit]:
    found = []
    table = first_of_each_item(dataset.read_table(store, key, store.get(key)))
    if not {PSNR, SSIM} <= set(table.column_names):
        return []
    columns = ["item_id", "schedule_id", "created_at", PSNR, SSIM]
    for row in table.select(columns).to_pylist():
        if None not in (row["schedule_id"], row[PSNR], row[SSIM]):
            found.append(Audit(*row.values()))
    return found
