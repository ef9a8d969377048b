"""A schedule file from a stranger loads as a schedule that runs, or is refused in a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meancache import Schedule, ScheduleError
from meancache.velocity import velocities_in_use
from tests.support.hostile import ESCAPE, FUZZ, JSON, assert_sentence, damaged, mutated

SHIPPED = Path(__file__).parents[2] / "schedules" / "tiny"
SIGMAS = np.linspace(1.0, 0.0, 7).tolist()
SPANS = [
    {"start": 0, "stop": 1, "span": 1},
    {"start": 1, "stop": 3, "span": 1},
    {"start": 3, "stop": 6, "span": 2},
]
WEIGHTS = [
    {"start": 0, "stop": 2, "weights": {"0": 1.0}},
    {"start": 2, "stop": 6, "weights": {"0": -0.5, "2": 1.5}},
]
VALID = [
    {key: value for key, value in schedule.to_json().items() if key != "id"}
    for schedule in (
        Schedule.from_edges(SIGMAS, SPANS, "fine-step"),
        Schedule.from_edges(SIGMAS, SPANS, "jump"),
        Schedule.from_edges(SIGMAS, WEIGHTS),
    )
]


def loads_or_refuses(text: str | bytes) -> None:
    try:
        schedule = Schedule.loads(text)
    except ScheduleError as error:
        assert_sentence(error)
        return
    again = Schedule.loads(schedule.dumps())
    assert (again, again.id) == (schedule, schedule.id)
    assert schedule.nfe <= schedule.budget
    assert np.isfinite(velocities_in_use(schedule)).all()


@FUZZ
@given(st.binary(max_size=200) | st.text(st.characters(), max_size=200))
def test_any_bytes(data):
    loads_or_refuses(data)


@FUZZ
@given(JSON)
def test_any_json(value):
    loads_or_refuses(json.dumps(value))


@FUZZ
@given(st.sampled_from(VALID).flatmap(mutated))
def test_a_schedule_with_one_thing_changed(text):
    loads_or_refuses(text)


@FUZZ
@given(damaged((SHIPPED / "fitted-b10.json").read_bytes()))
def test_a_damaged_file(data):
    loads_or_refuses(data)


@FUZZ
@given(st.binary(max_size=3), st.integers(0, 500))
def test_a_file_in_another_encoding(prefix, place):
    text = json.dumps(VALID[2], ensure_ascii=False)
    for encoding in ("utf-8-sig", "utf-16", "utf-32", "utf-16-be"):
        data = text.encode(encoding)
        loads_or_refuses(data[:place] + prefix + data[place:])


@pytest.mark.parametrize("step", ["٣", "01", " 1", "1 ", "+1", "1_0", "-0", "1.0", "", ESCAPE, "¹"])
def test_a_step_is_named_by_its_plain_digits_alone(step):
    edges = [*WEIGHTS[:1], {"start": 2, "stop": 6, "weights": {step: 1.0}}]
    with pytest.raises(ScheduleError, match="name a step by its number") as refusal:
        Schedule.loads(json.dumps({**VALID[2], "edges": edges}))
    assert_sentence(refusal.value)


@pytest.mark.parametrize("steps", [10**9, 10**400])
def test_a_number_of_steps_allocates_nothing(steps):
    grid = {**VALID[0]["grid"], "num_inference_steps": steps}
    with pytest.raises(ScheduleError, match="but lists 6 steps") as refusal:
        Schedule.loads(json.dumps({**VALID[0], "grid": grid}))
    assert_sentence(refusal.value)


def test_more_steps_than_their_matrix_has_room_for_are_refused():
    sigmas = np.linspace(1.0, 0.0, 20_001).tolist()
    grid = {**VALID[0]["grid"], "num_inference_steps": 20_000, "sigmas": sigmas}
    with pytest.raises(ScheduleError, match="between 2 and 1001"):
        Schedule.loads(json.dumps({**VALID[0], "grid": grid}))


@pytest.mark.parametrize("depth", [17, 300, 980, 985, 990, 995, 100_000])
def test_nesting_is_refused_long_before_it_exhausts_a_stack(depth):
    nested = json.dumps({**VALID[0], "model": {"id": "HERE"}})
    nested = nested.replace('"HERE"', "[" * depth + "]" * depth)
    with pytest.raises(ScheduleError, match="more than 16 levels"):
        Schedule.loads(nested)


def test_a_hundred_megabytes_are_refused_unread():
    with pytest.raises(ScheduleError, match="at most 16777216 bytes"):
        Schedule.loads(b"[" * 100_000_000)


def test_a_number_of_too_many_digits_is_refused():
    text = json.dumps({**VALID[0], "budget": "HERE"}).replace('"HERE"', "1" * 1_000_000)
    with pytest.raises(ScheduleError, match="not JSON"):
        Schedule.loads(text)


@pytest.mark.parametrize("name", ["../b", "a/b", "..", "", ".hidden", "a b", "é", "a\n", "x" * 65])
def test_a_method_that_could_not_be_part_of_a_key_is_refused(name):
    with pytest.raises(ScheduleError, match="a name of letters, digits") as refusal:
        Schedule.loads(json.dumps({**VALID[0], "method": name}))
    assert_sentence(refusal.value)
