"""A job's configuration as its command line gives it."""

import importlib
from collections.abc import Sequence
from typing import Any


def configured(job: str, command: Sequence[str]) -> Any:
    """What `python -m jobs.JOB COMMAND` would run its workflow with."""
    main = importlib.import_module(f"jobs.{job}.__main__")
    return main.configured(main.parser().parse_args(command))
