"""What a render says before it begins: how much there is to do, and how long a dry run thinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from cluster.models import cost_model
from cluster.models.memory_plan import Demand
from cluster.models.sizes import component_bytes
from cluster.results import audit, manifest
from cluster.results.manifest import Manifest
from cluster.store import MissingKey
from cluster.work.plan import WorkItem
from cluster.work.schedule_table import (
    ScheduleTable,
    schedule_of,
    setting_key,
    setting_words,
)
from jobs._shared.calibrations import carried_words
from jobs._shared.progress import counted, duration
from jobs.render.request import Prepared
from meancache.json_values import shown

# How many receipts are read to know the rate of a job that ran before.
RATE_SAMPLE = 20
# How many of the rows that repeat another are named.
NAMED = 5
# What an H100 has.
MEMORY_GIB = 80


def announce(
    prepared: Prepared, items: Sequence[WorkItem], todo: Sequence[WorkItem], held: int = 0
) -> None:
    """Says how much there is to do; of a dry run, also how long that is expected to take.

    Args:
        prepared: the request.
        items: of the round.
        todo: those to render.
        held: how many more are open, but ask for pixels that the root has.
    """
    if prepared.plan.round:
        _say_append(prepared, held)
    forwards = sum(_forwards(prepared, item) for item in todo)
    done = len(items) - len(todo) - held
    print(f"render: {counted(len(todo), 'video')} to do ({forwards} forwards), {done} already done")
    if isinstance(prepared.schedule, ScheduleTable):
        _list_settings(prepared.schedule, items)
    shared = prepared.plan.rows - len(prepared.items)
    if shared:
        repeated = (prompt_id for item in prepared.items for _, prompt_id in item.also)
        some = ", ".join(map(shown, islice(repeated, NAMED))) + ", ..." * (shared > NAMED)
        print(
            f"{counted(shared, 'row')} asking for the same pixels as another row, seed and all, "
            f"with one video for both: prompt_id {some}"
        )
    _name_repeated_ids(prepared)
    _name_truncated(prepared)
    _name_bad_images(prepared)
    if prepared.model.kind.sound:
        print(f"sound: {prepared.model.id} makes it too, but it is not kept: the mp4s are silent")
    carried = prepared.plan.spec.get("extra")
    if carried:
        print(f"other columns, carried along: {', '.join(map(shown, carried))}")
    if prepared.config.dry_run and todo:
        seconds = _known_seconds(prepared, todo) if done else None
        if seconds is None:
            print("time: unknown until a first video of this job is rendered")
            _print_estimates(prepared, todo[0], forwards / len(todo))
        else:
            total = duration(seconds * len(todo))
            print(f"time: {total} of gang time at the last known rate of {seconds:.1f} s a video")


def _say_append(prepared: Prepared, held: int) -> None:
    """Which rows are appended, and behind which."""
    planned = prepared.plan
    which = f"all but the first {planned.passed}" if planned.passed else "all"
    print(
        f"append: {counted(planned.rows, 'row')}, {which} of --prompts, behind the "
        f"{planned.first} of the root, in round {planned.round}"
    )
    if held:
        print(f"{counted(held, 'video')} of them shared with rows that are there, not rendered")


def _name_repeated_ids(prepared: Prepared) -> None:
    """Names the ids that several rows of the prompts have been given."""
    ids = pa.array(one.prompt_id for one in prepared.prompts)
    counts = ids.value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        some = ", ".join(map(shown, repeated[:NAMED].to_pylist()))
        print(
            f"{counted(len(ids) - len(counts), 'row')} with the prompt_id of an earlier row: "
            f"{some}{', ...' * (len(repeated) > NAMED)}; in the manifest their index tells them "
            "apart"
        )


def _name_truncated(prepared: Prepared) -> None:
    """Names the rows whose ends the model does not read, all of them in a dry run."""
    long = prepared.plan.truncated()
    if not long:
        return
    print(
        f"{counted(len(long), 'prompt')} longer than what {prepared.model.id} reads: the end of "
        "each changes nothing"
    )
    named = long if prepared.config.dry_run else long[:NAMED]
    for prompt_id, tokens, used in named:
        print(f"  prompt_id {shown(prompt_id)}: {used} of {tokens} tokens are read")
    if len(long) > len(named):
        print(f"  and {len(long) - len(named)} more, which --dry-run lists")


def _name_bad_images(prepared: Prepared) -> None:
    """Names the rows whose images cannot be used, all of them in a dry run."""
    bad = [one for one in prepared.prompts if one.image is not None and one.image.error]
    if not bad:
        return
    print(f"{counted(len(bad), 'image')} that cannot be used: these rows fail, the others do not")
    named = bad if prepared.config.dry_run else bad[:NAMED]
    for row in named:
        assert row.image is not None
        print(f"  prompt_id {shown(row.prompt_id)}: {row.image.error}")
    if len(bad) > len(named):
        print(f"  and {len(bad) - len(named)} more, which --dry-run lists")


def _list_settings(table: ScheduleTable, items: Sequence[WorkItem]) -> None:
    """Each setting of the rows: how many they are, their schedule, what it was carried from."""
    counts = Counter(setting_key(item.arguments) for item in items)
    arguments = {setting_key(item.arguments): item.arguments for item in items}
    print(f"{len(counts)} setting{'s' * (len(counts) > 1)}:")
    for key, count in counts.items():
        schedule = table.schedules[key]
        notes = [f"{count} videos", f"{schedule.nfe} forwards", f"schedule {schedule.id[:16]}"]
        if words := carried_words(schedule):
            notes.append(words)
        print(f"  {setting_words(arguments[key])}: {', '.join(notes)}")


def _print_estimates(prepared: Prepared, item: WorkItem, forwards: float) -> None:
    """What a video as large as this one is expected to take on gangs of some sizes."""
    model = prepared.model
    if model.transformer is None or model.dtype != "bfloat16":
        return
    tokens = model.tokens(item.arguments)
    sizes = component_bytes(model)
    if sizes is None:
        return
    demand = Demand(model, sizes, item.arguments, 1, encoders_size=1)

    def memory(gang_size: int) -> float:
        return sum(replace(demand, gang_size=gang_size).parts(rank=0).values())

    choices = [
        one
        for one in cost_model.estimates(model.transformer, tokens, forwards, memory)
        if model.takes_gang(item.arguments, one.gang_size)
    ]
    print("estimated for H100s, denoising alone, with compiled blocks (by xDiT's published times):")
    for one in choices:
        print(
            f"  --gang-size {one.gang_size}: {duration(one.seconds)} "
            f"({duration(one.pessimistic_s)}) and {one.gpu_hours:.2f} GPU-hours a video, "
            f"{one.videos_a_gpu_day:.0f} videos a GPU and day, about {one.gib:.0f} GiB a GPU"
        )
    best = cost_model.recommended(choices, MEMORY_GIB)
    if best is None:
        print(f"no gang holds it in {MEMORY_GIB} GiB: make the video smaller")
    else:
        print(
            f"for bulk work use --gang-size {best.gang_size}, the smallest that fits "
            f"{MEMORY_GIB} GiB and makes within {cost_model.ABOUT:.0%} of the most videos a GPU "
            "and day; larger ones only for a deadline"
        )


def _forwards(prepared: Prepared, item: WorkItem) -> int:
    """What an item takes, its audit included."""
    steps = item.arguments["num_inference_steps"]
    schedule = schedule_of(prepared.schedule, item.arguments)
    computed = steps if schedule is None else schedule.nfe
    audited = audit.is_chosen(item.id, prepared.config.audit)
    return (computed + (steps if audited else 0)) * prepared.model.calls(item.arguments)


def _known_seconds(prepared: Prepared, todo: Sequence[WorkItem]) -> float | None:
    """Mean seconds of gang time a video took, over some receipts of this job."""
    left = {item.id for item in todo}
    done = islice((item for item in prepared.items if item.id not in left), RATE_SAMPLE)
    seconds = []
    for item in done:
        with suppress(MissingKey):
            row = Manifest(prepared.store, prepared.plan.round).receipt(item)
            if row["status"] == manifest.OK:
                seconds.append(row["metrics"]["gang_s"])
    return sum(seconds) / len(seconds) if seconds else None
