"""A render job that says what its driver and its leaders have imported.

    python -m tests.support.imported FLAGS OF jobs.render

Runs the job as `python -m jobs.render` does, and ends with one line of JSON:
{"driver": [...], "leader": [...]}, the top-level packages in `sys.modules` when all was done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.fleet import driver


def packages() -> set[str]:
    """The top-level packages that this process has imported."""
    return {name.partition(".")[0] for name in sys.modules}


@dataclass(frozen=True)
class Watched:
    """What a leader does with an item, and then what its process has imported."""

    work: Callable[[Any, Any], Any]

    def __call__(self, gang: Any, item: Any) -> tuple[Any, set[str]]:
        return self.work(gang, item), packages()


def main() -> None:
    """Runs the job, its work watched."""
    from jobs.render import __main__ as render

    run, seen = driver.run, set()

    def watched(work: Any, *given: Any, **named: Any) -> Iterator[Any]:
        for result, imported in run(Watched(work), *given, **named):
            seen.update(imported)
            yield result

    driver.run = watched
    assert render.main(sys.argv[1:]) == 0
    print(json.dumps({"driver": sorted(packages()), "leader": sorted(seen)}))


if __name__ == "__main__":
    main()
