"""What a stranger's file can make a job print: one plain line, whatever escapes the file holds."""

import json

import numpy as np
import pytest

from cluster.models.model import ModelError, find_model
from jobs._shared import cli as _cli
from jobs.render import __main__ as render
from meancache import Schedule
from tests.support.hostile import ESCAPE, assert_sentence

SCHEDULE = Schedule.from_edges(
    np.linspace(1.0, 0.0, 7).tolist(), [{"start": 0, "stop": 6, "span": 1}]
).to_json()
HOSTILE_SCHEDULES = [
    {"method": ESCAPE},
    {"execution": ESCAPE},
    {"schema": ESCAPE},
    {"id": ESCAPE},
    {"id": {ESCAPE: ESCAPE}},
    {"budget": ESCAPE},
    {ESCAPE: 1},
    {"grid": {**SCHEDULE["grid"], "num_inference_steps": ESCAPE}},
    {"grid": {**SCHEDULE["grid"], "scheduler": ESCAPE}},
    {"edges": [ESCAPE]},
    {"edges": [{ESCAPE: 1}]},
    {"edges": [{"start": ESCAPE, "stop": 6, "span": 1}]},
    {"edges": [{"start": 0, "stop": 6, "weights": {ESCAPE: 1.0}}]},
    {"edges": [{"start": 0, "stop": 6, "weights": {"0": ESCAPE}}]},
    {"model": {"id": ESCAPE}},
    {"model": {"revision": "x" * 10_000}},
    {"conditions": {"dtype": ESCAPE}},
]
HOSTILE_ROWS = [
    {ESCAPE: "a"},
    {"prompt": "a", "seed": ESCAPE},
    {"prompt": "a", "height": ESCAPE},
    {"prompt": "a", "height": 10**400},
    {"prompt": "a", "guidance_scale": {ESCAPE: ESCAPE}},
    {"prompt": "a", "prompt_id": ESCAPE * 100},
    {"prompt": "a", "negative_prompt": [ESCAPE]},
]


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a render that must be refused, and checks what it printed."""

    def run(*more: str, rows: object = None) -> None:
        (tmp_path / "p.jsonl").write_text(json.dumps(rows or {"prompt": "a"}))
        command = ["--model", "tiny", "--prompts", str(tmp_path / "p.jsonl")]
        assert render.main([*command, "--output", str(tmp_path / "out"), *more]) == (
            _cli.EXIT_REFUSED
        )
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        (line,) = said.err.rstrip("\n").split("\n")
        assert line.isprintable()
        assert len(line) < 1000

    return run


@pytest.mark.parametrize("change", HOSTILE_SCHEDULES)
def test_a_schedule_refused(tmp_path, refused, change):
    kept = {name: value for name, value in SCHEDULE.items() if name != "id"}
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({**kept, **change}))
    refused("--schedule", str(path))


@pytest.mark.parametrize("row", HOSTILE_ROWS)
def test_a_row_refused(refused, row):
    refused(rows=row)


@pytest.mark.parametrize("name", [ESCAPE, f"a/{ESCAPE}", "\x1b[31m/b", "x" * 10, "a\nb/c"])
def test_a_model_that_is_none(name):
    with pytest.raises(ModelError) as refusal:
        find_model(name)
    assert_sentence(refusal.value)
