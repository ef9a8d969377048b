"""A root's job.json from a stranger is this job's, or the root is refused in a sentence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.models.model import Model, find_model
from cluster.store import open_store
from cluster.work.plan import SPEC_KEY, SpecError, check_spec, plan_items, specification
from cluster.work.prompts import Prompt
from meancache.json_values import canonical_json
from tests.support.hostile import FUZZ, JSON, damaged, mutated

MODEL: Model = find_model("tiny")
SPEC = specification(
    "render", plan_items([Prompt(1, "a", "one", 1)], MODEL, MODEL.defaults), MODEL, MODEL.defaults
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


def accepts_equals_alone(root, data: bytes) -> None:
    (root / SPEC_KEY).write_bytes(data)
    try:
        check_spec(open_store(str(root)), SPEC)
    except SpecError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert SPEC_KEY in refusal
        assert "another --output" in refusal
        return
    there = json.loads(data)
    assert {key: value for key, value in there.items() if value is not None} == {
        key: value for key, value in SPEC.items() if value is not None
    }


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(root, data):
    accepts_equals_alone(root, data)


@FUZZ
@given(JSON)
def test_any_json(root, value):
    accepts_equals_alone(root, json.dumps(value).encode())


@FUZZ
@given(mutated(SPEC))
def test_a_job_with_one_thing_changed(root, text):
    accepts_equals_alone(root, text.encode())


@FUZZ
@given(damaged(canonical_json(SPEC)))
def test_a_damaged_job(root, data):
    accepts_equals_alone(root, data)
