"""A schedule is a file from outside: what is wrong with it is said when it is loaded."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meancache import Edge, Schedule, ScheduleError
from meancache.grid import Grid

SIGMAS = np.linspace(1.0, 0.0, 11).tolist()
UNIT = [{"start": k, "stop": k + 1, "span": 1} for k in range(10)]


def path(*stops: int) -> list[dict]:
    starts = [0, *stops[:-1]]
    return [{"start": t, "stop": s, "span": 1} for t, s in zip(starts, stops, strict=True)]


def valid() -> dict:
    return Schedule.from_edges(SIGMAS, path(1, 2, 5, 10)).to_json()


def test_a_schedule_file_keeps_everything(tmp_path):
    schedule = Schedule(
        grid=Grid(tuple(SIGMAS), "FlowMatchEulerDiscreteScheduler", 7.0),
        edges=(Edge(0, 4, weights={0: 1.0}), Edge(4, 10, weights={0: -0.5, 4: 1.5})),
        method="fitted",
        budget=3,
        gamma=2.0,
        model={"id": "tiny", "revision": "r", "pipeline": "HunyuanVideoPipeline"},
        conditions={"height": 64, "lora": None},
        predicted_cost=0.25,
        calibration={"graph": "g", "trajectories": 10},
    )
    schedule.save(tmp_path / "s.json")
    loaded = Schedule.load(tmp_path / "s.json")
    assert loaded == schedule
    assert loaded.id == schedule.id
    assert json.loads((tmp_path / "s.json").read_text())["schema"] == 1


def test_nfe_counts_the_edges_and_the_starts_are_computed():
    schedule = Schedule.from_edges(SIGMAS, path(1, 2, 5, 10))
    assert schedule.nfe == 4
    assert schedule.computed_steps == (0, 1, 2, 5)
    assert schedule.strip() == "###..#...."


def test_numbers_from_numpy_are_numbers(tmp_path):
    steps = np.array([0, 4, 10])
    edges = [
        {"start": steps[0], "stop": steps[1], "weights": {steps[0]: np.float32(1)}},
        {"start": steps[1], "stop": steps[2], "weights": {steps[0]: -0.5, steps[1]: 1.5}},
    ]
    schedule = Schedule.from_edges(np.array(SIGMAS), edges)
    schedule.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json") == schedule


def test_the_id_changes_with_the_content_and_only_with_it():
    a = Schedule.from_edges(SIGMAS, path(1, 2, 5, 10))
    b = Schedule.from_edges(SIGMAS, path(1, 2, 5, 10))
    c = Schedule.from_edges(SIGMAS, path(1, 2, 6, 10))
    assert a.id == b.id != c.id
    assert len(a.id) == 64


def test_spans_run_as_the_papers_jump_unless_told_otherwise():
    assert Schedule.from_edges(SIGMAS, UNIT).execution == "jump"
    assert Schedule.from_edges(SIGMAS, UNIT, "fine-step").execution == "fine-step"
    assert (
        Schedule.from_edges(SIGMAS, [{"start": 0, "stop": 10, "weights": {0: 1}}]).execution is None
    )


@pytest.mark.parametrize(
    ("edges", "sentence"),
    [
        ([], "at least one edge"),
        (path(1, 2), "must end at num_inference_steps 10"),
        ([*path(4), {"start": 5, "stop": 10, "span": 1}], "contiguous"),
        ([{"start": 1, "stop": 10, "span": 1}], "must start at step 0"),
        ([{"start": 0, "stop": 0, "span": 1}], "go forward"),
        ([{"start": 0, "stop": 10, "span": 6}], "between 1 and 5"),
        ([*path(2), {"start": 2, "stop": 10, "span": 3}], "before step 0"),
        ([{"start": 0, "stop": 10, "span": True}], "whole number"),
        ([{"start": 0, "stop": 10.0, "span": 1}], "whole number"),
        ([{"start": 0, "stop": 10}], "either"),
        ([{"start": 0, "stop": 10, "span": 1, "weights": {"0": 1.0}}], "either"),
        ([{"start": 0, "stop": 10, "weights": {}}], "empty"),
        ([{"start": 0, "stop": 10, "weights": {"1": 1.0}}], "at or before 0"),
        ([{"start": 0, "stop": 10, "weights": {"0": float("nan")}}], "not finite"),
        ([{"start": 0, "stop": 10, "weights": {"zero": 1.0}}], "by its number"),
        ([{"start": 0, "stop": 10, "weights": {"0": "1"}}], "must be a number"),
        (
            [
                {"start": 0, "stop": 5, "weights": {"0": 1}},
                {"start": 5, "stop": 10, "weights": {"3": 1}},
            ],
            "skipped",
        ),
        ([*path(5), {"start": 5, "stop": 10, "weights": {"5": 1}}], "one kind"),
    ],
)  # fmt: skip
def test_edges_that_cannot_run_are_refused_in_a_sentence(edges, sentence):
    with pytest.raises(ScheduleError, match=sentence):
        Schedule.from_edges(SIGMAS, edges)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 2}, "schema 2"),
        ({"budget": 3}, "exceed the budget of 3"),
        ({"budget": "4"}, "whole number `budget`"),
        ({"execution": "leap"}, "execution 'leap'"),
        ({"edges": {}}, "needs a list `edges`"),
        ({"grid": {"sigmas": SIGMAS, "shift": "7"}}, "its `shift` a number"),
        ({"surprise": 1}, "no key 'surprise'"),
        ({"schema": True}, "schema True"),
        ({"conditions": {"height": float("inf")}}, "cannot be written as JSON"),
        ({"model": {"id": "\ud800"}}, "cannot be written as JSON"),
        ({"method": 1}, "`method`"),
        ({"method": "../fitted"}, "a name of letters, digits"),
        ({"model": {"id": [[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]}}, "more than 16 levels"),
        ({"gamma": "4"}, "`gamma`"),
        ({"model": []}, "`model`"),
        ({"grid": {"num_inference_steps": 10, "sigmas": SIGMAS[::-1]}}, "fall strictly"),
        ({"grid": {"num_inference_steps": 9, "sigmas": SIGMAS}}, "num_inference_steps 9"),
        ({"grid": {"num_inference_steps": 10, "sigmas": [*SIGMAS[:-1], 0.01]}}, "final 0"),
        ({"grid": {"num_inference_steps": 10, "sigmas": ["1", 0]}}, "list of numbers"),
        ({"grid": {"num_inference_steps": 1, "sigmas": [10**400, 0]}}, "list of numbers"),
    ],
)
def test_a_file_that_breaks_the_format_is_refused_in_a_sentence(change, sentence):
    data = {key: value for key, value in valid().items() if key != "id"}
    with pytest.raises(ScheduleError, match=sentence):
        Schedule.from_json({**data, **change})


@pytest.mark.parametrize("key", ["schema", "grid", "method", "budget", "edges"])
def test_a_missing_key_is_named(key):
    data = {name: value for name, value in valid().items() if name not in ("id", key)}
    with pytest.raises(ScheduleError, match=f"needs the key '{key}'"):
        Schedule.from_json(data)


def test_weights_have_no_execution_rule():
    edges = [{"start": 0, "stop": 10, "weights": {"0": 1.0}}]
    with pytest.raises(ScheduleError, match="`execution` belongs to edges with spans"):
        Schedule.from_edges(SIGMAS, edges, "jump")


def test_an_edited_file_no_longer_has_its_id():
    data = valid()
    data["predicted_cost"] = 1.0
    with pytest.raises(ScheduleError, match="was edited"):
        Schedule.from_json(data)


def test_an_id_is_the_hash_of_the_file_as_it_is_written():
    data = {key: value for key, value in valid().items() if key not in ("id", "gamma")}
    data["grid"]["sigmas"] = [1, *data["grid"]["sigmas"][1:-1], 0]  # whole numbers, no gamma
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    data["id"] = hashlib.sha256(text.encode()).hexdigest()
    assert Schedule.from_json(data).gamma is None


def test_edges_made_in_code_save_and_load_whatever_their_numbers_are(tmp_path):
    grid = Grid(tuple(SIGMAS))
    edges = (Edge(np.int64(0), np.int64(4), weights={np.int64(0): 1}), Edge(4, 10, weights={4: 1}))
    schedule = Schedule(grid, edges, "fitted", 2)
    schedule.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json") == schedule


@pytest.mark.parametrize("text", ["", "[]", "{", "nul", '{"schema": NaN}', "[" * 100_000, "\x00"])
def test_text_that_is_no_schedule_is_refused(text):
    with pytest.raises(ScheduleError):
        Schedule.loads(text)


def test_a_file_of_any_size_is_read_no_further_than_a_schedule_can_be(tmp_path):
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**40)  # a hole: the file takes no space
    with pytest.raises(ScheduleError, match=r"large\.json.*at most 16777216 bytes"):
        Schedule.load(tmp_path / "large.json")


def test_a_key_given_twice_is_refused_as_readers_could_disagree_on_it():
    text = json.dumps(valid())
    with pytest.raises(ScheduleError, match="names the key 'budget' twice"):
        Schedule.loads('{"budget": 9, ' + text[1:])


def test_sigmas_too_large_for_a_float_are_refused():
    with pytest.raises(ScheduleError, match="too large"):
        Schedule.from_edges([10**400, 0], [])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ScheduleError, match=r"absent\.json"):
        Schedule.load(tmp_path / "absent.json")


ANY_TEXT = st.text(st.characters(), max_size=5)  # lone surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(key=st.sampled_from(sorted(valid())), value=JSON)
def test_any_value_under_any_key_loads_or_is_refused_but_never_crashes(key, value):
    data = {name: kept for name, kept in valid().items() if name != "id"}
    data[key] = value
    try:
        schedule = Schedule.from_json(data)
    except ScheduleError:
        return
    assert schedule.nfe <= schedule.budget
    assert Schedule.loads(schedule.dumps()) == schedule
