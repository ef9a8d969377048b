"""Rows appended to a finished root: what a prompts file adds, and the videos that it shares.

A file that begins with the root's rows, in their order, adds those behind them; any other adds all
of its rows. The same file again adds nothing more: its rows are found in the root, and where their
round was stopped it goes on. An item that the root has already is not rendered again: its receipt
is copied to the place of the new rows, and names the same video.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.models.model import Model
from cluster.results import manifest, rounds
from cluster.results.datasets import dataset
from cluster.results.manifest import PARTS, UNREADABLE, Manifest, Success
from cluster.results.parts import EXTRA
from cluster.results.rounds import APPEND, Segment
from cluster.store import Store, StoreError
from cluster.work import spec_differences
from cluster.work.plan import SPEC_KEY, SpecError, WorkItem
from cluster.work.prompts import Prompts, PromptsError
from cluster.work.rows import RowPlan, described, plan_rows
from cluster.work.schedule_table import Chosen, ScheduleTable, setting_key
from meancache.json_values import shown

# What rows that are appended have in common with the root's, besides schedules.
_SETTINGS = ("schema", "kind", "model", "arguments", "shard_size")

Description = Mapping[str, Any]


def appended(
    store: Store,
    prompts: Prompts,
    model: Model,
    arguments: Mapping[str, Any],
    schedule: Chosen = None,
    seeds: int = 1,
) -> RowPlan:
    """The plan of what a prompts file appends, numbered on from the rows that are there.

    Where a row is there already, its plan is the one that it was rendered by.

    Args:
        store: the root.
        prompts: of the file.
        model: what renders them.
        arguments: of the pipeline's call, where a row does not override them.
        schedule: which steps to compute.
        seeds: videos a prompt.

    Raises:
        SpecError: the root is unused, unfinished, an earlier version's, or of other settings.
        PromptsError: the rows have other columns than the root's.
        StoreError: the store failed.
    """
    there = rounds.segments(store)
    if not there:
        raise SpecError(
            f"{store.uri(SPEC_KEY)} does not exist, so there is nothing to append to: leave "
            "--append out, or give the --output of a jobs.render"
        )
    prompts = _with_columns(store, prompts)

    def describe(some: Prompts) -> Description:
        return described(some, model, arguments, schedule, seeds)[2]

    begins = _begins_with(prompts, there, describe, seeds)
    start = sum(segment.rows for segment in begins) // seeds
    found = begins[-1] if begins and start == len(prompts) else None
    if found is not None:  # all of its rows are there
        start -= found.rows // seeds
    planned = plan_rows(prompts.part(start, len(prompts)), model, arguments, schedule, seeds)
    used = _used(schedule, planned.items)
    _check_settings(store, planned.spec, used)
    if found is None:
        found = next((one for one in there if _is(one, planned.spec)), None)
    if found is None:
        success = _finished(store, there)
        if success is None:  # another driver has begun a round since `there` was read
            return appended(store, prompts, model, arguments, schedule, seeds)
        if not begins:
            _check_order(store, success, planned, there[0])
        found = _behind(store, there, planned.spec)
    return _numbered(planned, found, start * seeds, used)


def shared(store: Store, before: Success, items: Sequence[WorkItem]) -> dict[str, str]:
    """Which of some items the root has videos of: the key of the receipt of each, by its id.

    Raises:
        StoreError: a part is damaged.
    """
    ids = pa.array([item.id for item in items], pa.string())
    found: dict[str, str] = {}
    for (key, _), part in zip(before.parts, dataset.read_parts(store, before), strict=True):
        here = Manifest(store, rounds.round_of(key) or 0)
        hits = part.filter(pc.is_in(part["item_id"], ids))
        for row in hits.select(["shard", "item_id"]).to_pylist():
            found.setdefault(row["item_id"], here.receipt_key(row["shard"], row["item_id"]))
    return found


def share(here: Manifest, item: WorkItem, receipt: str) -> None:
    """Commits an item of an append by the video that an earlier receipt names.

    Raises:
        StoreError: that receipt is gone or damaged.
    """
    try:
        row = json.loads(here.store.get(receipt))
        own = {"shard": item.shard, "index": item.index, "prompt_id": item.prompt_id}
        row = {**row, **own}
        if row["item_id"] != item.id:
            raise ValueError
    except UNREADABLE as error:
        raise StoreError(f"{here.store.uri(receipt)} is damaged; see jobs.verify") from error
    here.commit(row)


def _with_columns(store: Store, prompts: Prompts) -> Prompts:
    """The prompts with the root's other columns, in its order and types; those left out are null.

    A root without parts is one that has not begun, or not come to its first shard's end.
    """
    key = next(iter(store.list(PARTS)), None)
    if key is None:
        return prompts
    try:
        fields = list(pq.read_schema(io.BytesIO(store.get(key))))
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{store.uri(key)} is damaged: {error}; see jobs.verify") from error
    fields = [
        field.with_name(field.name.removeprefix(EXTRA))
        for field in fields
        if field.name.startswith(EXTRA)
    ]
    names = [field.name for field in fields]
    for name in prompts.extra.column_names:
        if name not in names:
            raise PromptsError(
                f"--append: the rows of {store.uri(key)} have no column {shown(name)}, and all "
                "parts of a dataset are alike: leave it out, or choose another --output"
            )
    columns = [_column(prompts, field) for field in fields]
    return Prompts(prompts, pa.Table.from_arrays(columns, names=names))


def _column(prompts: Prompts, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in prompts.extra.column_names:
        return pa.chunked_array([pa.nulls(len(prompts), field.type)])
    column = prompts.extra[field.name]
    try:
        if column.null_count < len(column):
            kinds = [pa.schema([(field.name, kind)]) for kind in (field.type, column.type)]
            pa.unify_schemas(kinds, promote_options="permissive")  # no number becomes a text
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise PromptsError(
            f"--append: the column {shown(field.name)} is {field.type} in the root, which these "
            f"rows' {column.type} do not fit ({shown(str(error))}): write them as the root's"
        ) from None


def _begins_with(
    prompts: Prompts,
    there: Sequence[Segment],
    describe: Callable[[Prompts], Description],
    seeds: int,
) -> list[Segment]:
    """The segments of a root that the prompts begin with, one behind the other."""
    found: list[Segment] = []
    start = 0
    for segment in there:
        stop = start + segment.rows // seeds
        if segment.rows % seeds or stop > len(prompts):
            break
        if not _is(segment, describe(prompts.part(start, stop))):
            break
        found.append(segment)
        start = stop
    return found


def _is(segment: Segment, spec: Description) -> bool:
    """Whether the rows of a specification are those of a segment."""
    return (segment.rows, segment.digest) == (spec["rows"], spec["prompts"])


def _used(schedule: Chosen, items: Sequence[WorkItem]) -> list[dict[str, Any]]:
    """The schedules that items run."""
    if schedule is None:
        return []
    if not isinstance(schedule, ScheduleTable):
        return [schedule.to_json()]
    settings = {id(item.arguments): item.arguments for item in items}.values()
    keys = dict.fromkeys(map(setting_key, settings))
    return ScheduleTable({key: schedule.schedules[key] for key in keys}).to_json()


def _check_settings(store: Store, spec: Description, used: Sequence[Mapping[str, Any]]) -> None:
    """Refuses rows of another model, other arguments or other schedules than the root's."""
    root = _specification(store)
    there, here = ({name: one.get(name) for name in _SETTINGS} for one in (root, spec))
    differences = "" if there == here else spec_differences.named(there, here)
    if not differences:
        differences = _other_schedules(root, used)
    if differences:
        raise SpecError(
            f"{store.uri(SPEC_KEY)} has other settings than these rows: {differences}. Rows are "
            "appended with the root's settings: repeat its arguments, or choose another --output"
        )


def _specification(store: Store) -> dict[str, Any]:
    try:
        return rounds.specification(store)
    except UNREADABLE:
        raise SpecError(f"{store.uri(SPEC_KEY)} is damaged; use another --output") from None


def _other_schedules(root: Description, used: Sequence[Mapping[str, Any]]) -> str:
    """In what the schedules differ from the root's: only a new setting may have a new one."""
    single = root.get("schedule")
    table = [one for one in root.get("schedules") or [] if isinstance(one, dict)]
    known = [*([single] if isinstance(single, dict) else []), *table]
    ids = {one.get("id") for one in known}
    new = [one for one in used if one["id"] not in ids]
    if not new and bool(known) == bool(used):
        return ""
    if not known or not used:
        there, here = ((some or [None])[0] for some in (known, used))
        return spec_differences.named({"schedule": there}, {"schedule": here})
    for one in new:
        same = [other for other in known if _setting(other) == _setting(one)]
        budgets = {other.get("budget") for other in known}
        origins = {_origin(other) for other in table}
        if same or budgets != {one["budget"]} or (origins and _origin(one) not in origins):
            other = (same or known)[0]
            return spec_differences.named({"schedule": other}, {"schedule": one})
    return ""


def _setting(schedule: Mapping[str, Any]) -> tuple[Any, Any]:
    return schedule.get("grid"), schedule.get("conditions")


def _origin(schedule: Mapping[str, Any]) -> Any:
    """The id of the calibration that a schedule comes from."""
    calibration = schedule.get("calibration")
    return calibration.get("graph") if isinstance(calibration, dict) else None


def _finished(store: Store, there: Sequence[Segment]) -> Success | None:
    """What the root has; None where its segments are no longer those of `there`.

    Raises:
        SpecError: it is not finished, so that nothing can be appended.
        StoreError: the store failed, or the rows are not those that the manifest has.
    """
    uri = store.uri(SPEC_KEY)
    done = manifest.finished(store)
    now_open = rounds.open_round(store)
    if rounds.segments(store) != there:  # read last: what is finished or open was in `there`
        return None
    if done is None:
        raise SpecError(
            f"the job of {uri} is not finished: run the command that began it until it is, and "
            "append then"
        )
    if now_open is not None:
        what = "an append to" if now_open[1] == APPEND else "--retry-failed of"
        raise SpecError(
            f"{what} the job of {uri} is not finished: run its command again until it is, and "
            "append then"
        )
    rows, known = sum(segment.rows for segment in there), done[1].rows + done[1].failed
    if rows != known:
        raise StoreError(
            f"{uri} and what was appended say {rows} rows, {store.uri(done[0].success_key)} "
            f"{known}: see jobs.verify"
        )
    return done[1]


def _check_order(store: Store, success: Success, planned: RowPlan, root: Segment) -> None:
    """Refuses a file that has all of the root's rows, but not at its beginning."""
    if planned.rows < root.rows or not success.rows:
        return
    asked = pa.array(f"{item.id} {own}" for item in planned.items for _, own in item.rows)
    for part in dataset.read_parts(store, success):
        began = part.filter(pc.field("index") < root.rows)
        keys = pc.binary_join_element_wise(began["item_id"], began["prompt_id"], " ")
        if not pc.all(pc.is_in(keys, asked), min_count=0).as_py():
            return
    raise SpecError(
        f"the rows of {store.uri(SPEC_KEY)} are all in --prompts, but not at its beginning in "
        "their order and with their other columns, so that they would all be appended once more: "
        "put the new rows behind them, or give the new rows alone"
    )


def _behind(store: Store, there: Sequence[Segment], spec: Description) -> Segment:
    """The place of new rows."""
    last = there[-1]
    done = manifest.finished(store)
    return Segment(
        round=1 + (done[0].retry_round if done else 0),
        rows=spec["rows"],
        digest=spec["prompts"],
        first_row=last.first_row + last.rows,
        first_shard=last.first_shard + last.shards,
    )


def _numbered(
    planned: RowPlan, found: Segment, passed: int, used: Sequence[Mapping[str, Any]]
) -> RowPlan:
    """The plan at its place in the root."""
    if found.round == 0:
        return planned
    first, shard = found.first_row, found.first_shard
    items = [
        replace(
            item,
            index=item.index + first,
            shard=item.shard + shard,
            also=tuple((index + first, own) for index, own in item.also),
        )
        for item in planned.items
    ]
    spec = {
        "schema": rounds.SCHEMA,
        "kind": APPEND,
        "first_row": first,
        "first_shard": shard,
        **{name: planned.spec[name] for name in ("rows", "items", "plan", "prompts")},
        **({"schedules": list(used)} if "schedules" in planned.spec else {}),
    }
    return RowPlan(items, planned.beside, spec, found.round, first, passed)
