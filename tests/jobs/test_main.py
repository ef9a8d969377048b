"""`python -m jobs` lists what `python -m jobs.NAME` runs."""

import importlib
import re
from pathlib import Path

import jobs
from jobs import __main__


def test_every_job_is_listed_and_every_one_listed_is_there(capsys):
    __main__.main()
    listed = set(re.findall(r"^python -m jobs\.(\w+)", capsys.readouterr().out, re.MULTILINE))
    for name in listed:
        assert callable(importlib.import_module(f"jobs.{name}.__main__").main)
    runnable = {
        module.stem
        for module in Path(jobs.__path__[0]).glob("[a-z]*.py")
        if '__name__ == "__main__"' in module.read_text(encoding="utf-8")
    }
    assert runnable <= listed
