"""Which calibration is in use for which model: beside the schedules of a registry, with a history.

    calibrations/{key}/setting.json              what the key is the hash of
    calibrations/{key}/{calibration id}.parquet  never overwritten
    calibrations/{key}/promotions/{n:06d}.json   created once; the one of the highest n is current

As with schedules a promotion is one conditional put, so that of two at once one comes first. A
calibration serves runs of any grid and size, so the newest of a model is found for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.results.manifest import UNREADABLE, now
from cluster.results.registry import RegistryError, key_of
from cluster.store import AlreadyExists, MissingKey, Store
from meancache.calibration import Calibration
from meancache.errors import CalibrationError
from meancache.json_values import canonical_json

CALIBRATIONS = "calibrations/"
_PROMOTION = re.compile(r"(calibrations/[0-9a-f]{32}/)promotions/(\d{6})\.json")
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PromotedCalibration:
    """A calibration becoming current; the content of a file of `promotions/`.

    Attributes:
        calibration_id: what is current from here on.
        previous: what was current before; None where there was none.
        promoted_at: UTC, ISO 8601.
    """

    calibration_id: str
    previous: str | None
    promoted_at: str


def promote(store: Store, setting: Mapping[str, Any], calibration: Calibration) -> bool:
    """Makes a calibration current for its setting; may be repeated after a kill.

    Args:
        store: the registry's root.
        setting: that it was made under, without a budget (`registry.setting_of`).
        calibration: as it was measured.

    Returns:
        Whether it is current now; False where somebody else promoted another meanwhile.
    """
    folder = f"{CALIBRATIONS}{key_of(setting)}/"
    store.put_new(f"{folder}setting.json", canonical_json(dict(setting)))
    if not store.exists(f"{folder}{calibration.id}.parquet"):
        store.put_new(f"{folder}{calibration.id}.parquet", calibration.statistics_parquet())
    number, last = _last(store, folder)
    previous = None if last is None else last.calibration_id
    if previous == calibration.id:
        return True
    made = PromotedCalibration(calibration.id, previous, now())
    try:
        store.put_new(f"{folder}promotions/{number + 1:06d}.json", canonical_json(vars(made)))
    except AlreadyExists:
        return False
    return True


def has_current(store: Store, setting: Mapping[str, Any]) -> bool:
    """Whether a calibration was promoted for the setting before."""
    return _last(store, f"{CALIBRATIONS}{key_of(setting)}/")[1] is not None


def find_current(store: Store, model: Mapping[str, Any], wanted: str | None = None) -> Calibration:
    """The calibration of a model that was promoted last.

    Args:
        store: the registry's root.
        model: {id, revision, pipeline}.
        wanted: an id, to find that one again whatever was promoted since.

    Raises:
        RegistryError: there is none, or it is damaged.
    """
    found = []
    for folder in sorted({match[1] for match in _promotions(store)}):
        if any(_setting(store, folder).get(name) != value for name, value in model.items()):
            continue
        _, last = _last(store, folder)
        if last is not None:
            found.append((last.promoted_at, folder, last.calibration_id))
            if wanted is not None and store.exists(f"{folder}{wanted}.parquet"):
                return _read(store, f"{folder}{wanted}.parquet")
    if not found:
        raise RegistryError(
            f"there is no current calibration of {model.get('id')} in "
            f"{store.uri(CALIBRATIONS[:-1])}: give the --output of a jobs.refresh that has "
            "promoted one"
        )
    _, folder, calibration_id = max(found)
    return _read(store, f"{folder}{calibration_id}.parquet")


def _promotions(store: Store) -> list[re.Match[str]]:
    return list(filter(None, map(_PROMOTION.fullmatch, store.list(CALIBRATIONS))))


def _last(store: Store, folder: str) -> tuple[int, PromotedCalibration | None]:
    """The number and the content of a setting's last promotion; (0, None) before the first."""
    keys = store.list(f"{folder}promotions/")
    number = max((int(found[2]) for key in keys if (found := _PROMOTION.fullmatch(key))), default=0)
    if number == 0:
        return 0, None
    key = f"{folder}promotions/{number:06d}.json"
    try:
        promotion = PromotedCalibration(**json.loads(store.get(key)))
        if not _ID.fullmatch(promotion.calibration_id):  # it becomes a key
            raise ValueError
    except UNREADABLE as error:
        raise RegistryError(f"{store.uri(key)} is damaged: not a promotion") from error
    return number, promotion


def _setting(store: Store, folder: str) -> dict[str, Any]:
    key = f"{folder}setting.json"
    try:
        setting = dict(json.loads(store.get(key)))
        if folder != f"{CALIBRATIONS}{key_of(setting)}/":
            raise ValueError
    except (MissingKey, *UNREADABLE) as error:
        raise RegistryError(
            f"{store.uri(key)} is not the setting of its key: restore the file"
        ) from error
    return setting


def _read(store: Store, key: str) -> Calibration:
    try:
        return Calibration.from_parquet(store.get(key))
    except (MissingKey, CalibrationError) as error:
        raise RegistryError(f"{store.uri(key)}: {error}") from error
