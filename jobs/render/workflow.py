"""python -m jobs.render: prompts + a schedule -> mp4s and a Parquet manifest, each row once.

Resume is the same command: what has a receipt is done, everything else is open.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.fleet import driver as fleet
from cluster.fleet import metrics
from cluster.fleet.delivery import Delivery
from cluster.models import cost_model
from cluster.models.memory_plan import Demand
from cluster.models.model import Model, ModelError
from cluster.models.sizes import component_bytes
from cluster.ranks import denoiser_builder, encoders_builder, encoders_size
from cluster.results import audit, manifest, registry
from cluster.results.manifest import Manifest, Success
from cluster.store import MissingKey, Store, StoreError, open_store, read
from cluster.work import plan
from cluster.work.plan import WorkItem, plan_items, specification
from cluster.work.prompts import Prompt, read_prompts
from jobs._shared import cli as _cli
from jobs._shared.numbers import finite, not_negative, share
from jobs._shared.progress import duration, progress
from jobs.render import page as render_page
from jobs.solve.workflow import prediction, smallest_budget
from meancache.errors import ScheduleError
from meancache.json_values import shown
from meancache.schedule import Schedule

SHIPPED = Path(__file__).parents[2] / "schedules"
# What --schedule calls the one that is current in a registry; a file of that name is ./current.
CURRENT = "current"
# How many receipts are read to know the rate of a job that ran before.
RATE_SAMPLE = 20
# How many of the rows that repeat another are named.
NAMED = 5
# Of an H100.
MEMORY_GIB = 80


@dataclass(frozen=True)
class Prepared:
    """A render job that nothing speaks against."""

    store: Store
    model: Model
    schedule: Schedule | None
    items: list[WorkItem]
    repeated: list[str]
    spec: Mapping[str, Any]
    gangs: fleet.Gangs
    dry_run: bool
    retry_failed: bool
    max_failures: int
    audit_share: float


def prepare(options: argparse.Namespace) -> Prepared:
    """Checks the whole request before any rank starts."""
    model, arguments = _cli.model_and_arguments(options)
    if options.compile and not model.kind.compiles:
        raise ModelError(
            f"--compile is not for {model.id}: diffusers names no blocks that repeat in the "
            f"transformer of a {model.pipeline}; leave it out"
        )
    schedule = _schedule(options, model, arguments)
    if options.audit and schedule is None:
        raise ScheduleError(
            "--audit compares with the full run, and without a schedule every video is one: leave "
            "it out, or choose a schedule"
        )
    prompts = read_prompts(options.prompts)
    items = plan_items(prompts, model, arguments, schedule)
    # Rows share their arguments unless they override some: a million rows are few settings.
    settings = {id(item.arguments): item.arguments for item in items}.values()
    for setting in settings:
        model.check_arguments(setting, options.gang_size)
        if schedule is not None:
            model.check_schedule(schedule, setting)
    largest = max(settings, key=model.tokens)
    beside = encoders_size(model, settings, options.gang_size)
    gangs = _cli.gangs(
        options,
        denoiser_builder(model, largest, beside, options.compile),
        encoders_builder(model, largest, options.gang_size),
    )
    spec = specification("render", items, model, arguments, schedule)
    store = _cli.open_output(options)
    plan.check_spec(store, spec)
    return Prepared(
        store=store,
        model=model,
        schedule=schedule,
        items=items,
        repeated=_repeated(prompts, items),
        spec=spec,
        gangs=replace(gangs, encoders_size=beside),
        dry_run=options.dry_run,
        retry_failed=options.retry_failed,
        max_failures=options.max_failures,
        audit_share=options.audit or 0.0,
    )


def perform(prepared: Prepared) -> int:
    """Renders what is open, closes shards as they fill, and ends with `_SUCCESS`."""
    store, items = prepared.store, prepared.items
    there = manifest.finished(store)
    if there is None:
        success = _render(prepared, Manifest(store), items)
    elif prepared.retry_failed and there[1].failed:
        last, before = there
        failed = manifest.failed_ids(store, before)
        again = [item for item in items if item.id in failed]
        success = _render(prepared, Manifest(store, last.healing + 1), again, before)
    else:
        _announce(prepared, items, [])
        success = there[1]
        if not (prepared.dry_run or store.exists(render_page.REPORT_KEY)):
            render_page.write(store)
    if success is None:
        return 0
    print(f"{success.rows} videos, {success.failed} failed: {store.uri(manifest.PARTS[:-1])}")
    if success.failed:
        print(
            f"the reasons are in {store.uri(manifest.FAILURES[:-1])}; the same command with "
            "--retry-failed renders those rows again"
        )
    return _cli.EXIT_FAILED_ITEMS if success.failed > prepared.max_failures else 0


def _render(
    prepared: Prepared,
    here: Manifest,
    items: Sequence[WorkItem],
    before: Success | None = None,
) -> Success | None:
    """Renders those of `items` that have no receipt here; None where nothing was to be done yet."""
    missing = here.open_shards(items)
    todo = [item for members in missing.values() for item in members]
    _announce(prepared, items, todo)
    if prepared.dry_run:
        return None
    if todo:
        fleet.on_a_worker(partial(here.store.exists, plan.SPEC_KEY))
    plan.freeze(here.store, prepared.spec)
    shards = manifest.by_shard(items)
    left = Counter({shard: len(members) for shard, members in missing.items()})
    for shard in missing:
        if not left[shard]:  # a driver that was killed filled it and did not close it
            here.close_shard(shard, shards[shard])
    work = Delivery(here, prepared.model, prepared.schedule, prepared.audit_share, metrics.record)
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
    print(f"report: {render_page.write(here.store)}")
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


def _schedule(
    options: argparse.Namespace, model: Model, arguments: Mapping[str, Any]
) -> Schedule | None:
    """The schedule of --schedule, or a shipped one that was asked for, or None for every step."""
    if (options.registry is None) != (options.schedule != CURRENT):
        raise ScheduleError(
            "--schedule current and --registry ROOT, the --output of jobs.refresh, go together: "
            "give both or neither"
        )
    by_file = options.schedule not in (None, CURRENT)
    if options.budget is not None and (by_file or options.target_psnr is not None):
        raise ScheduleError(
            "--budget is not allowed with --schedule FILE or --target-psnr: give one of them"
        )
    if options.schedule == CURRENT:
        # What this root's job began with: a promotion since then is for other jobs.
        frozen = plan.frozen_schedule(open_store(options.output))
        if frozen is not None and options.budget in (None, frozen.budget):
            return frozen
        setting = registry.setting_of(model, arguments)
        return registry.find_current(open_store(options.registry), setting, options.budget)
    if options.schedule is not None:
        try:
            return Schedule.loads(read(options.schedule))
        except (StoreError, ScheduleError) as error:
            raise ScheduleError(f"schedule {options.schedule}: {error}") from error
    if options.budget is None and options.target_psnr is None:
        return None
    steps = arguments["num_inference_steps"]
    if options.budget is not None and not 1 <= options.budget <= steps:
        raise ScheduleError(f"budget {options.budget} must be between 1 and the {steps} steps")
    folder = SHIPPED / model.id.rpartition("/")[2]
    shipped = {
        schedule.budget: schedule for schedule in map(Schedule.load, folder.glob("fitted-b*.json"))
    }
    if options.target_psnr is not None and shipped:
        chosen = smallest_budget(list(shipped.values()), options.target_psnr)
        print(f"render: {chosen.nfe} forwards, predicted{prediction(chosen).removeprefix(',')}")
        return chosen
    if options.budget not in shipped:
        wanted = "" if options.budget is None else f" of budget {options.budget}"
        raise ScheduleError(
            f"no schedule{wanted} is shipped for {model.id} (shipped: "
            f"{', '.join(map(str, sorted(shipped))) or 'none'}): run jobs.calibrate and "
            "jobs.solve, and give the file with --schedule"
        )
    return shipped[options.budget]


def _repeated(prompts: Sequence[Prompt], items: Sequence[WorkItem]) -> list[str]:
    """The prompt_ids of rows that another row stands for, in file order."""
    if len(prompts) == len(items):
        return []
    left = Counter(item.prompt_id for item in items)
    repeated = []
    for prompt in prompts:
        if left[prompt.prompt_id]:
            left[prompt.prompt_id] -= 1
        else:
            repeated.append(prompt.prompt_id)
    return repeated


def _announce(prepared: Prepared, items: Sequence[WorkItem], todo: Sequence[WorkItem]) -> None:
    forwards = sum(_forwards(prepared, item) for item in todo)
    done = len(items) - len(todo)
    print(f"render: {len(todo)} videos to do ({forwards} forwards), {done} already done")
    repeated = prepared.repeated
    if repeated:
        some = ", ".join(map(shown, repeated[:NAMED])) + ", ..." * (len(repeated) > NAMED)
        print(
            f"{len(repeated)} rows repeat another row, seed and all, and are not rendered twice: "
            f"prompt_id {some}"
        )
    if prepared.dry_run and todo:
        seconds = _known_seconds(prepared, todo) if done else None
        if seconds is None:
            print("time: unknown until a first video of this job is rendered")
            _print_estimates(prepared, todo[0], forwards / len(todo))
        else:
            total = duration(seconds * len(todo))
            print(f"time: {total} of gang time at the last known rate of {seconds:.1f} s a video")


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
    print("estimated for H100s, denoising alone:")
    for one in choices:
        print(
            f"  --gang-size {one.gang_size}: {duration(one.seconds)} a video, "
            f"{one.videos_a_gpu_day:.0f} videos a GPU and day, about {one.gib:.0f} GiB a GPU"
        )
    best = cost_model.recommended(choices, MEMORY_GIB)
    if best is None:
        print(f"no gang holds it in {MEMORY_GIB} GiB: make the video smaller")
    else:
        print(
            f"for bulk work use --gang-size {best.gang_size}, the smallest that fits "
            f"{MEMORY_GIB} GiB; larger ones only for a deadline"
        )


def _forwards(prepared: Prepared, item: WorkItem) -> int:
    """What an item takes, its audit included."""
    steps = item.arguments["num_inference_steps"]
    computed = steps if prepared.schedule is None else prepared.schedule.nfe
    audited = audit.is_chosen(item.id, prepared.audit_share)
    return (computed + (steps if audited else 0)) * prepared.model.calls(item.arguments)


def _known_seconds(prepared: Prepared, todo: Sequence[WorkItem]) -> float | None:
    """Mean seconds of gang time a video took, over some receipts of this job."""
    left = {item.id for item in todo}
    done = islice((item for item in prepared.items if item.id not in left), RATE_SAMPLE)
    seconds = []
    for item in done:
        with suppress(MissingKey):
            row = Manifest(prepared.store).receipt(item)
            if row["status"] == manifest.OK:
                seconds.append(row["metrics"]["gang_s"])
    return sum(seconds) / len(seconds) if seconds else None


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.render",
        "Renders every prompt to an mp4, or a png, lists them in a Parquet manifest, and shows\n"
        "the job on a page, report.html. A job that was stopped is resumed by the same command;\n"
        "a finished one renders nothing again.",
        "python -m jobs.render --model tiny --prompts prompts.txt --budget 10 --output out",
    )
    _cli.add_output(result, "where videos and manifest go")
    _cli.add_prompts(result, overrides=True)
    which = result.add_mutually_exclusive_group()
    which.add_argument(
        "--schedule",
        metavar="FILE",
        help="which steps to compute (default: all of them); 'current' is the one that is current "
        "in --registry when the job begins, and stays the job's",
    )
    which.add_argument(
        "--target-psnr",
        type=finite,
        metavar="DB",
        help="use the shipped schedule of the fewest forwards that is predicted to come this close "
        "to the full run, as a mean over videos",
    )
    result.add_argument(
        "--budget",
        type=int,
        metavar="B",
        help="use the schedule shipped for B forwards a video; with --schedule current, the "
        "registry's of that budget",
    )
    result.add_argument(
        "--registry", metavar="ROOT", help="the --output of jobs.refresh, for --schedule current"
    )
    result.add_argument(
        "--audit",
        type=share,
        metavar="SHARE",
        help="render this share of the items in full too, such as 0.01, and note psnr and ssim "
        "between both in the manifest's metrics",
    )
    _cli.add_model(result)
    _cli.add_fleet(result)
    result.add_argument(
        "--compile",
        action="store_true",
        help="compile the blocks of the transformer on each rank, during its first videos, which "
        "may take minutes; not part of the job, which is resumed with or without",
    )
    group = result.add_argument_group("failures (a row is given up after 3 attempts)")
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="render the rows again that a finished job gave up; what is there stays as it is",
    )
    group.add_argument(
        "--max-failures",
        type=not_negative,
        default=0,
        metavar="N",
        help="end with exit code 0 with up to N failed rows (default 0: with any, it is 3)",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)
