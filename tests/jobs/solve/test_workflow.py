"""From a finished graph to schedules: in seconds without a model, or fitted on gangs."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs._shared.predictions import smallest_budget
from jobs.solve import __main__ as solve
from jobs.solve.fitting import LIMIT_VIDEOS, FitAnswer
from jobs.solve.workflow import gain
from meancache import Schedule
from meancache.errors import SolverError
from meancache.methods import candidate_paths, paper_schedules, secant_schedules
from tests.jobs.conftest import PROMPTS
from tests.support.calibrations import recorded

STEPS = 16


def test_every_budget_gets_a_file_that_loads_and_says_where_it_comes_from(
    tmp_path, graph, graph_folder, capsys
):
    out = tmp_path / "schedules"
    command = ["--graph", graph_folder, "--budgets", "10,8,12", "--output", str(out)]
    assert solve.main([*command, "--method", "paper"]) == 0
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
    arguments = ["--method", "paper", "--gamma", "1.5", "--execution", "fine-step"]
    command = ["--graph", graph_folder, "--budgets", "9", "--output", str(out)]
    assert solve.main([*command, *arguments]) == 0
    schedule = Schedule.load(out / "paper-b9.json")
    assert (schedule.gamma, schedule.execution) == (1.5, "fine-step")


def test_flags_may_come_from_a_file_and_flags_win(tmp_path, graph_folder):
    config = tmp_path / "solve.yaml"
    config.write_text(
        f"graph: {graph_folder}\nmethod: secant\nbudgets: '7,9'\noutput: {tmp_path / 'out'}\n"
    )
    assert solve.main(["--config", str(config), "--budgets", "11"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["secant-b11.json"]


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        solve.main(["--help"])
    assert exit_.value.code == 0
    assert "example:\n  python -m jobs.solve --graph out/graph" in capsys.readouterr().out


def test_all_paths_of_a_method_are_a_matter_of_seconds(graph):
    # A promise to users rather than a race: 5 s on one core are some twenty times what it takes.
    started = time.process_time()
    budgets = list(range(2, 26))
    candidate_paths(graph, budgets)
    secant_schedules(graph, budgets)
    paper_schedules(graph, budgets, 3.0, "jump")
    assert time.process_time() - started < 3 * 5


@pytest.fixture(scope="module")
def root(tmp_path_factory, model) -> Path:
    """A root with the graph of three real trajectories of 16 steps."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "graph").mkdir()
    graph = recorded(model, STEPS, PROMPTS)
    (folder / "graph" / "statistics.parquet").write_bytes(graph.statistics_parquet())
    return folder


@pytest.mark.usefixtures("shared_cluster")
class TestFitted:
    """The default method, on real gangs."""

    def test_schedules_are_fitted_within_the_limit_and_predict_their_fidelity(self, root, capsys):
        command = ["--graph", str(root / "graph"), "--budgets", "4,5"]
        assert solve.main([*command, "--output", str(root / "fitted")]) == 0
        said = capsys.readouterr().out
        for budget in (4, 5):
            schedule = Schedule.load(root / "fitted" / f"fitted-b{budget}.json")
            assert (schedule.method, schedule.nfe) == ("fitted", budget)
            assert schedule.calibration["fitted_on"] == 3
            assert schedule.calibration["reference_steps"] == STEPS
            known = schedule.calibration
            assert known["psnr_worst"] <= known["psnr_tail"] <= known["psnr"]
            low, high = schedule.predicted_interval
            assert low < schedule.predicted_psnr < high
        forwards, videos = re.search(r"took (\d+) forwards: ([\d.]+) full videos", said).groups()
        assert int(forwards) <= LIMIT_VIDEOS * STEPS * 3
        assert float(videos) <= LIMIT_VIDEOS
        gains = [float(gain) for gain in re.findall(r"([+-][\d.]+) dB at B", said)]
        assert len(gains) == 2
        assert min(gains) > 0

    @pytest.mark.slow
    def test_any_number_of_gangs_makes_the_same_schedules(self, root):
        command = ["--graph", str(root / "graph"), "--budgets", "4,5"]
        assert solve.main([*command, "--gangs", "2", "--output", str(root / "again")]) == 0
        for first in (root / "fitted").iterdir():
            assert (root / "again" / first.name).read_bytes() == first.read_bytes()

    def test_a_gang_of_two_ranks_comes_to_the_same_weights(self, root):
        command = ["--graph", str(root / "graph"), "--budgets", "4,5", "--gang-size", "2"]
        assert solve.main([*command, "--output", str(root / "two")]) == 0
        one, two = (Schedule.load(root / name / "fitted-b4.json") for name in ("fitted", "two"))
        assert one.computed_steps == two.computed_steps
        for mine, theirs in zip(one.edges, two.edges, strict=True):
            assert mine.weights == pytest.approx(theirs.weights, abs=2e-2)
        assert one.predicted_psnr == pytest.approx(two.predicted_psnr, abs=0.5)

    def test_a_target_takes_the_smallest_budget_that_reaches_it(self, root, capsys):
        known = {
            budget: json.loads((root / "fitted" / f"fitted-b{budget}.json").read_text())
            for budget in (4, 5)
        }
        reached = {budget: one["calibration"]["psnr_interval"][0] for budget, one in known.items()}
        assert reached[4] < reached[5]
        target = (reached[4] + reached[5]) / 2
        command = ["--graph", str(root / "graph"), "--budgets", "4,5"]
        out = root / "targeted"
        assert solve.main([*command, "--target-psnr", f"{target}", "--output", str(out)]) == 0
        assert [path.name for path in out.iterdir()] == ["fitted-b5.json"]

    def test_a_finer_reference_is_named_in_the_schedule(self, root):
        command = ["--graph", str(root / "graph"), "--budgets", "4", "--trajectories", "1"]
        out = root / "fine"
        assert solve.main([*command, "--reference-steps", "32", "--output", str(out)]) == 0
        schedule = Schedule.load(out / "fitted-b4.json")
        assert schedule.calibration["reference_steps"] == 32
        assert schedule.calibration["fitted_on"] == 1
        assert schedule.predicted_interval is None  # there is no other prompt to predict by

    def test_a_dry_run_starts_nothing(self, root, capsys):
        out = root / "dry"
        command = ["--graph", str(root / "graph"), "--search", "7", "--dry-run"]
        assert solve.main([*command, "--output", str(out)]) == 0
        said = capsys.readouterr().out
        assert f"{LIMIT_VIDEOS * STEPS * 3} forwards" in said
        assert "7 full videos a budget to search" in said
        assert not out.exists()


def test_a_fidelity_that_is_not_known_is_never_chosen(graph):
    schedules = list(secant_schedules(graph, [5, 6]).values())
    with pytest.raises(SolverError, match="none has a known fidelity"):
        smallest_budget(schedules, 20.0)


def test_a_target_counts_on_the_lower_end_of_what_is_predicted(graph):
    found = secant_schedules(graph, [5, 6, 7])
    intervals = {5: [29.0, 41.0], 6: [31.0, 43.0], 7: [39.0, 51.0]}
    known = [
        replace(
            schedule, calibration={"psnr": sum(intervals[b]) / 2, "psnr_interval": intervals[b]}
        )
        for b, schedule in found.items()
    ]
    assert smallest_budget(known, 30.0).budget == 6
    assert smallest_budget(known, 31.0).budget == 6
    assert smallest_budget(known, 31.1).budget == 7
    with pytest.raises(SolverError, match=r"reaches 40 dB: 7 forwards come closest, at 39\.0 dB"):
        smallest_budget(known, 40.0)


def test_the_gain_is_said_in_a_sentence():
    answer = FitAnswer(8, (), (40.0, 42.0, 44.0), (30.0, 32.0), 100)
    assert gain([answer]) == (
        "against the paper's schedules, PSNR on 2 calibration runs: +10.0 dB at B = 8 (from 31.0)"
    )
    assert "no forwards were left" in gain([FitAnswer(8, (), (40.0,), (), 100)])
