"""What a render job will do: its frozen specification and its items in their frozen order.

The same command always makes the same plan, so an item's id, shard and place need no database:
they are computed again on every start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.media.picture import Picture
from cluster.models.adapter_names import LORA
from cluster.models.model import Model, ModelError
from cluster.store import AlreadyExists, MissingKey, Store
from cluster.work import spec_differences
from cluster.work.pictures import IMAGE, check_images
from cluster.work.prompts import Prompt, PromptsError, stable_seed
from cluster.work.schedule_table import Chosen, ScheduleTable, schedule_of
from meancache import Schedule
from meancache.errors import InputError
from meancache.json_values import canonical_json, is_deep

SPEC_KEY = "job.json"
SPEC_SCHEMA = 1
SHARD_SIZE = 250
_BATCH = 10_000
# What says of a render which rows it has.
_ROWS = {"items", "rows", "plan", "prompts", "extra"}


class SpecError(InputError):
    """A root belongs to another job; the message says in what they differ and what to do."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One video to render. There may be a million of them: slots, and arguments that are shared.

    Attributes:
        index: of its row, from 0; of the first of its rows, where several ask for its pixels.
        shard: its place among the items // SHARD_SIZE.
        id: 32 hex digits over all that decides the pixels.
        prompt_id: the row's.
        prompt: the text.
        seed: of the noise.
        arguments: of the pipeline's call, complete.
        also: (index, prompt_id) of the other rows that ask for its pixels.
        image: what it is drawn from, beside its text.
    """

    index: int
    shard: int
    id: str
    prompt_id: str
    prompt: str
    seed: int
    arguments: Mapping[str, Any]
    also: tuple[tuple[int, str], ...] = ()
    image: Picture | None = None

    @property
    def call(self) -> Mapping[str, Any]:
        """What the pipeline is called with: adapters are on its transformers, an image is not."""
        call = {name: value for name, value in self.arguments.items() if name != LORA}
        return call if self.image is None else {**call, IMAGE: self.image}

    @property
    def rows(self) -> tuple[tuple[int, str], ...]:
        """(index, prompt_id) of every row that asks for its pixels."""
        return ((self.index, self.prompt_id), *self.also)


def item_id(
    model: Model,
    prompt: str,
    seed: int,
    arguments: Mapping[str, Any],
    schedule: Schedule | None = None,
    image: Picture | None = None,
) -> str:
    """First 32 hex digits of sha256 over the canonical JSON of what decides the pixels."""
    decides: dict[str, Any] = {
        "model": model.key,
        "dtype": model.dtype,
        "schedule": None if schedule is None else schedule.id,
        "prompt": prompt,
        "seed": seed,
        "arguments": dict(arguments),
    }
    if model.kind.tiling and model.decodes_in_tiles(arguments):
        decides["tiling"] = dict(model.kind.tiling)  # where tiles meet
    if image is not None:
        decides["image"] = image.identity
    return hashlib.sha256(canonical_json(decides)).hexdigest()[:32]


def plan_items(
    prompts: Sequence[Prompt],
    model: Model,
    arguments: Mapping[str, Any],
    schedule: Chosen = None,
    seeds: int = 1,
) -> list[WorkItem]:
    """The items of a job: every prompt `seeds` times, in file order.

    Each row is a row of one item, and rows that ask for the same pixels share theirs.

    Args:
        prompts: rows of the prompts file.
        model: what renders them.
        arguments: the call's, where a row does not override them.
        schedule: which steps to compute, for all items or by their setting; None computes all.
        seeds: videos a prompt. A row's own seed is the first of them.

    Raises:
        PromptsError: rows have images and the model takes none, or the other way round.
    """
    check_images(prompts, model)
    items: list[WorkItem] = []
    for prompt in prompts:
        merged = overridden(arguments, prompt.overrides)
        computed_by = schedule_of(schedule, merged)
        for number in range(seeds):
            own = prompt.seed
            seed = stable_seed(prompt.prompt_id, number) if own is None else own + number
            identity = item_id(model, prompt.prompt, seed, merged, computed_by, prompt.image)
            items.append(
                WorkItem(
                    index=len(items),
                    shard=len(items) // SHARD_SIZE,
                    id=identity,
                    prompt_id=prompt.prompt_id,
                    prompt=prompt.prompt,
                    seed=seed,
                    arguments=merged,
                    image=prompt.image,
                )
            )
    return _merged(items)


def overridden(arguments: Mapping[str, Any], overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a row's call; the job's own where the row overrides nothing."""
    if not overrides:
        return arguments
    merged = {**arguments, **overrides}
    if not merged.get(LORA):  # of a row that wants none of the job's
        merged.pop(LORA, None)
    return merged


def _merged(rows: list[WorkItem]) -> list[WorkItem]:
    """The items of rows, of which several may be of one item."""
    # In Arrow, where a million ids take a tenth of what a dictionary of them does.
    places = pa.array(bytes.fromhex(row.id) for row in rows).dictionary_encode()
    if len(places.dictionary) == len(rows):
        return rows
    items: list[WorkItem] = []
    also: dict[int, list[tuple[int, str]]] = {}
    for row, place in zip(rows, places.indices.to_pylist(), strict=True):
        if place < len(items):
            also.setdefault(place, []).append((row.index, row.prompt_id))
        else:
            items.append(replace(row, shard=place // SHARD_SIZE))
    for place, others in also.items():
        items[place] = replace(items[place], also=tuple(others))
    return items


def check_one_setting(
    items: Sequence[WorkItem], arguments: Mapping[str, Any], images: bool = False
) -> None:
    """Refuses items that differ in more than prompt and seed, where they are to be one sample.

    Args:
        items: of a job.
        arguments: of its call.
        images: whether the job takes rows with images.

    Raises:
        PromptsError: two items have the same prompt_id and seed, or have images that the job does
            not take.
        ModelError: a row overrides an argument of the pipeline's call.
    """
    if not images and any(item.image is not None for item in items):
        raise PromptsError(
            "this job takes no images: calibrate on them with jobs.calibrate, and give its "
            "calibration.parquet to jobs.render --calibration"
        )
    keys: set[tuple[str, int]] = set()
    for item in items:
        if (key := (item.prompt_id, item.seed)) in keys:
            raise PromptsError(
                f"two prompts have the prompt_id {item.prompt_id!r} and the seed {item.seed}, by "
                "which this job tells trajectories apart: give them ids or seeds of their own"
            )
        keys.add(key)
        if item.arguments != arguments:
            raise ModelError(
                f"prompt {item.prompt_id!r} overrides pipeline arguments; this job takes "
                "trajectories of one setting, so give them as flags for all prompts"
            )


def specification(
    kind: str,
    items: Sequence[WorkItem],
    model: Model,
    arguments: Mapping[str, Any],
    schedule: Chosen = None,
) -> dict[str, Any]:
    """The frozen description of a job: what `job.json` holds.

    Args:
        kind: 'render', 'calibrate' or 'evaluate'.
        items: the plan; kept as its length and the hash of its ids in order.
        model: what runs.
        arguments: of the pipeline's call.
        schedule: embedded whole, so that the root explains itself; those of a table as `schedules`.
    """
    return {
        "schema": SPEC_SCHEMA,
        "kind": kind,
        "model": {**model.key, "dtype": model.dtype, "fps": model.fps},
        "arguments": dict(arguments),
        "schedule": schedule.to_json() if isinstance(schedule, Schedule) else None,
        **({"schedules": schedule.to_json()} if isinstance(schedule, ScheduleTable) else {}),
        "shard_size": SHARD_SIZE,
        "items": len(items),
        "plan": _hash_of_ids(items),
    }


def _hash_of_ids(items: Sequence[WorkItem]) -> str:
    """SHA-256 of the ids, a line each; those of a million items are not all in memory twice."""
    digest = hashlib.sha256()
    for start in range(0, len(items), _BATCH):
        lines = "\n".join(item.id for item in items[start : start + _BATCH])
        digest.update(f"\n{lines}".encode() if start else lines.encode())
    return digest.hexdigest()


def freeze(store: Store, spec: Mapping[str, Any], key: str = SPEC_KEY) -> None:
    """Makes the root this job's, or finds that it is already.

    Raises:
        SpecError: the root belongs to a job with another specification.
        StoreError: the store failed.
    """
    try:
        store.put_new(key, canonical_json(spec))
    except AlreadyExists:
        check_spec(store, spec, key)


def check_spec(store: Store, spec: Mapping[str, Any], key: str = SPEC_KEY) -> None:
    """Refuses a root that belongs to another job; an unused root is fine.

    Raises:
        SpecError: names each field that differs, as it is there and here.
        StoreError: the store failed.
    """
    if not store.exists(key):
        return
    data = store.get(key)
    if data == canonical_json(spec):
        return
    there = _read(store, key, data)
    other = {name for name in {*there, *spec} if there.get(name) != spec.get(name)}
    append = "rows" in spec and "rows" in there and other <= _ROWS
    raise SpecError(
        f"{store.uri(key)} belongs to another job: {spec_differences.named(there, dict(spec))}. "
        "Repeat that job's arguments to resume it, "
        f"{'add rows to it with --append, ' if append else ''}or choose another --output"
    )


def frozen_schedule(store: Store) -> Schedule | None:
    """The schedule of the job that a root belongs to; None where it has none, or is unused.

    Raises:
        SpecError: the root's `job.json` is not a job's.
        ScheduleError: its schedule is damaged.
        StoreError: the store failed.
    """
    try:
        there = _read(store, SPEC_KEY, store.get(SPEC_KEY))
    except MissingKey:
        return None
    schedule = there.get("schedule")
    return None if schedule is None else Schedule.from_json(schedule)


def frozen_calibration(store: Store) -> str | None:
    """The id of the calibration that a root's job solves by; None where there is none.

    Raises:
        SpecError: the root's `job.json` is not a job's.
        StoreError: the store failed.
    """
    try:
        there = _read(store, SPEC_KEY, store.get(SPEC_KEY))
    except MissingKey:
        return None
    try:
        return str(there["schedules"][0]["calibration"]["graph"])
    except (LookupError, TypeError):
        return None


def _read(store: Store, key: str, data: bytes) -> dict[str, Any]:
    """The JSON object of a job's specification. Raises SpecError where it is none."""
    try:
        there = json.loads(data)
        if not isinstance(there, dict) or is_deep(there):
            raise ValueError
    except (ValueError, RecursionError):
        raise SpecError(f"{store.uri(key)} is not a job's JSON; use another --output") from None
    return there
