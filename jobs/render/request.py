"""All that can be checked of a render before any rank starts, and what comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.fleet.gangs import MOST_BATCH, Gangs
from cluster.models import compiling
from cluster.models.model import Model, ModelError
from cluster.ranks import denoiser_builder, encoders_builder, encoders_size
from cluster.results import rounds
from cluster.results.appending import appended
from cluster.results.rounds import APPEND
from cluster.store import Store, open_store
from cluster.work import plan
from cluster.work.adapters import LORA, Adapters, of_text, resolve_rows
from cluster.work.pictures import examine, indexed
from cluster.work.plan import WorkItem
from cluster.work.prompts import NAMED_ROWS, Prompt, Prompts, PromptsError, read_prompts
from cluster.work.rows import RowPlan, as_begun, plan_rows
from cluster.work.schedule_table import Chosen, schedule_of, setting_key
from jobs._shared.progress import QUIET_S, progress
from jobs._shared.roots import open_output, refusing
from jobs.render.config import Config
from jobs.render.schedules import choose
from meancache.errors import ScheduleError
from meancache.json_values import shown
from meancache.schedule import Schedule


@dataclass(frozen=True)
class Prepared:
    """A render job that nothing speaks against."""

    config: Config
    store: Store
    model: Model
    schedule: Chosen
    plan: RowPlan
    gangs: Gangs
    prompts: Prompts
    adapters: Adapters

    @property
    def items(self) -> list[WorkItem]:
        """What is rendered."""
        return self.plan.items

    @property
    def spec(self) -> Mapping[str, Any]:
        """What job.json holds."""
        return self.plan.spec


@refusing()
def prepare(config: Config) -> Prepared:
    """Checks the whole request before any rank starts."""
    model, arguments = config.model.find()
    _check_flags(config, model)
    prompts = read_prompts(config.prompts, config.prompt_column)
    _examine_images(config, model, prompts)
    adapters = Adapters()
    if config.model.lora:
        arguments[LORA] = adapters.resolved(tuple(map(of_text, config.model.lora)))
    resolve_rows(prompts, adapters)
    settings = settings_of(prompts, arguments)
    size = config.fleet.gang_size
    for setting in settings.values():
        model.check_arguments(setting, size)
    schedule = choose(config, model, arguments, settings)
    if config.audit and schedule is None:
        raise ScheduleError(
            "--audit compares with the full run, and without a schedule every video is one: leave "
            "it out, or choose a schedule"
        )
    if config.append:
        store = open_output(config.output)
        planned = appended(store, prompts, model, arguments, schedule, config.seeds)
    else:
        planned = plan_rows(prompts, model, arguments, schedule, config.seeds)
    _check_tokens(config, model, planned)
    gangs = _gangs(config, model, schedule, planned.items)
    if not config.append:
        store = open_output(config.output)
        if config.seeds == 1:
            planned = as_begun(store, planned, prompts, model, arguments, schedule)
    if not planned.round:
        plan.check_spec(store, planned.spec)
    if config.retry_failed:
        _check_retry(store)
    return Prepared(config, store, model, schedule, planned, gangs, prompts, adapters)


def _check_flags(config: Config, model: Model) -> None:
    """Refuses flags that the model, or one another, does not go with. Raises ModelError."""
    if config.compile == "always" and not model.kind.compiles:
        raise ModelError(
            f"--compile is not for {model.id}: diffusers names no blocks that repeat in the "
            f"transformer of a {model.pipeline}; leave it out"
        )
    if config.attention is not None and config.fleet.gang_size > 1:
        raise ModelError(
            f"--attention {shown(config.attention)} is for gangs of one; larger ones use xDiT's: "
            "leave it out"
        )
    if config.fleet.batch > 1:
        _check_batch(config.fleet.batch, model)
    if config.model.lora and config.compile == "always":
        raise ModelError(
            "--compile is not for jobs with adapters: each would be compiled anew; leave it out"
        )


def _check_batch(batch: int, model: Model) -> None:
    """Refuses --batch where a forward has no room for several. Raises ModelError."""
    if batch > MOST_BATCH:
        raise ModelError(f"--batch {batch} must be at most {MOST_BATCH}")
    if not model.kind.is_image:
        raise ModelError(
            f"--batch {batch} is for models of images: {model.id} makes videos, of which one fills "
            "a GPU; leave it out"
        )
    if model.kind.takes_image:
        raise ModelError(
            f"--batch {batch} is for models that draw from text alone: each row of {model.id} has "
            "an image of its own beside; leave it out"
        )


def _examine_images(config: Config, model: Model, prompts: Prompts) -> None:
    """Reads and checks the rows' images, but for those that this root's job has read before."""
    asked = config.model
    known = indexed(open_store(config.output)) if model.kind.takes_image else {}
    examine(
        prompts,
        model,
        sized=asked.height is not None or asked.width is not None,
        gang_size=config.fleet.gang_size,
        known=known,
        progress=partial(progress, what="images", after_s=QUIET_S),
    )


def _check_retry(store: Store) -> None:
    """Refuses a retry of what failed while rows are appended: the next round is taken."""
    now_open = rounds.open_round(store)
    if now_open is not None and now_open[1] == APPEND:
        raise plan.SpecError(
            f"an append to the job of {store.uri(plan.SPEC_KEY)} is not finished: run its command "
            "again, without --retry-failed, until it is"
        )


def _check_tokens(config: Config, model: Model, planned: RowPlan) -> None:
    """Refuses prompts that the model does not read whole, where that is asked for."""
    long = planned.truncated() if config.max_prompt_tokens == "refuse" else []
    if long:
        named = "; ".join(
            f"prompt_id {shown(prompt_id)}, {used} of {tokens}"
            for prompt_id, tokens, used in long[:NAMED_ROWS]
        )
        raise PromptsError(
            f"{len(long)} prompts are longer than what {model.id} reads (tokens read: {named}"
            f"{', ...' * (len(long) > NAMED_ROWS)}): shorten them, or take --max-prompt-tokens warn"
        )


def settings_of(
    prompts: Sequence[Prompt], arguments: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """The arguments of a call for each setting of the rows, by `setting_key`, in their order."""
    found: dict[str, Mapping[str, Any]] = {}
    plain = setting_key(arguments)
    for prompt in prompts:
        if prompt.overrides:
            merged = plan.overridden(arguments, prompt.overrides)
            found.setdefault(setting_key(merged), merged)
        else:
            found.setdefault(plain, arguments)
    return found


def _gangs(config: Config, model: Model, schedule: Chosen, items: Sequence[WorkItem]) -> Gangs:
    """Gangs for the largest of the items. Raises what the model does not take."""
    # Rows share their arguments unless they override some: a million rows are few settings.
    settings = {id(item.arguments): item.arguments for item in items}.values()
    size = config.fleet.gang_size
    for setting in settings:
        model.check_arguments(setting, size)
        if isinstance(schedule, Schedule):
            model.check_schedule(schedule, setting)
    largest = max(settings, key=model.tokens)
    beside = encoders_size(model, settings, size)
    # Another adapter is another transformer, which would be compiled anew.
    adapted = any(setting.get(LORA) for setting in settings)
    worth = not adapted and _compiling_repays(config, model, schedule, items)
    return config.fleet.recruit(
        denoiser_builder(
            model,
            largest,
            beside,
            compiling.decided(config.compile, model.kind.compiles and worth),
            config.attention,
            config.fleet.batch,
        ),
        encoders_builder(model, largest, size, config.fleet.batch),
        beside,
    )


def _compiling_repays(
    config: Config, model: Model, schedule: Chosen, items: Sequence[WorkItem]
) -> bool:
    """Whether the job is long enough for compiled blocks."""
    forwards: Counter[int] = Counter()
    for item in items:
        steps = item.arguments["num_inference_steps"]
        chosen = schedule_of(schedule, item.arguments)
        computed = steps if chosen is None else chosen.nfe
        forwards[model.tokens(item.arguments)] += computed * model.calls(item.arguments)
    gangs = int((config.fleet.gangs or str(compiling.USUAL_GANGS)).rpartition(":")[2])
    sharing = min(gangs, len(items))
    return compiling.repays(model.transformer, forwards, config.fleet.gang_size, sharing)
