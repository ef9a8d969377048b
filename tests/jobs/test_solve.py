"""Schedules from a finished graph, in seconds, without a model."""

import pytest

from jobs import solve
from meancache import Schedule


def test_every_budget_gets_a_file_that_loads_and_says_where_it_comes_from(
    tmp_path, graph, graph_folder, capsys
):
    out = tmp_path / "schedules"
    code = solve.main(["--graph", graph_folder, "--budgets", "10,8,12", "--output", str(out)])
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "paper-b10.json",
        "paper-b12.json",
        "paper-b8.json",
    ]
    for budget in (8, 10, 12):
        schedule = Schedule.load(out / f"paper-b{budget}.json")
        assert schedule.nfe <= budget == schedule.budget
        assert schedule.method == "paper"
        assert schedule.gamma == 3.0  # Table 4's for HunyuanVideo
        assert schedule.execution == "jump"
        assert schedule.calibration == {"graph": graph.id, "trajectories": 2}
        assert schedule.model == graph.model
    printed = capsys.readouterr().out
    assert Schedule.load(out / "paper-b10.json").strip() in printed


def test_gamma_and_execution_are_the_users_to_choose(tmp_path, graph_folder):
    out = tmp_path / "s"
    arguments = ["--gamma", "1.5", "--execution", "fine-step", "--budgets", "9"]
    assert solve.main(["--graph", graph_folder, "--output", str(out), *arguments]) == 0
    schedule = Schedule.load(out / "paper-b9.json")
    assert (schedule.gamma, schedule.execution) == (1.5, "fine-step")


def test_flags_may_come_from_a_file_and_flags_win(tmp_path, graph_folder):
    config = tmp_path / "solve.yaml"
    config.write_text(f"graph: {graph_folder}\nbudgets: '7,9'\noutput: {tmp_path / 'out'}\n")
    assert solve.main(["--config", str(config), "--budgets", "11"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["paper-b11.json"]


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        solve.main(["--help"])
    assert exit_.value.code == 0
    assert "example:\n  python -m jobs.solve --graph out/graph" in capsys.readouterr().out
