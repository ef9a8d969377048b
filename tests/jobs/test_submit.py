"""`ray job submit` against a real head, as the README says it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

PROJECT = Path(__file__).parents[2]
TRIALS = 20
BIN = str(Path(sys.executable).parent)
RAY = shutil.which("ray", path=os.pathsep.join([BIN, os.environ["PATH"]]))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The environment of a running head with a dashboard of its own, stopped afterwards."""
    # Other tests have clusters on this machine, whose agent takes jobs on the usual port.
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, agent_port = one.getsockname()[1], other.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    ray_folder = tempfile.mkdtemp(prefix="ray-")  # short: a socket's path has 107 bytes at most
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        # The head's PATH is where a submitted `python` is looked for.
        "PATH": os.pathsep.join([BIN, os.environ["PATH"]]),
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
    }
    token = [RAY, "get-auth-token", "--generate"]
    subprocess.run(token, env=environment, check=True, capture_output=True)
    start = [
        *(RAY, "start", "--head", "--port=0", "--num-cpus=2", f"--dashboard-port={port}"),
        f"--dashboard-agent-listen-port={agent_port}",
        # Else it would be the cluster that commands on this machine look for, also when it is gone.
        f"--temp-dir={ray_folder}",
    ]
    # `ray stop` would end the clusters of other tests too.
    with subprocess.Popen(
        [*start, "--block"], env=environment, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert any("Ray runtime started" in line for line in running.stdout)
        trial = [RAY, "job", "submit", "--", "true"]
        # The head is up before the agent that takes its jobs.
        for _ in range(TRIALS):
            if subprocess.run(trial, env=environment, capture_output=True).returncode == 0:
                break
        yield environment
        running.terminate()
    shutil.rmtree(ray_folder)


pytestmark = pytest.mark.skipif(RAY is None, reason="needs the ray command")


def test_a_submitted_render_leaves_its_videos_in_the_root(head, tmp_path, prompts):
    root = tmp_path / "out"
    command = [
        *(RAY, "job", "submit", "--working-dir", ".", "--"),
        *("python", "-m", "jobs.render", "--model", "tiny", "--prompts", prompts),
        *("--steps", "4", "--gang-size", "2", "--output", str(root)),
    ]
    program = subprocess.run(
        command, cwd=PROJECT, env=head, capture_output=True, text=True, timeout=280, check=False
    )
    assert program.returncode == 0, program.stdout + program.stderr
    assert "videos: 3/3" in program.stdout + program.stderr
    rows = pq.read_table(root / "manifest" / "parts").to_pylist()
    assert [(row["status"], row["world_size"]) for row in rows] == [("ok", 2)] * 3


@pytest.mark.slow
def test_a_stopped_job_finishes_what_is_in_flight_and_says_how_to_resume(head, tmp_path, run_job):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {number}" for number in range(60)))
    render = [
        *("--model", "tiny", "--prompts", str(prompts), "--steps", "4", "--gangs", "1"),
        *("--output", str(tmp_path / "out")),
    ]
    grace = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "100"}}'
    submit = [
        *(RAY, "job", "submit", "--working-dir", ".", "--runtime-env-json", grace),
        *("--submission-id", "to-be-stopped", "--no-wait"),
        *("--", "python", "-m", "jobs.render", *render),
    ]
    submitted = subprocess.run(
        submit, cwd=PROJECT, env=head, capture_output=True, text=True, timeout=120, check=False
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    with subprocess.Popen(
        [RAY, "job", "logs", "--follow", "to-be-stopped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=head,
    ) as logs:
        said = []
        for line in logs.stdout:
            said.append(line)
            if "videos: 1/60" in line:
                stop = [RAY, "job", "stop", "to-be-stopped"]
                subprocess.run(stop, env=head, check=True, capture_output=True, timeout=200)
    assert re.search(r"stopped: .*; the same command resumes\n", said), said
    there = list((tmp_path / "out" / "receipts").rglob("*.json"))
    assert 1 <= len(there) < 60
    assert f"{len(there)} already done" in run_job("render", *render, "--dry-run").stdout
