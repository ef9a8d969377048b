"""python -m jobs: the jobs that there are, as the first lines of their modules say it."""

from __future__ import annotations

import ast
from pathlib import Path

import jobs


def main() -> None:
    """Prints one line a job."""
    for module in sorted(Path(jobs.__path__[0]).glob("[!_]*/__init__.py")):
        said = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        command, _, what = said.split("\n")[0].partition(": ")
        if command.startswith("python -m jobs."):
            print(f"{command}\n    {what}")
    print("\neach explains itself with --help")


if __name__ == "__main__":
    main()
