"""The table of every method, at a size that says nothing of quality."""

import json

import pytest

from meancache.baselines.dpcache import dpcache_schedules
from meancache.tiny.training import table


@pytest.mark.slow
def test_the_table_has_a_row_a_method_with_all_that_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "METHODS", (dpcache_schedules,))
    monkeypatch.setattr(table, "TRAJECTORIES", 2)
    monkeypatch.setattr(table, "SEARCHED_ON", 4)
    monkeypatch.setattr(table, "FITTED_ON", 2)
    file = tmp_path / "table.json"
    command = ["table", "--steps", "12", "--shift", "15", "--pairs", "2", "--budgets", "6"]
    monkeypatch.setattr(
        "sys.argv", [*command, "--search", "10", "--schedules-only", "--output", str(file)]
    )
    table.main()
    found = json.loads(file.read_text())
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"fitted", "paper", "secant", "searched", "dpcache"}
    for row in rows.values():
        assert row["nfe"] <= row["budget"] == 6
        assert len(row["psnrs"]) == found["pairs"] == 2
        assert row["psnr"]["worst"] == pytest.approx(min(row["psnrs"]), abs=0.01)
        assert row["psnr"]["worst"] <= row["psnr"]["tail"] <= row["psnr"]["mean"]
    assert rows["fitted"]["psnr"]["mean"] > rows["dpcache"]["psnr"]["mean"]
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_hooks_row_without_scores_is_not_printed():
    summary = {"mean": 30.0, "standard_error": 1.0, "tail": 28.0, "worst": 25.0}
    measured = dict.fromkeys(("psnr", "ssim", "flip"), summary)
    row = {"method": "euler", "setting": "10 steps", "share": 0.2}
    said = table.text_table([{**row, **measured}, {**row, "method": "slow", "share": 0.9}])
    assert said.splitlines() == [said]
    assert "euler" in said
    assert "tenth 28.0, worst 25.0" in said
