"""All that can be checked of a refresh before any rank starts, and what comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.models.model import Model
from cluster.ranks import rank_builder
from cluster.results.registry import RegistryError, Setting, Succession, setting_of
from cluster.store import Store, open_store
from cluster.work import plan
from cluster.work.plan import WorkItem, plan_items
from cluster.work.prompts import Prompt, PromptsError, read_prompts, stable_seed
from jobs._shared.roots import open_output, refusing
from jobs.refresh.config import Config
from jobs.refresh.held_out import LEAST_HELD_OUT, check_apart, split
from jobs.refresh.history import Runs, date_of
from meancache.errors import SolverError
from meancache.json_values import canonical_json


@dataclass(frozen=True)
class RefreshRun:
    """A refresh that nothing speaks against.

    Attributes:
        config: what was asked for.
        runs: the runs of its setting.
        name: of this one.
        model: what is calibrated.
        arguments: of the pipeline's call.
        prompts: the rows to calibrate on, with this run's seeds.
        trajectories: their items.
        held_out: the pairs to judge by.
        successions: budget -> the schedules that were current, and are.
        audited: the render roots whose audits are read.
        spec: what was asked for, as the root keeps it.
    """

    config: Config
    runs: Runs
    name: str
    model: Model
    arguments: Mapping[str, Any]
    prompts: Sequence[Prompt]
    trajectories: list[WorkItem]
    held_out: list[WorkItem]
    successions: Mapping[int, Succession]
    audited: Sequence[Store]
    spec: Mapping[str, Any]

    @property
    def root(self) -> Store:
        """The root, with the registry."""
        return self.runs.store

    @property
    def store(self) -> Store:
        """Where this run's own files lie."""
        return self.runs.room(self.name)


@dataclass(frozen=True)
class Rollback:
    """The successions that are to go back by one."""

    successions: Mapping[int, Succession]


@refusing()
def prepare(config: Config) -> RefreshRun | Rollback:
    """Checks the whole request before any rank starts."""
    model, arguments = config.model.find()
    gangs = config.fleet.recruit(rank_builder(model, arguments))
    model.check_arguments(arguments, gangs.size)
    steps = arguments["num_inference_steps"]
    for budget in config.budgets:
        if not 1 <= budget <= steps:
            raise SolverError(f"budget {budget} must be between 1 and the {steps} steps")
    setting = setting_of(model, arguments)
    if config.rollback:
        if config.prompts is not None:
            raise PromptsError("--rollback renders nothing: leave --prompts out")
        return Rollback(_successions(open_output(config.output), setting, config.budgets))
    return _run(config, model, arguments, setting)


def _run(
    config: Config, model: Model, arguments: Mapping[str, Any], setting: Setting
) -> RefreshRun:
    calibration, held_out = _prompts(config)
    audited = _audited(config.audits)
    asked = {
        "model": {**model.key, "dtype": model.dtype},
        "arguments": dict(arguments),
        "prompts": _digest(calibration),
        "held_out": _digest(held_out),
        "seeds": config.seeds,
        "budgets": list(config.budgets),
        "window": config.window,
    }
    if config.search is not None:  # without it, a run that was begun before there was a search
        asked["search"] = config.search
    command = hashlib.sha256(canonical_json(asked)).hexdigest()[:12]
    store = open_output(config.output)
    runs = Runs(store, {**setting, "negative_prompt": arguments.get("negative_prompt")})
    name = runs.name_of(command, config.night)
    calibration, held_out = _seeded(calibration, name), _seeded(held_out, name)
    pairs = _items(held_out, model, arguments, config.seeds)
    if len(pairs) < LEAST_HELD_OUT:
        raise PromptsError(
            f"{len(pairs)} held-out pair has no spread to judge by: give {LEAST_HELD_OUT} held-out "
            "prompts at least"
        )
    return RefreshRun(
        config=config,
        runs=runs,
        name=name,
        model=model,
        arguments=arguments,
        prompts=calibration,
        trajectories=_items(calibration, model, arguments, config.seeds),
        held_out=pairs,
        successions=_successions(store, setting, config.budgets),
        audited=audited,
        # The name of the key `night` is part of the format.
        spec={"schema": plan.SPEC_SCHEMA, "kind": "refresh", "night": date_of(name), **asked},
    )


def _prompts(config: Config) -> tuple[list[Prompt], list[Prompt]]:
    """The rows to calibrate on, and those to judge by. Raises PromptsError."""
    if config.prompts is None:
        raise PromptsError("--prompts P says what to calibrate on; only --rollback does without")
    rows = read_prompts(config.prompts, config.prompt_column)
    if config.held_out is None:
        return split(rows)
    held_out = read_prompts(config.held_out, config.prompt_column)
    check_apart(rows, held_out)
    return rows, held_out


def _audited(roots: Sequence[str]) -> list[Store]:
    """The render roots whose audits are read. Raises RegistryError where one is none."""
    stores = [open_store(root) for root in roots]
    for store in stores:
        if not store.exists(plan.SPEC_KEY):
            raise RegistryError(
                f"--audits {store.uri(plan.SPEC_KEY)} does not exist: give the --output of a "
                "jobs.render"
            )
    return stores


def _digest(rows: Sequence[Prompt]) -> str:
    """A hash of what a run takes from a prompts file."""
    content = [[row.prompt_id, row.prompt, dict(row.overrides)] for row in rows]
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _seeded(rows: Sequence[Prompt], name: str) -> list[Prompt]:
    """The rows with noise that is the run's own."""
    return [replace(row, seed=stable_seed(f"{date_of(name)} {row.prompt_id}")) for row in rows]


def _items(
    rows: Sequence[Prompt], model: Model, arguments: Mapping[str, Any], seeds: int
) -> list[WorkItem]:
    """Every prompt `seeds` times, all of one setting."""
    items = plan_items(rows, model, arguments, seeds=seeds)
    plan.check_one_setting(items, arguments)
    return items


def _successions(store: Store, setting: Setting, budgets: Sequence[int]) -> dict[int, Succession]:
    return {budget: Succession(store, {**setting, "budget": budget}) for budget in budgets}
