"""A runtime environment that starts no process ends the job, with the reason."""

import json
import os
import subprocess
import sys

import pytest
import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from cluster.fleet.runtime_environment import trial


class Context:
    """Ray's, of a job with a runtime environment."""

    def __init__(self, **environment: object) -> None:
        self.runtime_env = environment


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"py_executable": "/no/such/python"}, "/no/such/python: No such file or directory"),
        ({"py_executable": "no-such-python -u"}, "no-such-python: not found"),
        ({"py_executable": "false"}, "exit code 1"),
        ({"env_vars": {"PYTHONHOME": "/nowhere"}}, "env_vars PYTHONHOME"),
        ({"py_executable": f"{sys.executable} -S -I"}, "No module named 'ray'"),
    ],
)
def test_a_python_that_does_not_start_is_named_with_the_reason(monkeypatch, environment, reason):
    monkeypatch.setattr(ray, "get_runtime_context", lambda: Context(**environment))
    assert reason in str(trial())


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"working_dir": "gcs://package.zip"},
        {"py_executable": sys.executable, "env_vars": {"A": "b"}},
        {"py_executable": "/made/on/each/node", "pip": ["numpy"]},
    ],
)
def test_others_are_not_refused(monkeypatch, environment):
    monkeypatch.setattr(ray, "get_runtime_context", lambda: Context(**environment))
    assert trial() is None


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cluster")
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"py_executable": "/no/such/python"}, "/no/such/python: No such file or directory"),
        # Not one of pip: where Ray runs in a virtual environment it copies all of that first.
        ({"conda": "no-such-environment"}, "conda"),
    ],
)
def test_a_job_by_such_an_environment_ends_with_exit_code_2(tmp_path, environment, reason):
    """As `ray job submit --runtime-env-json` starts its driver."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    command = ["--model", "tiny", "--prompts", str(prompts), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.render", *command],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            RAY_JOB_CONFIG_JSON_ENV_VAR: json.dumps({"runtime_env": environment}),
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert reason in sentence
    assert "mend the job's runtime environment" in sentence
    assert "Traceback" not in done.stderr
