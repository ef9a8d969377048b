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
    assert all(row["seconds"] > 0 for row in rows.values())
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "## Shift 15, 12 steps, B = 6"
    assert sum(line.startswith("| `") for line in said) == 5
