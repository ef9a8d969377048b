"""Who imports whom: the contracts of import-linter hold, and fail where one is broken.

That no driver and no leader imports torch is seen in tests/jobs/render/test_workflow.py too.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.commands import PROJECT

RANKS_ONLY = {"torch", "diffusers", "xfuser", "transformers", "accelerate"}
LINT = str(Path(sys.executable).parent / "lint-imports")

# A project as small as the contracts allow.
SOUND = {
    "meancache/__init__.py": "import torch",
    "cluster/__init__.py": "",
    **{
        f"cluster/{room}/__init__.py": ""
        for room in ("store", "models", "media", "work", "results", "ranks", "fleet")
    },
    "cluster/store/s3.py": "import boto3",
    "cluster/ranks/renderer.py": "import torch, xfuser\nfrom cluster.models import sizes",
    "cluster/models/sizes.py": "from typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    import torch",
    "cluster/fleet/driver.py": "import ray\nfrom cluster.results import manifest",
    "cluster/results/manifest.py": "from cluster.store import s3",
    "jobs/__init__.py": "",
    "jobs/_shared/__init__.py": "",
    "jobs/_shared/cli.py": "from cluster.fleet import driver",
    "jobs/render/__init__.py": "",
    "jobs/render/page.py": "",
    "jobs/render/workflow.py": "from jobs._shared import cli\nfrom jobs.render import page",
    "jobs/demo/__init__.py": "",
    "jobs/demo/workflow.py": "from jobs.render import workflow",
}
# A file that breaks a contract, and what is said of it.
BROKEN = {
    "cluster/fleet/upward.py": ("from jobs.render import workflow", "cluster is not allowed"),
    "meancache/upward.py": ("def f():\n    import cluster", "meancache is not allowed"),
    "cluster/store/upward.py": ("import cluster.fleet.driver", "cluster.store is not allowed"),
    "cluster/work/upward.py": ("import cluster.results", "cluster.work is not allowed"),
    "cluster/models/heavy.py": ("def f():\n    import diffusers", "to import diffusers"),
    "cluster/fleet/heavy.py": ("import torch.nn", "to import torch"),
    "meancache/remote.py": ("def f():\n    import ray", "to import ray"),
    "meancache/stored.py": ("import boto3", "to import boto3"),
    "jobs/demo/page.py": ("from jobs.render import page", "jobs.demo.page -> jobs.render.page"),
    "jobs/_shared/numbers.py": ("import jobs.render", "jobs._shared.numbers -> jobs.render"),
}


def lint(folder: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What lint-imports says of a project of these files, under this project's contracts."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "pyproject.toml").write_text((PROJECT / "pyproject.toml").read_text())
    # The contracts' own types are read from this project; its packages from the folder.
    (folder / "tests").symlink_to(PROJECT / "tests")
    return subprocess.run(
        [LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_contracts_hold():
    done = subprocess.run([LINT, "--no-cache"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_sound_project_keeps_every_contract(tmp_path):
    done = lint(tmp_path, SOUND)
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert f"{len(contracts['contracts'])} kept, 0 broken" in done.stdout


def test_each_rule_that_is_broken_is_named(tmp_path):
    done = lint(tmp_path, {**SOUND, **{name: text for name, (text, _) in BROKEN.items()}})
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "0 kept" in said
    assert not {name: sentence for name, (_, sentence) in BROKEN.items() if sentence not in said}


def test_no_command_imports_what_only_ranks_need_before_it_needs_it():
    jobs = [path.parent.name for path in sorted((PROJECT / "jobs").glob("*/__main__.py"))]
    program = (
        f"import importlib, sys\n"
        f"for job in {jobs}: importlib.import_module(f'jobs.{{job}}.__main__')\n"
        f"print(*sorted({RANKS_ONLY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
