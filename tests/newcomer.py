"""A newcomer's path, word for word from the README, timed from an empty directory.

    python -m tests.newcomer

Takes what is committed, makes a virtual environment, and types the README's first commands: the
installation and the demo, prompts of one's own, a bucket (of an S3 server on this machine).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3

from tests.support.commands import PROJECT
from tests.support.pages import README, blocks, commands
from tests.support.s3_server import s3_environment, serve_s3

MINUTES = {"first accelerated video": 5, "first own prompts": 10, "first root on S3": 15}


def main() -> int:
    """Prints when each was there; returns 1 where one came too late."""
    typed = [block for block in blocks(README) if block.language == "sh"]
    _environment, demo, own, bucket, *_ = map(commands, typed)  # it has one of its own
    with tempfile.TemporaryDirectory() as name, serve_s3() as endpoint:
        environment = {
            variable: value
            for variable, value in {**os.environ, **s3_environment(endpoint)}.items()
            if variable not in ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "RAY_ADDRESS")
        }
        os.environ.update(s3_environment(endpoint))
        boto3.session.Session().client("s3").create_bucket(Bucket="bucket")
        checkout, programs = Path(name) / "checkout", Path(name) / "environment" / "bin"
        environment["PATH"] = os.pathsep.join([str(programs), os.environ["PATH"]])
        started = time.time()
        run = ["git", "clone", "--quiet", str(PROJECT), str(checkout)]
        subprocess.run(run, check=True)
        subprocess.run([sys.executable, "-m", "venv", str(programs.parent)], check=True)
        reached = []
        for block in (demo, own, bucket):
            for command in block:
                print(f"$ {command}", flush=True)
                bash = ["bash", "-euo", "pipefail", "-c", command]
                subprocess.run(bash, cwd=checkout, env=environment, check=True)
            reached.append(time.time() - started)
        videos = (checkout / "out").rglob("*.mp4")
        reached[0] = min(video.stat().st_mtime for video in videos) - started
    late = 0
    for (what, minutes), seconds in zip(MINUTES.items(), reached, strict=True):
        print(f"{what}: {seconds // 60:.0f} min {seconds % 60:.0f} s (at most {minutes} min)")
        late += seconds > 60 * minutes
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
