"""All that can be checked of a render before any rank starts, and what comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.fleet.gangs import Gangs
from cluster.models.model import Model, ModelError
from cluster.ranks import denoiser_builder, encoders_builder, encoders_size
from cluster.store import Store
from cluster.work import plan
from cluster.work.plan import WorkItem, plan_items, specification
from cluster.work.prompts import Prompt, read_prompts
from cluster.work.schedule_table import Chosen, setting_key
from jobs._shared.roots import open_output, refusing
from jobs.render.config import Config
from jobs.render.schedules import choose
from meancache.errors import ScheduleError
from meancache.schedule import Schedule


@dataclass(frozen=True)
class Prepared:
    """A render job that nothing speaks against."""

    config: Config
    store: Store
    model: Model
    schedule: Chosen
    items: list[WorkItem]
    repeated: list[str]
    spec: Mapping[str, Any]
    gangs: Gangs


@refusing()
def prepare(config: Config) -> Prepared:
    """Checks the whole request before any rank starts."""
    model, arguments = config.model.find()
    if config.compile and not model.kind.compiles:
        raise ModelError(
            f"--compile is not for {model.id}: diffusers names no blocks that repeat in the "
            f"transformer of a {model.pipeline}; leave it out"
        )
    prompts = read_prompts(config.prompts)
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
    items = plan_items(prompts, model, arguments, schedule)
    gangs = _gangs(config, model, schedule, items)
    spec = specification("render", items, model, arguments, schedule)
    store = open_output(config.output)
    plan.check_spec(store, spec)
    repeated = _repeated(prompts, items)
    return Prepared(config, store, model, schedule, items, repeated, spec, gangs)


def settings_of(
    prompts: Sequence[Prompt], arguments: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """The arguments of a call for each setting of the rows, by `setting_key`, in their order."""
    found: dict[str, Mapping[str, Any]] = {}
    plain = setting_key(arguments)
    for prompt in prompts:
        if prompt.overrides:
            merged = {**arguments, **prompt.overrides}
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
    return config.fleet.recruit(
        denoiser_builder(model, largest, beside, config.compile),
        encoders_builder(model, largest, size),
        beside,
    )


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
