"""The runs of a refresh: what each leaves in the store, and which of them count for the next.

    nights/{key}/setting.json                     what the key is the hash of
    nights/{key}/{date}-{command}/job.json        what was asked for
                                  graph/          the run's own trajectories (jobs.calibrate)
                                  merged.parquet  the graph: with those of the runs before
                                  opponents.json  what was current when the candidates were made
                                  candidates/     a schedule for each budget
                                  held-out/       candidates against opponents (jobs.evaluate)
                                  report.html
                                  outcome.json    created once: the run is over

{command} is a hash of all that was asked for but the date, so one command has one run a date, and
others of that date stand beside it. Trajectories are kept by run and merged when they are
needed: two refreshes at once each add their own, and the next run has both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.results.registry import Setting, differences, key_of
from cluster.store import Store, open_store
from meancache.calibration import Calibration
from meancache.json_values import canonical_json

# The name of the folder is part of the format.
RUNS = "nights/"
STATISTICS_KEY = "graph/statistics.parquet"
OUTCOME_KEY = "outcome.json"
_SETTING_KEY = re.compile(r"nights/[0-9a-f]{32}/setting\.json")
_FILE = re.compile(r"(\d{4}-\d{2}-\d{2}-[0-9a-f]{12})/(.+)")


@dataclass(frozen=True)
class Runs:
    """The runs of one setting.

    Attributes:
        store: the root of the refresh.
        setting: what their trajectories have in common.
    """

    store: Store
    setting: Setting

    @property
    def folder(self) -> str:
        """Where they lie, with a slash at the end."""
        return f"{RUNS}{key_of(self.setting)}/"

    def room(self, name: str) -> Store:
        """The store of one run."""
        return open_store(self.uri(name))

    def uri(self, name: str) -> str:
        """The root of one run."""
        return self.store.uri(self.folder + name)

    def holding(self, file: str) -> list[str]:
        """The names of the runs that hold a file, the oldest first."""
        keys = (key.removeprefix(self.folder) for key in self.store.list(self.folder))
        matches = filter(None, map(_FILE.fullmatch, keys))
        return sorted(match[1] for match in matches if match[2] == file)

    def name_of(self, command: str, date: str | None) -> str:
        """The name of a command's run.

        Args:
            command: 12 hex digits of what was asked for.
            date: YYYY-MM-DD. None resumes the command's last run where that is not over, even past
                midnight, and is today (UTC) otherwise.
        """
        if date is None:
            date = datetime.now(UTC).date().isoformat()
            begun = [name for name in self.holding("job.json") if name.endswith(f"-{command}")]
            if begun and begun[-1] not in self.holding(OUTCOME_KEY):
                return begun[-1]
        return f"{date}-{command}"

    def begin(self) -> None:
        """Says what the key stands for."""
        self.store.put_new(f"{self.folder}setting.json", canonical_json(self.setting))

    def graph(self, name: str) -> Calibration:
        """A run's own trajectories. Raises CalibrationError where the file is damaged."""
        return Calibration.from_parquet(self.room(name).get(STATISTICS_KEY))

    def window(self, name: str, count: int) -> list[str]:
        """The runs of the last `count` dates up to that of `name`, which is among them."""
        known = {*self.holding(STATISTICS_KEY), name}
        dates = sorted({date_of(one) for one in known if date_of(one) <= date_of(name)})[-count:]
        return sorted(one for one in known if date_of(one) in dates)

    def before(self, name: str, count: int) -> tuple[list[Calibration], list[str]]:
        """The graphs of up to `count` runs before `name`, the last ones.

        Where this setting has none, those of the nearest setting with the same number of steps:
        after a change of the model they tell what it changed.

        Returns:
            The graphs, and in what their setting differs, in words.
        """
        own = [one for one in self.holding(STATISTICS_KEY) if one < name]
        if own:
            return [self.graph(one) for one in own[-count:]], []
        others = [
            (other, found)
            for other in self._others()
            if (found := [one for one in other.holding(STATISTICS_KEY) if one < name])
        ]
        if not others:
            return [], []
        other, found = min(others, key=lambda pair: len(differences(pair[0].setting, self.setting)))
        return [other.graph(one) for one in found[-count:]], differences(
            other.setting, self.setting
        )

    def _others(self) -> Iterable[Runs]:
        """The runs of other settings with as many steps."""
        for key in self.store.list(RUNS):
            if _SETTING_KEY.fullmatch(key) and not key.startswith(self.folder):
                setting: dict[str, Any] = json.loads(self.store.get(key))
                other = Runs(self.store, setting)
                steps = "num_inference_steps"
                if key.startswith(other.folder) and setting.get(steps) == self.setting[steps]:
                    yield other


def date_of(name: str) -> str:
    """The date of a run, YYYY-MM-DD."""
    return name[:10]
