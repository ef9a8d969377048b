"""Whether the Python that a job's runtime environment names can start a process at all.

Ray starts a worker of it again and again, on every node, and says nothing where none comes up.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import ray

from cluster.fleet.errors import FleetError

# What a trial may take: `uv run` installs what is missing first, and then says nothing of it.
TRIAL_S = 60.0
# Each makes a Python of its own on the nodes, which is not here; what goes wrong there Ray tells.
_ELSEWHERE = ("pip", "uv", "conda", "container", "image_uri")
_IMPORTS = "import ray"
FIX = (
    "mend the job's runtime environment (--runtime-env-json or --working-dir of `ray job submit`), "
    "or leave it out"
)


def trial() -> FleetError | None:
    """Starts a Python on this machine as a worker's is; the refusal, where that ends with an error.

    Is for a cluster that has room and starts no process of this job: then what fails here is the
    reason. None where nothing is learned.
    """
    environment: Mapping[str, Any] = ray.get_runtime_context().runtime_env
    python = environment.get("py_executable")
    variables = {str(k): str(v) for k, v in (environment.get("env_vars") or {}).items()}
    if not (python or variables) or any(environment.get(name) for name in _ELSEWHERE):
        return None
    command = f"exec {python or shlex.quote(sys.executable)} -c {shlex.quote(_IMPORTS)}"
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TRIAL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if not done.returncode:
        return None
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    named = f"py_executable {python!r}" if python else f"env_vars {', '.join(sorted(variables))}"
    return FleetError(
        f"no process of this job starts, and with the {named} of its runtime environment no Python "
        f"with Ray starts here either ({said[-1]}): {FIX}"
    )
