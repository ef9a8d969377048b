"""What a search gains, at a size that says nothing of quality."""

import json
from dataclasses import replace

import numpy as np
import pytest

from meancache.schedule import Edge, Schedule
from meancache.tiny.training import tail


@pytest.mark.slow
def test_every_method_has_a_row_with_what_it_gained_and_cost(tmp_path, monkeypatch, capsys):
    for name, value in (("FEW", 2), ("TRAJECTORIES", 4), ("CHOSEN", 4), ("FITTED", 2)):
        monkeypatch.setattr(tail, name, value)
    file = tmp_path / "tail.json"
    command = ["tail", "--steps", "12", "--shift", "15", "--pairs", "2", "--budgets", "5"]
    monkeypatch.setattr("sys.argv", [*command, "--videos", "6,12", "--output", str(file)])
    tail.main()
    found = json.loads(file.read_text())
    rows = found["rows"]
    assert [row["method"] for row in rows[:2]] == ["fitted", "fitted"]
    assert {row["method"] for row in rows[2:]} == {"searched", "refined"}
    assert rows[0]["gained"] == rows[0]["tail_gained"] == 0.0
    for row in rows:
        assert row["nfe"] <= row["budget"] == 5
        assert row["full_videos"] > 0
        assert row["gained"] == pytest.approx(
            row["psnr"]["mean"] - rows[0]["psnr"]["mean"], abs=0.01
        )
    assert max(row["full_videos"] for row in rows if row["method"] == "searched") <= 12
    assert found["ranked"][0] in capsys.readouterr().err


def test_the_last_search_of_an_output_is_found_again(tmp_path):
    rows = [{"method": "searched", "budget": 10, "steps": [0, last]} for last in (3, 7)]
    rows += [{"method": "fitted", "budget": 10, "steps": [0, 9]}]
    file = tmp_path / "tail.json"
    file.write_text(json.dumps({"rows": rows}))
    assert tail.steps_found(file) == {10: (0, 7)}


def test_what_is_gained_is_said_with_errors():
    schedule = Schedule.from_edges([1.0, 0.5, 0.0], [Edge(0, 2, weights={0: 1.0})])
    schedule = replace(schedule, calibration={"setting": "here"})
    before = np.array([30.0, 40.0, 50.0])
    found = tail.row(schedule, before + np.array([2.0, 1.0, 3.0]), before)
    assert (found["gained"], found["tail_gained"]) == (2.0, 2.0)
    assert found["gained_error"] == pytest.approx(1 / np.sqrt(3), abs=1e-3)
    assert 0 < found["tail_gained_error"] < 2
    assert "tenth 32.0, worst 32.0; gained +2.0 ± 0.6" in tail.line({**found, "full_videos": 7})


def test_a_score_that_orders_paths_as_other_runs_do_is_told():
    random = np.random.default_rng(0)
    paths = [level + random.normal(size=32) for level in np.arange(0.0, 60.0, 3.0)]
    said = tail.rankings(paths)
    assert "20 paths" in said
    assert said.count("0.9") + said.count("1.00") == 3
