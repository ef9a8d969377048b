"""What is wrong with a command line or a file is said before Ray or torch is imported."""

import json
import subprocess
import sys

from tests.support.commands import PROJECT

HEAVY = ["ray", "torch", "diffusers", "transformers", "xfuser", "av", "matplotlib"]
ABSENT = "/absent/prompts.txt"
REFUSED = {
    "render": ["--model", "tiny", "--prompts", ABSENT, "--output", "/tmp/never", "--budget", "10"],
    "calibrate": ["--model", "tiny", "--prompts", ABSENT, "--output", "/tmp/never"],
    "evaluate": [
        *("--model", "tiny", "--prompts", ABSENT, "--schedules", "schedules/tiny"),
        *("--output", "/tmp/never"),
    ],
    "refresh": ["--model", "tiny", "--prompts", ABSENT, "--output", "/tmp/never"],
    "solve": ["--graph", "/absent", "--output", "/tmp/never"],
    "verify": ["/absent"],
    "export": ["/absent", "--format", "parquet", "--output", "/tmp/never"],
}
PROGRAM = """
import importlib, json, sys
from pathlib import Path
heavy, commands = json.loads(sys.argv[1])
for job, arguments in commands.items():
    code = importlib.import_module(f"jobs.{job}.__main__").main(arguments)
    there = [name for name in heavy if name in sys.modules]
    print(json.dumps([job, code, there]))
assert not Path("/tmp/never").exists()
"""


def test_a_refusal_imports_neither_ray_nor_torch():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([HEAVY, REFUSED])],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said == [[job, 2, []] for job in REFUSED]
    assert done.stderr.count("error: ") == len(REFUSED)
