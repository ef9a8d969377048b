"""Renders a row again and says whether it comes out the same.

All that decides a row's pixels is in its root: job.json, the manifest, and for a row that overrides
arguments of the call its receipt. The item's id is a hash over it, so what is put together here is
what was rendered, or the job refuses.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.fleet.beginning import begin
from cluster.fleet.gangs import MOST_BATCH, Gangs
from cluster.fleet.staged_gang import StagedGang
from cluster.media import image, video
from cluster.models.model import Model, ModelError, find_model
from cluster.ranks import (
    RenderRequest,
    decode_item,
    denoise_batch,
    denoise_item,
    denoiser_builder,
    encode_prompt,
    encoded,
    encoders_builder,
    encoders_size,
)
from cluster.results import rounds
from cluster.results.datasets import dataset
from cluster.results.manifest import PARTS, UNREADABLE
from cluster.store import AlreadyExists, Store, StoreError, open_store
from cluster.work import pictures, plan
from cluster.work.plan import SpecError, WorkItem
from jobs._shared.configs import FleetConfig
from jobs._shared.progress import QUIET_S, Staffing, progress
from jobs._shared.roots import refusing
from meancache.json_values import is_deep, shown
from meancache.quality import psnr
from meancache.schedule import Schedule

ITEM_ID = re.compile("[0-9a-f]{32}")
MODEL = ("id", "revision", "pipeline", "dtype")
# Columns of the manifest that are arguments of the pipeline's call.
SIZES = ("height", "width", "num_frames", "num_inference_steps")


@dataclass(frozen=True)
class Config:
    """Which row is rendered again.

    Attributes:
        root: of a render.
        item_id: the row's, 32 hex digits.
        output: a file for the video, or None.
        gang_size: ranks; None for as many as then.
    """

    root: str
    item_id: str
    output: str | None = None
    gang_size: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Whether it came out the same."""

    same: bool


@dataclass(frozen=True)
class Replay:
    """What the fleet does with the item; a `fleet.Work`.

    Attributes:
        model: what renders it.
        schedule: of its row.
        store: the root.
        place: of the item in its batch.
        batch: how many went into each forward then.
    """

    model: Model
    schedule: Schedule | None
    store: Store
    place: int = 0
    batch: int = 1

    def __call__(self, staged: StagedGang, item: WorkItem) -> bytes:
        """The item's mp4 or png, rendered again as a render job does. Raises GangError."""
        (texts, _), _ = staged.encoders.run_with_retries(encode_prompt, item)
        request = RenderRequest(item, self.schedule, texts, self.store)
        if self.batch == 1:
            denoised, _ = staged.gang.run_with_retries(denoise_item, request)
        else:
            # Sums round as they did then, whatever the others were: copies of it stand for them.
            copies = [request] * self.batch
            several, _ = staged.gang.run_with_retries(denoise_batch, copies)
            denoised = several[self.place]
        (frames, _), _ = staged.encoders.run_with_retries(decode_item, (denoised.latents, item))
        return encoded(self.model, frames)


@dataclass(frozen=True)
class Prepared:
    """A row that can be rendered again, and where its video goes, if anywhere."""

    store: Store
    row: Mapping[str, Any]
    item: WorkItem
    work: Replay
    gangs: Gangs
    output: tuple[Store, str] | None


def run(config: Config) -> Outcome:
    """Renders the row, and compares."""
    prepared = prepare(config)
    begin(prepared.gangs)
    from cluster.fleet import driver as fleet  # with Ray, which a refusal does without

    staffing = Staffing()
    with closing(
        fleet.run(prepared.work, [prepared.item], prepared.gangs, staffed=staffing.staffed)
    ) as results:
        (data,) = progress(results, 1, "videos", also=staffing.__str__)
    if prepared.output is not None:
        store, key = prepared.output
        store.put_new(key, data)
        print(f"written to {store.uri(key)}")
    same, sentence = compare(prepared.store, prepared.row, data)
    print(sentence)
    if not same and prepared.gangs.size != prepared.row["world_size"]:
        ranks = prepared.row["world_size"]
        print(f"it was rendered by {ranks} rank(s) then: --gang-size {ranks} does the same")
    return Outcome(same)


@refusing()
def prepare(config: Config) -> Prepared:
    """Finds the row and what decides its pixels, before any rank starts."""
    if not ITEM_ID.fullmatch(config.item_id):
        raise SpecError(
            f"item_id {shown(config.item_id)} must be 32 hex digits, as the column item_id of "
            "the manifest has them"
        )
    store = open_store(config.root)
    output = None if config.output is None else _output(config.output)
    spec = _specification(store)
    row = _find(store, config.item_id)
    model = _model(spec, row)
    schedule = _schedule(spec, row)
    item = _item(store, spec, row, model, schedule)
    size = config.gang_size or row["world_size"]
    model.check_arguments(item.arguments, size)
    largest, beside = item.arguments, encoders_size(model, [item.arguments], size)
    place, batch = _batch(store, row)
    build = denoiser_builder(model, largest, beside, batch=batch)
    encoders = encoders_builder(model, largest, size, batch)
    gangs = FleetConfig(size, "1").recruit(build, encoders, beside)
    work = Replay(model, schedule, store, place, batch)
    return Prepared(store, row, item, work, gangs, output)


def compare(store: Store, row: Mapping[str, Any], data: bytes) -> tuple[bool, str]:
    """Whether a video rendered again is the one of its row, and a sentence that says so.

    Args:
        store: the root of the row.
        row: of the manifest.
        data: the mp4 or png.
    """
    if hashlib.sha256(data).hexdigest() == row["sha256"]:
        return True, f"the same: {len(data)} bytes of sha256 {row['sha256']}"
    try:
        frames, before = (
            image.decode(one) if row["fps"] == 0 else video.decode(one)
            for one in (data, dataset.read_checked(store, row["key"], row["sha256"]))
        )
        decibels = psnr(frames, before)
    except (StoreError, ValueError) as error:
        return False, f"not the same, and not to be compared: {error}"
    if np.isinf(decibels):
        return True, "the same pixels in other bytes, as another version of the encoder writes them"
    return False, (
        f"not the same: PSNR {decibels:.1f} dB against {store.uri(row['key'])}, over the decoded "
        "frames of both"
    )


def _specification(store: Store) -> dict[str, Any]:
    """The job.json of a render root. Raises SpecError where there is none."""
    uri = store.uri(plan.SPEC_KEY)
    if not store.exists(plan.SPEC_KEY):
        raise SpecError(f"{uri} does not exist: give the --output of a jobs.render")
    try:
        spec = rounds.specification(store)
        texts = [spec["kind"], *(spec["model"][name] for name in MODEL)]
        mappings = [spec["arguments"], *([] if spec["schedule"] is None else [spec["schedule"]])]
        mappings += spec.get("schedules", [])
        if is_deep(spec) or not all(isinstance(text, str) for text in texts):
            raise ValueError
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise ValueError
    except UNREADABLE:
        raise SpecError(f"{uri} is not a job's JSON: give the --output of a jobs.render") from None
    if spec["kind"] != "render":
        raise SpecError(
            f"{uri} is of a job of kind {shown(spec['kind'])}: give that of a jobs.render"
        )
    return spec


def _find(store: Store, item_id: str) -> dict[str, Any]:
    """The `ok` row of an item. Raises SpecError where there is none."""
    keys = list(store.list(PARTS))
    parts: Iterator[dict[str, Any] | None] = progress(
        dataset.search(store, item_id, keys), len(keys), "parts", after_s=QUIET_S
    )
    row = next(filter(None, parts), None)
    if row is None:
        raise SpecError(
            f"no row of {store.uri(PARTS[:-1])} has the item_id {item_id}: one that was given up, "
            "or is not rendered yet, has no video to compare with"
        )
    if not row["nfe"]:
        raise SpecError(
            f"the row {item_id} was rendered with no forward at all, as jobs.benchmark does: "
            "there is nothing to render again"
        )
    return row


def _model(spec: Mapping[str, Any], row: Mapping[str, Any]) -> Model:
    """The job's model. Raises ModelError where it is another here."""
    then = spec["model"]
    model = find_model(then["id"], then["revision"], then["dtype"])
    for name, value in {**model.key, "fps": model.fps}.items():
        if then.get(name) != value:
            raise ModelError(
                f"the job ran {shown(then['id'])} of {name} {shown(then.get(name))}, but here it "
                f"is {shown(value)}: replay where the same model is"
            )
    if (row["model"], row["model_revision"]) != (model.id, model.revision):
        raise ModelError(f"the row names the model {shown(row['model'])}, job.json {model.id!r}")
    return model


def _schedule(spec: Mapping[str, Any], row: Mapping[str, Any]) -> Schedule | None:
    """The schedule of a row: the job's, or the one of the row's setting that the row names.

    Raises:
        ScheduleError: it is damaged.
        SpecError: the job has none of the row's id.
    """
    if spec["schedule"] is not None:
        return Schedule.from_json(spec["schedule"])
    if "schedules" not in spec:
        return None
    for one in spec["schedules"]:
        schedule = Schedule.from_json(one)
        if schedule.id == row["schedule_id"]:
            return schedule
    raise SpecError(
        f"the row was rendered by the schedule {shown(row['schedule_id'])}, which job.json does "
        "not hold: one of them was changed"
    )


def _item(
    store: Store,
    spec: Mapping[str, Any],
    row: Mapping[str, Any],
    model: Model,
    schedule: Schedule | None,
) -> WorkItem:
    """The item of a row, by its id the very one. Raises SpecError where something was changed."""
    image = pictures.of_row(row)
    for arguments in _arguments(store, spec, row):
        try:
            identity = plan.item_id(model, row["prompt"], row["seed"], arguments, schedule, image)
        except ValueError:  # NaN, which Python reads from JSON but no job writes
            continue
        if identity == row["item_id"]:
            names = ("index", "shard", "prompt_id", "prompt", "seed")
            drawn_from = None if image is None else pictures.fetched(store, image)
            own = {name: row[name] for name in names}
            return WorkItem(id=identity, arguments=arguments, image=drawn_from, **own)
    raise SpecError(
        f"what {store.uri(plan.SPEC_KEY)}, the manifest and the receipt say does not hash to "
        f"{row['item_id']}: one of them was changed, or the receipt is gone"
    )


def _arguments(
    store: Store, spec: Mapping[str, Any], row: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The arguments of the call: the job's in the row's size, else what the receipt holds."""
    given = spec["arguments"]
    yield {**given, **{name: row[name] for name in SIZES if name in given}}
    for receipt in _receipts(store, row):
        arguments = receipt.get("arguments")
        if isinstance(arguments, dict):
            yield arguments


def _receipts(store: Store, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The receipts of a row's item that can be read: one, and one of each round beside."""
    for key in store.list(f"receipts/{row['shard']:06d}/{row['item_id']}."):
        try:
            receipt = json.loads(store.get(key))
        except UNREADABLE:
            continue
        if isinstance(receipt, dict) and not is_deep(receipt):
            yield receipt


def _batch(store: Store, row: Mapping[str, Any]) -> tuple[int, int]:
    """The place of a row's item in its batch, and how many there were; (0, 1) of one alone."""
    for receipt in _receipts(store, row):
        place, batch = receipt.get("batch_place"), receipt.get("batch")
        if receipt.get("sha256") != row["sha256"]:
            continue
        if isinstance(place, int) and isinstance(batch, int) and 0 <= place < batch <= MOST_BATCH:
            return place, batch
    return 0, 1


def _output(uri: str) -> tuple[Store, str]:
    """Where --output goes. Raises AlreadyExists where there is something."""
    folder, _, name = uri.rpartition("/")
    store = open_store(folder or ("/" if uri.startswith("/") else "."))
    if store.exists(name):
        raise AlreadyExists(f"--output {uri} exists and is not overwritten: give another")
    return store, name
