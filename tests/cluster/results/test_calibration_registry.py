"""Calibrations are promoted one after the other, found for their model, and never overwritten."""

import dataclasses

import numpy as np
import pytest

from cluster.results.calibration_registry import find_current, has_current, promote
from cluster.results.registry import RegistryError
from cluster.store import open_store
from meancache.calibration import Calibration
from meancache.grid import Grid
from meancache.statistics import Statistics, edge_count

MODEL = {"id": "m", "revision": "r", "pipeline": "P"}
SMALL, LARGE = ({**MODEL, "height": height} for height in (64, 96))


def calibration(seed: int) -> Calibration:
    velocities = np.random.default_rng(seed).normal(size=(4, 20))
    gram = velocities @ velocities.T / 20
    item = Statistics("p", "text", seed, 20, gram, np.ones(edge_count(4)))
    return Calibration(Grid.from_sigmas([1, 0.8, 0.6, 0.3, 0]), MODEL).add([item])


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def test_the_last_promotion_of_a_model_is_current_and_earlier_ones_stay(store):
    assert not has_current(store, SMALL)
    for seed in (0, 1):
        assert promote(store, SMALL, calibration(seed))
    assert has_current(store, SMALL)
    assert find_current(store, MODEL).id == calibration(1).id
    assert find_current(store, MODEL, calibration(0).id).id == calibration(0).id


def test_the_newest_of_any_setting_serves_the_model(store):
    promote(store, SMALL, calibration(0))
    promote(store, LARGE, calibration(1))
    assert find_current(store, MODEL).id == calibration(1).id


def test_promoting_the_same_again_changes_nothing(store):
    promote(store, SMALL, calibration(0))
    before = sorted(store.list())
    assert promote(store, SMALL, calibration(0))
    assert sorted(store.list()) == before


def test_another_model_and_damaged_files_are_refused(store):
    promote(store, SMALL, calibration(0))
    with pytest.raises(RegistryError, match="no current calibration of other"):
        find_current(store, {**MODEL, "id": "other"})
    (promotion,) = [key for key in store.list() if "promotions" in key]
    store.put(promotion, b"{}")
    with pytest.raises(RegistryError, match="is damaged: not a promotion"):
        find_current(store, MODEL)
    (setting,) = [key for key in store.list() if key.endswith("setting.json")]
    store.put(setting, b"[1]")
    with pytest.raises(RegistryError, match="is not the setting of its key"):
        find_current(store, MODEL)


def test_a_file_in_the_place_of_a_calibration_is_refused(store):
    promote(store, SMALL, calibration(0))
    (file,) = [key for key in store.list() if key.endswith(".parquet")]
    other = dataclasses.replace(calibration(0), trajectories={})
    store.put(file, other.statistics_parquet()[:-9])
    with pytest.raises(RegistryError, match="calibration"):
        find_current(store, MODEL)
