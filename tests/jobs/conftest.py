"""What the jobs' tests share: prompts files, a calibrated graph, jobs run as a person runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.models.model import Model, find_model
from meancache.calibration import Calibration
from meancache.statistics import trajectory_statistics

PROMPTS = [
    "a red circle moving left on a dark background",
    "a blue square moving up on a light background",
    "a green triangle moving right on a dark background",
]
# Flags of videos that take a tenth of a second.
QUICK = ("--steps", "4", "--height", "32", "--width", "32")
CALIBRATED = "a yellow triangle moving down on a light background"


@pytest.fixture(scope="session", autouse=True)
def forkserver(kept_forkserver) -> None:
    """Jobs start their ranks as forks of one process."""


@pytest.fixture(scope="session")
def model() -> Model:
    """What is known of the embedded model without its weights."""
    return find_model("tiny")


@pytest.fixture
def prompts(tmp_path) -> str:
    """A file of three prompts."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return str(path)


@pytest.fixture(scope="session")
def graph(model) -> Calibration:
    """A graph of the embedded model's setting, from smooth random trajectories."""
    grid = model.grid(50)
    empty = Calibration(grid, model.key, model.conditions(model.defaults))
    trajectories = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        velocities = torch.randn(50, 200, generator=generator).cumsum(dim=0)
        trajectories.append(trajectory_statistics(velocities, grid, "p", seed, CALIBRATED))
    return empty.add(trajectories)


@pytest.fixture
def graph_folder(tmp_path, graph) -> str:
    """The ROOT/graph that a calibration would leave."""
    folder = tmp_path / "calibrated" / "graph"
    folder.mkdir(parents=True)
    (folder / "statistics.parquet").write_bytes(graph.statistics_parquet())
    return str(folder)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_job(run_module) -> Run:
    """Runs `python -m jobs.NAME ARGUMENTS` as a process of its own."""
    return lambda name, *arguments, **more: run_module(f"jobs.{name}", *arguments, **more)


@pytest.fixture(scope="session")
def run_module() -> Run:
    """Runs `python -m NAME ARGUMENTS` as a process of its own."""

    def run(name: str, *arguments: str, cwd: Path | None = None, timeout: int = 560):
        return subprocess.run(
            [sys.executable, "-m", name, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )

    return run
