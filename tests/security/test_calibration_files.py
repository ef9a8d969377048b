"""A graph file from a stranger is the graph that was calibrated, or refused in a sentence."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meancache import calibration_file
from meancache.calibration import Calibration
from meancache.errors import CalibrationError
from meancache.grid import Grid
from meancache.statistics import Statistics, edge_count
from tests.support.hostile import ESCAPE, FUZZ, JSON, assert_sentence, damaged, mutated

STEPS = 6


def trajectory(seed: int) -> Statistics:
    velocities = np.random.default_rng(seed).normal(size=(STEPS, 40))
    l1 = np.abs(np.random.default_rng(seed).normal(size=edge_count(STEPS)))
    return Statistics(f"p{seed}", "text", seed, 40, velocities @ velocities.T / 40, l1)


GRAPH = Calibration(
    Grid.from_sigmas(np.linspace(1, 0, STEPS + 1).tolist()), {"id": "m"}, {"height": 64}
).add([trajectory(0), trajectory(1)])
DATA = GRAPH.statistics_parquet()
TABLE = pq.read_table(io.BytesIO(DATA))
SETTING = json.loads(TABLE.schema.metadata[b"setting"])


def reads_or_refuses(data: bytes) -> None:
    try:
        graph = Calibration.from_parquet(data)
    except CalibrationError as error:
        assert_sentence(error)
        return
    assert graph.id == GRAPH.id


def parquet(table: pa.Table, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def described(setting: str | bytes, **more: bytes) -> bytes:
    """The file with another `setting`."""
    kept = {**TABLE.schema.metadata, b"setting": setting, **{k.encode(): more[k] for k in more}}
    return parquet(TABLE.replace_schema_metadata(kept))


@FUZZ
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda inner: b"PAR1" + inner))
def test_any_bytes(data):
    reads_or_refuses(data)


@FUZZ
@given(damaged(DATA))
def test_a_damaged_file(data):
    reads_or_refuses(data)


@FUZZ
@given(st.integers(0, 2**20), st.binary(min_size=1, max_size=2))
def test_a_damaged_footer(place, change):
    """The footer says what to allocate: its damage must not be believed."""
    length = int.from_bytes(DATA[-8:-4], "little")
    start = len(DATA) - 8 - length + place % (length + 4)
    reads_or_refuses(DATA[:start] + change + DATA[start + len(change) :])


def test_every_byte_of_the_footer_damaged():
    """Damage that pyarrow's C++ did not expect has ended the process, so that every byte counts."""
    for place in range(len(DATA) - 8 - int.from_bytes(DATA[-8:-4], "little"), len(DATA)):
        reads_or_refuses(DATA[:place] + bytes([DATA[place] ^ 16]) + DATA[place + 1 :])


@FUZZ
@given(st.binary(max_size=50) | JSON.map(json.dumps) | mutated(SETTING))
def test_any_setting(setting):
    reads_or_refuses(described(setting))


@pytest.mark.parametrize("depth", [100, 985, 990, 995, 100_000])
def test_a_setting_nested_without_end(depth):
    bomb = json.dumps({**SETTING, "model": "HERE"}).replace('"HERE"', "[" * depth + "]" * depth)
    with pytest.raises(CalibrationError) as refusal:
        Calibration.from_parquet(described(bomb))
    assert "RecursionError" not in str(refusal.value)


@pytest.mark.parametrize("name", ["model", "grid", "conditions"])
def test_a_setting_whose_parts_are_not_objects(name):
    for value in ("", [], None, 1):
        with pytest.raises(
            CalibrationError, match=f"the calibration's {name} must be a JSON object"
        ):
            Calibration.from_parquet(described(json.dumps({**SETTING, name: value})))


def with_row(**change) -> bytes:
    rows = TABLE.to_pylist()
    rows[1].update(change)
    return parquet(pa.Table.from_pylist(rows, TABLE.schema))


HOSTILE_ROWS = [
    ({"gram": [float("nan")] * STEPS**2}, "not finite"),
    ({"gram": [float("inf")] * STEPS**2}, "not finite"),
    ({"gram": [1e308] * STEPS**2}, "not finite"),
    ({"gram": [-1.0] * STEPS**2}, "of no trajectory"),
    ({"gram": [None] * STEPS**2}, "not finite"),
    ({"gram": [1.0]}, "does not hold the statistics of 6 steps"),
    ({"gram": []}, "does not hold the statistics of 6 steps"),
    ({"l1": [-1.0] * edge_count(STEPS)}, "of no trajectory"),
    ({"l1": [float("nan")] * edge_count(STEPS)}, "not finite"),
    ({"l1": [1.0] * STEPS**2}, "does not hold the statistics of 6 steps"),
    (
        {"gram": [1.0] * edge_count(STEPS), "l1": [1.0] * STEPS**2},
        "does not hold the statistics of 6 steps",
    ),
    ({"elements": 0}, "of no trajectory"),
    ({"elements": -1}, "of no trajectory"),
    ({"seed": -5}, "does not have its id"),
    ({"prompt": ESCAPE}, "does not have its id"),
    ({"prompt_id": ESCAPE, "elements": 0}, "of no trajectory"),
    ({"prompt_id": "p0", "seed": 0}, "does not have its id"),
]


@pytest.mark.parametrize(("change", "sentence"), HOSTILE_ROWS)
def test_the_right_columns_with_hostile_values(change, sentence):
    with pytest.raises(CalibrationError, match=sentence) as refusal:
        Calibration.from_parquet(with_row(**change))
    assert_sentence(refusal.value)


def test_a_grid_of_other_steps_than_the_rows_have():
    grid = Grid.from_sigmas(np.linspace(1, 0, 1001).tolist()).to_json()
    with pytest.raises(CalibrationError, match="does not hold the statistics of 1000 steps"):
        Calibration.from_parquet(described(json.dumps({**SETTING, "grid": grid})))


def test_columns_of_another_schema():
    for table in (
        pa.table({"a": [1]}),
        pa.table({f"column {number}": [1] for number in range(5000)}),
        TABLE.rename_columns([ESCAPE, *TABLE.column_names[1:]]),
        TABLE.append_column("more", pa.array([1, 2])),
        TABLE.set_column(4, "gram", pa.array(["x", "y"])),
    ):
        kept = table.replace_schema_metadata(TABLE.schema.metadata)
        with pytest.raises(CalibrationError, match="columns are not those") as refusal:
            Calibration.from_parquet(parquet(kept))
        assert_sentence(refusal.value)


def test_numbers_that_unpack_to_more_than_the_limit_are_refused_before_they_do(monkeypatch):
    rows = [{**TABLE.to_pylist()[0], "seed": seed} for seed in range(200)]
    bomb = parquet(pa.Table.from_pylist(rows, TABLE.schema), compression="zstd")
    monkeypatch.setattr(calibration_file, "MAX_BYTES", 100_000)
    assert len(bomb) < 10_000
    with pytest.raises(CalibrationError, match="unpacks to more than 100000 bytes"):
        Calibration.from_parquet(bomb)


def test_texts_that_unpack_to_more_than_the_limit_are_refused(monkeypatch):
    rows = [{**TABLE.to_pylist()[0], "seed": seed, "prompt": "x" * 10_000} for seed in range(200)]
    bomb = parquet(pa.Table.from_pylist(rows, TABLE.schema), compression="zstd")
    monkeypatch.setattr(calibration_file, "MAX_BYTES", 600_000)
    with pytest.raises(CalibrationError, match="unpacks to more than 600000 bytes"):
        Calibration.from_parquet(bomb)


def test_graphs_whose_settings_name_hostile_keys_differ_in_a_sentence():
    one, other = (Calibration(GRAPH.grid, {ESCAPE: value}) for value in (ESCAPE, "b" * 10_000))
    with pytest.raises(CalibrationError, match="differ in model") as refusal:
        one.merge(other)
    assert_sentence(refusal.value)
