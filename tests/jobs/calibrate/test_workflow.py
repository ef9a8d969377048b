"""Calibration on a real Ray cluster: statistics of real trajectories, each once."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.fleet.gang import MAX_ATTEMPTS, Gang, TryAgainError
from cluster.results.attempts import Attempts
from cluster.store import open_store
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from jobs.calibrate import __main__ as calibrate
from jobs.calibrate.trajectories import ATTEMPTS, TRAJECTORIES, MeasureTrajectory
from meancache.calibration import Calibration
from meancache.carrying import levels_below
from tests.jobs.conftest import PROMPTS
from tests.support import ranks

pytestmark = pytest.mark.usefixtures("shared_cluster")


@pytest.fixture
def command(tmp_path, prompts) -> list[str]:
    arguments = ["--model", "tiny", "--prompts", prompts, "--steps", "8", "--seeds", "2"]
    return [*arguments, "--output", str(tmp_path / "out")]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """The root of a finished calibration: three prompts, two seeds, by gangs of one rank."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    prompts = ["--prompts", str(folder / "prompts.txt"), "--output", str(folder / "out")]
    assert calibrate.main(["--model", "tiny", "--steps", "8", "--seeds", "2", *prompts]) == 0
    return folder / "out"


@pytest.fixture
def root(tmp_path, calibrated) -> Path:
    """A copy of the finished root where `command` finds it."""
    return Path(shutil.copytree(calibrated, tmp_path / "out"))


def loaded(root: Path) -> Calibration:
    return Calibration.from_parquet((root / "graph" / "statistics.parquet").read_bytes())


def test_each_prompt_and_seed_is_one_small_trajectory_in_the_graph(calibrated, model):
    graph = loaded(calibrated)
    assert len(graph.trajectories) == 6
    assert graph.model == model.key
    assert graph.conditions["guidance_scale"] == 6.0
    assert graph.grid == model.grid(8)
    sizes = [path.stat().st_size for path in (calibrated / "graph" / "trajectories").iterdir()]
    assert len(sizes) == 6
    assert max(sizes) < 1e6
    table = pq.read_table(calibrated / "graph" / "multigraph.parquet")
    assert set(table["count"].to_pylist()) == {6}


def test_the_calibration_is_a_file_to_share_that_reaches_below_the_last_step(calibrated, model):
    calibration = Calibration.load(calibrated / "calibration.parquet")
    assert calibration.id == loaded(calibrated).id
    assert calibration.grid == model.grid(8)
    assert calibration.below == pytest.approx(levels_below(model.grid(8)))
    assert calibration.schedule(model.grid(60), 6).nfe == 6


def test_the_same_command_again_runs_nothing_and_changes_nothing(root, command, capsys):
    before = loaded(root).id
    assert calibrate.main(command) == 0
    assert "0 trajectories to run (0 forwards), 6 already done" in capsys.readouterr().out
    assert loaded(root).id == before


def test_a_stopped_calibration_runs_what_is_missing_also_with_another_gang(
    root, calibrated, command, capsys
):
    for path in [
        *sorted((root / "graph" / "trajectories").iterdir())[:2],
        *(root / "graph").glob("*.parquet"),
        root / "calibration.parquet",
    ]:
        path.unlink()
    assert calibrate.main([*command, "--gang-size", "2"]) == 0
    assert "2 trajectories to run (22 forwards), 4 already done" in capsys.readouterr().out
    alone, mixed = loaded(calibrated), loaded(root)
    assert list(alone.trajectories) == list(mixed.trajectories)
    # Costs are differences of velocities of order 1, each known to about 1e-5.
    np.testing.assert_allclose(mixed.costs(), alone.costs(), atol=1e-4)
    for key, trajectory in alone.trajectories.items():
        np.testing.assert_allclose(mixed.trajectories[key].gram, trajectory.gram, atol=1e-4)


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(tmp_path, command, capsys):
    assert calibrate.main([*command, "--dry-run"]) == 0
    assert "6 trajectories to run (66 forwards), 0 already done" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_trajectory_that_fails_three_times_is_given_up_with_its_reason(tmp_path, model):
    arguments = {**model.defaults, "num_inference_steps": 8}
    (item,) = plan_items([Prompt(1, "a red circle", "one", 0)], model, arguments)
    attempts = Attempts(open_store(str(tmp_path)), ATTEMPTS)
    graph = Calibration(model.grid(8), model.key, model.conditions(arguments))
    work = MeasureTrajectory(attempts, graph)
    with Gang(ranks.build, 1) as gang:  # ranks that have no pipeline to run
        for _ in range(MAX_ATTEMPTS):
            with pytest.raises(TryAgainError):
                work(gang, item)
        assert work(gang, item).startswith("one, seed 0: rank 0 failed: AttributeError")
    assert not list(attempts.store.list(TRAJECTORIES))
