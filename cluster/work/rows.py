"""The rows of a render job: which item each is a row of, what is beside it, and their identity.

Ids, order and other columns belong to the rows and are part of what the root's job is; the pixels
are the items'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.models.model import Model
from cluster.models.prompt_tokens import count_tokens, limit_of
from cluster.store import MissingKey, Store
from cluster.work import plan
from cluster.work.pictures import COLUMNS as IMAGES
from cluster.work.plan import SpecError, WorkItem, plan_items, specification
from cluster.work.prompts import Prompts
from cluster.work.schedule_table import Chosen

SPEC_SCHEMA = 2
EXTRA = "extra."
TOKENS = ("prompt_tokens", "prompt_tokens_used")
_BATCH = 10_000


@dataclass(frozen=True)
class RowPlan:
    """What a render job does, and what its manifest will hold.

    Attributes:
        items: what is rendered, in the order of their first rows.
        beside: a row for each row of the manifest, by index: `extra.NAME` columns and those of
            tokens; None in a root that was begun without them.
        spec: what job.json holds, or job.r{n}.json where the rows are appended to others.
        round: 0, or which round of the root appends them.
        first: the index of the first of them.
        passed: rows of the prompts before them, which the root has already.
    """

    items: list[WorkItem]
    beside: pa.Table | None
    spec: Mapping[str, Any]
    round: int = 0
    first: int = 0
    passed: int = 0

    @property
    def rows(self) -> int:
        """Rows of the manifest."""
        return sum(1 + len(item.also) for item in self.items)

    def truncated(self) -> list[tuple[str, int, int]]:
        """(prompt_id, tokens, how many of them are read) of each row that is not read whole."""
        if self.beside is None:
            return []
        tokens, used = (self.beside[name].to_numpy() for name in TOKENS)
        long = set((np.flatnonzero(tokens > used) + self.first).tolist())
        if not long:
            return []
        return [
            (prompt_id, int(tokens[index - self.first]), int(used[index - self.first]))
            for item in self.items
            for index, prompt_id in item.rows
            if index in long
        ]

    @property
    def earlier(self) -> bool:
        """Whether an earlier version began the root, whose parts are of another schema."""
        return self.beside is None


def plan_rows(
    prompts: Prompts,
    model: Model,
    arguments: Mapping[str, Any],
    schedule: Chosen = None,
    seeds: int = 1,
) -> RowPlan:
    """The plan of a render job; arguments as those of `plan_items`."""
    items, others, spec = described(prompts, model, arguments, schedule, seeds)
    beside = _tokens(prompts, model, arguments)
    if seeds > 1:
        beside = beside.take(_each(prompts, seeds))
    for field in others.schema:
        beside = beside.append_column(field, others[field.name])
    return RowPlan(items, beside, spec)


def described(
    prompts: Prompts,
    model: Model,
    arguments: Mapping[str, Any],
    schedule: Chosen = None,
    seeds: int = 1,
) -> tuple[list[WorkItem], pa.Table, dict[str, Any]]:
    """Items, the rows' images and other columns, and what job.json says of all of it."""
    items = plan_items(prompts, model, arguments, schedule, seeds)
    extra = prompts.extra.rename_columns([EXTRA + name for name in prompts.extra.column_names])
    own = {name: extra[name] for name in extra.column_names}
    others = pa.table({**_images(prompts), **own})
    if seeds > 1 and others.column_names:
        others = others.take(_each(prompts, seeds))
    spec = {
        **specification("render", items, model, arguments, schedule),
        "schema": SPEC_SCHEMA,
        "rows": len(prompts) * seeds,
        "prompts": _digest(items, others),
        "extra": {field.name.removeprefix(EXTRA): str(field.type) for field in extra.schema},
    }
    return items, others, spec


def _each(prompts: Prompts, seeds: int) -> pa.Array:
    """The places of the prompts, each as often as it has seeds."""
    return pa.array(np.repeat(np.arange(len(prompts)), seeds))


def _images(prompts: Prompts) -> dict[str, pa.Array]:
    """What the manifest says of the rows' images; no column where no row has one."""
    given = [one.image for one in prompts]
    if not any(given):
        return {}
    values = [
        (None, None, None) if one is None else (one.uri, one.key, one.sha256) for one in given
    ]
    columns = [pa.array(column, pa.string()) for column in zip(*values, strict=True)]
    return dict(zip(IMAGES, columns, strict=True))


def _tokens(prompts: Prompts, model: Model, arguments: Mapping[str, Any]) -> pa.Table:
    """TOKENS of each prompt: how many it has and how many of them are read, where that is known."""
    limit = limit_of(model, arguments)
    counts = None if limit is None else count_tokens(model, (one.prompt for one in prompts))
    if limit is None or counts is None:
        columns = [pa.nulls(len(prompts), pa.int32())] * 2
    else:
        all_of_it = np.fromiter(counts, np.int32, len(prompts))
        columns = [pa.array(all_of_it), pa.array(np.minimum(all_of_it, np.int32(limit)))]
    return pa.table(columns, names=list(TOKENS))


def as_begun(
    store: Store,
    planned: RowPlan,
    prompts: Prompts,
    model: Model,
    arguments: Mapping[str, Any],
    schedule: Chosen = None,
) -> RowPlan:
    """The plan as the root's job has it: one that an earlier version began has a row an item.

    In such a root a row that repeats another, seed and all, is no row of the manifest, and a line
    that is repeated without a seed asks for the video of the first.

    Raises:
        SpecError: it is an earlier version's, and the prompts have other columns.
        StoreError: the store failed.
    """
    try:
        there = json.loads(store.get(plan.SPEC_KEY))
    except (MissingKey, ValueError, RecursionError):
        return planned
    if not isinstance(there, dict) or there.get("schema") != plan.SPEC_SCHEMA:
        return planned
    if planned.spec["extra"]:
        raise SpecError(
            f"{store.uri(plan.SPEC_KEY)} was begun by an earlier version, whose manifests have no "
            f"other columns of the prompts file: leave {', '.join(planned.spec['extra'])} out, or "
            "choose another --output"
        )
    items = plan_items(
        [prompt for prompt in prompts if not prompt.repetition], model, arguments, schedule
    )
    items = [replace(item, index=index, also=()) for index, item in enumerate(items)]
    return RowPlan(items, None, specification("render", items, model, arguments, schedule))


def _digest(items: Sequence[WorkItem], others: pa.Table) -> str:
    """A hash over whose row each row is, its id, and its other columns."""
    digest = hashlib.sha256()
    for item in items:
        for index, prompt_id in item.rows:
            digest.update(json.dumps([index, item.id, prompt_id]).encode())
    for name in others.column_names:
        digest.update(json.dumps([name, str(others.schema.field(name).type)]).encode())
        for batch in others.select([name]).to_batches(_BATCH):
            lines = "".join(f"{value!r}\n" for value in _values(batch.column(0)))
            digest.update(lines.encode())
    return digest.hexdigest()


def _values(column: pa.Array) -> list[Any]:
    """Python values; of times their numbers, as Python's have fewer digits than some."""
    if pa.types.is_temporal(column.type):
        width = pa.int32() if column.type.bit_width == 32 else pa.int64()
        column = column.cast(width)
    return column.to_pylist()
