"""Which schedule is in use for which setting: a registry in a store, with its history.

    schedules/{key}/setting.json               what the key is the hash of
    schedules/{key}/{schedule id}.json         never overwritten
    schedules/{key}/promotions/{n:06d}.json    created once; the one of the highest n is current
    schedules/{key}/current.json               a copy of that one, for readers from outside

A promotion is one conditional put, so of two at once one comes first, and the other learns of it;
killed at any moment it leaves the old schedule current or the new one. `current.json` follows, and
the next command of `jobs.refresh` brings it up to date where a kill came in between. A setting
says a budget too: schedules of 8 and of 12 forwards do not replace each other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.models.adapter_names import adapter_names
from cluster.models.model import CONDITIONS, Model
from cluster.results.manifest import UNREADABLE, at_once, now
from cluster.store import AlreadyExists, MissingKey, Store
from meancache.errors import InputError, ScheduleError
from meancache.json_values import canonical_json, shown
from meancache.schedule import Schedule

SCHEDULES = "schedules/"
_SETTING_KEY = re.compile(r"schedules/[0-9a-f]{32}/setting\.json")
_NUMBER = re.compile(r"promotions/(\d{6})\.json$")
_ID = re.compile(r"[0-9a-f]{64}")

Setting = Mapping[str, Any]


class RegistryError(InputError):
    """The registry has not what was asked for; the message says what it has and what to do."""


class PromotedMeanwhileError(Exception):
    """Another promotion came first: what was to be replaced is no longer current."""


def setting_of(model: Model, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a schedule of these call arguments is right for; with a budget it is a registry's.

    Raises:
        ModelError: the scheduler makes no grid of so many steps.
    """
    steps = arguments["num_inference_steps"]
    return {
        **model.key,
        "num_inference_steps": steps,
        "shift": model.grid(steps, arguments).shift,
        **{name: arguments.get(name) for name in CONDITIONS},
        "dtype": model.dtype,
        "lora": adapter_names(arguments),
    }


def key_of(setting: Setting) -> str:
    """32 hex digits of a setting: a part of paths, so nothing of a user's text is in it."""
    return hashlib.sha256(canonical_json(setting)).hexdigest()[:32]


@dataclass(frozen=True)
class Promotion:
    """A schedule becoming current; the content of a file of `promotions/`, and of `current.json`.

    Attributes:
        number: 1, 2, ...: its place in the history.
        schedule_id: what is current from here on.
        previous: what a rollback of it would restore; None where there is nothing.
        promoted_at: UTC, ISO 8601.
        metrics: how it did on held-out pairs, by name.
        rollback: whether it restores an earlier schedule.
    """

    number: int
    schedule_id: str
    previous: str | None
    promoted_at: str
    metrics: Mapping[str, float]
    rollback: bool = False

    def to_json(self) -> bytes:
        """The file's content."""
        return canonical_json({**vars(self), "metrics": dict(self.metrics)})

    @classmethod
    def from_json(cls, data: bytes) -> Promotion:
        """Reads a file's content. Raises ValueError where it is no promotion."""
        try:
            content = json.loads(data)
            found = cls(**content)
            ids = [found.schedule_id, *filter(None, [found.previous])]
            if not all(_ID.fullmatch(one) for one in ids):  # they become keys
                raise ValueError
            metrics = {str(name): float(value) for name, value in found.metrics.items()}
            return cls(**{**content, "metrics": metrics})
        except UNREADABLE as error:
            raise ValueError("is damaged: not a promotion of a schedule") from error


@dataclass(frozen=True)
class Succession:
    """The schedules of one setting, one after the other.

    Attributes:
        store: the registry's root.
        setting: what all of them are for, the budget included.
    """

    store: Store
    setting: Setting

    @property
    def folder(self) -> str:
        """Where it lies, with a slash at the end."""
        return f"{SCHEDULES}{key_of(self.setting)}/"

    def history(self) -> list[Promotion]:
        """All promotions, the oldest first. Raises RegistryError where one is damaged."""
        return at_once(self.promotion, self._numbers())

    def current(self) -> Promotion | None:
        """The last promotion, or None before the first. Raises RegistryError."""
        numbers = self._numbers()
        return self.promotion(numbers[-1]) if numbers else None

    def schedule(self, schedule_id: str) -> Schedule:
        """A schedule that was promoted once. Raises RegistryError where it is damaged."""
        key = f"{self.folder}{schedule_id}.json"
        try:
            schedule = Schedule.loads(self.store.get(key))
        except ScheduleError as error:
            raise RegistryError(f"{self.store.uri(key)}: {error}") from error
        if schedule.id != schedule_id:
            raise RegistryError(
                f"{self.store.uri(key)} holds the schedule {schedule.id[:16]}...: put the right "
                "one there, or roll back"
            )
        return schedule

    def promote(
        self, schedule: Schedule, metrics: Mapping[str, float], after: Promotion | None
    ) -> Promotion:
        """Makes a schedule current in the place of another; may be repeated after a kill.

        Args:
            schedule: for this setting.
            metrics: how it did on held-out pairs.
            after: the promotion that it was compared with, or None for the first.

        Raises:
            PromotedMeanwhileError: that one is no longer current.
        """
        data = schedule.dumps().encode()
        self.store.put_new(f"{self.folder}setting.json", canonical_json(self.setting))
        self.store.put_new(f"{self.folder}{schedule.id}.json", data)
        number, previous = (1, None) if after is None else (after.number + 1, after.schedule_id)
        made = self._commit(Promotion(number, schedule.id, previous, now(), metrics))
        self.publish()
        return made

    def rollback(self) -> Promotion:
        """Makes the schedule current again that the current one has replaced.

        Again and again it goes back to the first. A rollback that was killed between its promotion
        and `current.json` is completed, not repeated.

        Raises:
            RegistryError: there is none.
            PromotedMeanwhileError: another promotion came first.
        """
        history = self.history()
        last = history[-1] if history else None
        if last is not None and last.rollback and self._published() != last.to_json():
            self.publish()
            return last
        if last is None or last.previous is None:
            what = "nothing was promoted" if last is None else "the current schedule is the first"
            raise RegistryError(
                f"there is nothing to roll back to in {self.store.uri(self.folder[:-1])}: {what}"
            )
        restored = next(
            one for one in history if one.schedule_id == last.previous and not one.rollback
        )
        made = self._commit(
            Promotion(
                number=last.number + 1,
                schedule_id=restored.schedule_id,
                previous=restored.previous,
                promoted_at=now(),
                metrics=restored.metrics,
                rollback=True,
            )
        )
        self.publish()
        return made

    def publish(self) -> None:
        """Brings `current.json` up to date.

        Looks again after each writing: of two that publish at once, the later promotion's must
        stay, whoever wrote last.
        """
        while (last := self.current()) is not None and self._published() != last.to_json():
            self.store.put(f"{self.folder}current.json", last.to_json())

    def _commit(self, promotion: Promotion) -> Promotion:
        """Puts a promotion into the history, or finds that it is there already."""
        try:
            self.store.put_new(self._promotion_key(promotion.number), promotion.to_json())
        except AlreadyExists:
            there = self.promotion(promotion.number)
            if there.schedule_id != promotion.schedule_id or there.rollback != promotion.rollback:
                raise PromotedMeanwhileError(
                    f"{there.schedule_id[:16]} was promoted meanwhile, at {there.promoted_at}"
                ) from None
            return there
        return promotion

    def _numbers(self) -> list[int]:
        keys = self.store.list(f"{self.folder}promotions/")
        return sorted(int(found[1]) for key in keys if (found := _NUMBER.search(key)))

    def _promotion_key(self, number: int) -> str:
        return f"{self.folder}promotions/{number:06d}.json"

    def promotion(self, number: int) -> Promotion:
        """One promotion of the history. Raises RegistryError where it is damaged."""
        key = self._promotion_key(number)
        try:
            return Promotion.from_json(self.store.get(key))
        except ValueError as error:
            raise RegistryError(f"{self.store.uri(key)} {error}") from error

    def _published(self) -> bytes | None:
        try:
            return self.store.get(f"{self.folder}current.json")
        except MissingKey:
            return None


def find_current(store: Store, setting: Setting, budget: int | None = None) -> Schedule:
    """The schedule that is current for a setting.

    Args:
        store: the registry's root.
        setting: of `setting_of`.
        budget: which of several; None where there is one alone.

    Raises:
        RegistryError: there is none, or there are several; names what differs in the nearest one.
    """
    wanted = dict(setting) if budget is None else {**setting, "budget": budget}
    known = [one for one in settings(store) if Succession(store, one).current() is not None]
    found = [one for one in known if not differences(one, wanted)]
    if len(found) == 1:
        succession = Succession(store, found[0])
        last = succession.current()
        assert last is not None  # promotions are never taken back
        return succession.schedule(last.schedule_id)
    where = store.uri(SCHEDULES[:-1])
    if found:
        budgets = ", ".join(str(one["budget"]) for one in sorted(found, key=lambda s: s["budget"]))
        raise RegistryError(
            f"{where} has current schedules of {budgets} forwards for this setting: choose one "
            "with --budget"
        )
    if not known:
        raise RegistryError(
            f"there is no current schedule in {where}: give the --output of a jobs.refresh that "
            "has promoted one"
        )
    nearest = min(known, key=lambda one: len(differences(one, wanted)))
    raise RegistryError(
        f"{where} has no current schedule for this setting; the nearest, {key_of(nearest)}, "
        f"differs: {'; '.join(differences(nearest, wanted))}. Run jobs.refresh for this setting, "
        "or give a file with --schedule"
    )


def settings(store: Store) -> list[dict[str, Any]]:
    """The settings that a registry has schedules for. Raises RegistryError."""
    keys = [key for key in store.list(SCHEDULES) if _SETTING_KEY.fullmatch(key)]
    return at_once(lambda key: _setting(store, key), keys)


def differences(there: Setting, here: Setting) -> list[str]:
    """Each field of `here` that is another there, as 'revision is X there and Y here'."""
    return [
        f"{name} is {shown(there.get(name))} there and {shown(value)} here"
        for name, value in here.items()
        if there.get(name) != value
    ]


def _setting(store: Store, key: str) -> dict[str, Any]:
    try:
        setting = json.loads(store.get(key))
        if key != f"{SCHEDULES}{key_of(setting)}/setting.json" or "budget" not in setting:
            raise ValueError
    except UNREADABLE:
        raise RegistryError(
            f"{store.uri(key)} is not the setting of its key: restore the file"
        ) from None
    return dict(setting)
