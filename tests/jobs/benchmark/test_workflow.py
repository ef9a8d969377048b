"""What the benchmark prints and writes; the figures themselves are for quiet machines."""

import dataclasses
import json

import pytest

from cluster.fleet.gang import Gang
from jobs.benchmark import __main__ as benchmark
from jobs.benchmark import stages
from jobs.benchmark.workflow import Config, ratios, run
from tests.support import ranks

FORWARD = {"native": {"seconds": 0.2}, "share_of_matmul_rate": 0.5}
ALL = {
    "forward": FORWARD,
    "loop": {"loop": 2.0, "text": 0.1, "decode": 0.8, "mp4": 0.1, "skipped_step": 0.001},
    "steady": {"seconds": 2.5, "goodput": 0.8},
    "plain": {"video": 15.0},
    "full": {"loop": 10.0, "forward": 0.2, "statistics": 0.1},
    "fewer": {"loop": 1.0},
}


def test_what_stages_say_together_is_said_of_those_that_are_there():
    assert ratios(ALL) == pytest.approx(
        {
            **{"loop_speedup_b10": 5.0, "loop_speedup_b5": 10.0, "skipped_step_share": 0.005},
            **{"statistics_share": 0.01, "one_by_one_speedup_b10": 5.0},
            **{"end_to_end_speedup_b10": 6.0, "goodput": 0.8, "share_of_matmul_rate": 0.5},
        }
    )
    assert ratios({"full": ALL["full"]}) == {"statistics_share": 0.01}
    assert ratios({}) == {}


@dataclasses.dataclass
class Counted:
    """Stages that note that they ran; the second fails while it is told to."""

    monkeypatch: pytest.MonkeyPatch
    fails: bool = False
    ran: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = (self.stage("forward", 1), self.stage("loop", 1), self.stage("full", 1e6))
        self.monkeypatch.setattr(stages, "STAGES", kinds)

    def stage(self, name: str, forwards: float) -> stages.Stage:
        def measure(machine: stages.Machine) -> stages.Figures:
            self.ran.append(name)
            if self.fails and name == "loop":
                raise RuntimeError("out of memory")
            return ALL[name]

        return stages.Stage(name, measure, forwards, 0)


@pytest.fixture
def counted(monkeypatch) -> Counted:
    return Counted(monkeypatch)


def test_a_benchmark_of_minutes_leaves_out_what_would_not_fit_and_goes_on_there(tmp_path, counted):
    config = Config("480p", minutes=2, json=tmp_path / "figures.json")
    outcome = run(config)
    assert counted.ran == ["forward", "loop"]
    assert outcome.left == ("full",)
    run(config)
    assert counted.ran == ["forward", "loop"]  # measured before
    run(dataclasses.replace(config, minutes=None))
    assert counted.ran == ["forward", "loop", "full"]
    written = json.loads(config.json.read_text())
    assert written["ratios"]["loop_speedup_b10"] == 5.0


def test_a_stage_that_fails_leaves_the_others_their_turn_and_is_tried_again(tmp_path, counted):
    file = tmp_path / "figures.json"
    counted.fails = True
    assert benchmark.main(["--json", str(file)]) == 1
    assert counted.ran == ["forward", "loop", "full"]
    assert json.loads(file.read_text())["failed"] == {"loop": "RuntimeError: out of memory"}
    counted.fails = False
    assert benchmark.main(["--json", str(file)]) == 0
    assert counted.ran[3:] == ["loop"]
    assert json.loads(file.read_text())["failed"] == {}


def test_figures_of_another_shape_are_not_gone_on_with(tmp_path, counted):
    file = tmp_path / "figures.json"
    run(Config("480p", json=file))
    run(Config("544p", json=file))
    assert counted.ran == ["forward", "loop", "full"] * 2


@pytest.mark.slow
def test_the_benchmark_measures_what_a_cpu_can_tell(tmp_path):
    file = tmp_path / "figures.json"
    assert benchmark.main(["--stages", "forward", "loop", "steady", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert set(figures["stages"]) == {"forward", "loop", "steady"}
    assert 0 < figures["ratios"]["goodput"] < 1


def test_the_benchmark_of_speed_needs_no_ray():
    with Gang(ranks.build, 1) as gang:  # a process that has torch, and nothing else of this one
        found = gang.run(ranks.modules_with, ("jobs.benchmark.speed", "jobs.benchmark.workflow"))
    assert "torch" in found
    assert "ray" not in found


def test_the_scale_benchmark_ends_with_a_finished_root_of_as_many_rows(run_job, tmp_path):
    options = ["--rows", "300", "--gangs", "1", "--output", str(tmp_path / "b")]
    program = run_job("benchmark", "scale", *options, "--json", str(tmp_path / "figures.json"))
    assert program.returncode == 0, program.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["rows"] == 300
    success = json.loads((tmp_path / "b" / "root" / "manifest" / "_SUCCESS").read_text())
    assert (success["rows"], success["failed"]) == (300, 0)
    assert "300 videos by gangs, 300 receipts" in program.stdout


def test_a_place_that_is_taken_is_refused(run_job, tmp_path):
    program = run_job("benchmark", "scale", "--rows", "1", "--output", str(tmp_path))
    assert program.returncode == 2
    assert "must be a folder that does not exist yet" in program.stderr
