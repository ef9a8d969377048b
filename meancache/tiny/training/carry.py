"""One calibration for every run, measured: schedules carried to a setting against its own.

    python -m meancache.tiny.training.carry [--pairs 24] [--json FILE]

For each setting and budget, on held-out captions, the PSNR against the full run of that setting:
of a schedule from a calibration made there, of one carried from the calibration that ships, of one
carried from a single trajectory of it, and of as few Euler steps. Nothing is fitted on runs of the
model, so that all three differ in their calibration alone. Takes half an hour on a core, and a
minute or two on a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from meancache import Calibration, Schedule, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from meancache.quality import MOST_DECIBELS, Summary, psnr
from meancache.recording import with_levels_below
from meancache.statistics import trajectory_statistics
from meancache.tiny import DEFAULTS, load
from meancache.tiny.captions import CALIBRATION, HELD_OUT, Caption
from meancache.trajectory import record_trajectory

if TYPE_CHECKING:
    from diffusers import HunyuanVideoPipeline

SHIPPED = Path("schedules/tiny/calibration.parquet")
BUDGETS = (8, 10, 12)
TRAJECTORIES = 12
SHIFT = 7.0
CALIBRATION_SEED, HELD_OUT_SEED = 1000, 5000


@dataclass(frozen=True)
class Setting:
    """A way to run the model: arguments of its call, and the shift of its noise levels."""

    name: str
    shift: float = SHIFT
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """T."""
        return int(self.arguments.get("num_inference_steps", DEFAULTS["num_inference_steps"]))


SETTINGS = (
    Setting("50 steps, shift 7"),
    Setting("30 steps, shift 7", arguments={"num_inference_steps": 30}),
    Setting("30 steps, shift 5", 5.0, {"num_inference_steps": 30}),
    Setting("40 steps, shift 12", 12.0, {"num_inference_steps": 40}),
    Setting("50 steps, shift 3", 3.0),
    Setting("guidance 3", arguments={"guidance_scale": 3.0}),
    Setting("guidance 9", arguments={"guidance_scale": 9.0}),
    Setting("96x96", arguments={"height": 96, "width": 96}),
    Setting("17 frames", arguments={"num_frames": 17}),
)


@dataclass(frozen=True)
class Cell:
    """PSNR in dB at one setting and budget, by where the schedule's calibration comes from.

    Attributes:
        setting: its name.
        budget: forwards of a run.
        own: calibrated under the setting itself.
        carried: from the calibration under the defaults, 50 steps and shift 7.
        carried_from_one: the same, of its first trajectory alone.
        euler: as few plain steps.
        predicted: what the carried calibration expects (`meancache.prediction`).
    """

    setting: str
    budget: int
    own: Summary
    carried: Summary
    carried_from_one: Summary
    euler: Summary
    predicted: float

    def line(self) -> str:
        """A row of the table: means, and the worst video in brackets."""
        known = (self.own, self.carried, self.carried_from_one, self.euler)
        scores = "".join(f"{one.mean:8.1f} ({one.worst:4.1f})" for one in known)
        return f"{self.setting:20s}{self.budget:3d}{scores}{self.predicted:8.1f}"


HEADER = (
    f"{'setting':20s}{'B':>3s}{'own':>15s}{'carried':>15s}{'from one':>15s}{'Euler':>15s}"
    f"{'expected':>8s}"
)


class Runs:
    """Runs of one pipeline in batches, all captions of a set at once."""

    def __init__(self, pipe: HunyuanVideoPipeline) -> None:
        self.pipe = pipe

    def videos(
        self, setting: Setting, captions: Sequence[Caption], **changes: Any
    ) -> list[np.ndarray]:
        """One uint8 video a caption, by consecutive seeds."""
        seeds = [HELD_OUT_SEED + i for i in range(len(captions))]
        frames = self._call(setting, captions, seeds, output_type="np", **changes)
        return [np.rint(video * 255).astype(np.uint8) for video in np.asarray(frames)]

    @contextmanager
    def following(self, schedule: Schedule) -> Iterator[None]:
        """The pipeline follows the schedule, while open."""
        apply_mean_cache(self.pipe, schedule)
        try:
            yield
        finally:
            remove_mean_cache(self.pipe)

    def calibration(
        self, setting: Setting, captions: Sequence[Caption], grid: Grid, below: tuple[float, ...]
    ) -> Calibration:
        """A trajectory a caption, recorded on the levels of `grid` and on those below it."""
        seeds = [CALIBRATION_SEED + i for i in range(len(captions))]
        with (
            with_levels_below(self.pipe.scheduler, below),
            record_trajectory(self.pipe) as trajectory,
        ):
            self._call(setting, captions, seeds, output_type="latent")
        return Calibration(grid, below=below).add(
            trajectory_statistics(
                trajectory.velocities(setting.steps + len(below), i),
                grid,
                caption.text,
                seeds[i],
                caption.text,
                len(below),
            )
            for i, caption in enumerate(captions)
        )

    def _call(
        self, setting: Setting, captions: Sequence[Caption], seeds: Sequence[int], **changes: Any
    ) -> Any:
        self.pipe.scheduler.set_shift(setting.shift)
        return self.pipe(
            [caption.text for caption in captions],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            **{**DEFAULTS, **setting.arguments, **changes},
        ).frames


def measure(runs: Runs, shipped: Calibration, setting: Setting, pairs: int) -> Iterator[Cell]:
    """The cells of one setting."""
    captions = [*HELD_OUT, *HELD_OUT][:pairs]
    full = runs.videos(setting, captions)
    grid = Grid.from_scheduler(runs.pipe.scheduler)
    own = runs.calibration(setting, CALIBRATION[:TRAJECTORIES], grid, ())
    first = replace(shipped, trajectories=dict(list(shipped.trajectories.items())[:1]))

    def score(videos: Sequence[np.ndarray]) -> Summary:
        pairs = zip(videos, full, strict=True)
        return Summary.of([min(psnr(*pair), MOST_DECIBELS) for pair in pairs])

    def by(calibration: Calibration, budget: int) -> Summary:
        with runs.following(calibration.schedule(grid, budget)):
            return score(runs.videos(setting, captions))

    for budget in BUDGETS:
        yield Cell(
            setting.name,
            budget,
            own=by(own, budget),
            carried=by(shipped, budget),
            carried_from_one=by(first, budget),
            euler=score(runs.videos(setting, captions, num_inference_steps=budget)),
            predicted=shipped.schedule(grid, budget).calibration["psnr_estimate"],
        )


def conclusion(cells: Sequence[Cell]) -> str:
    """What the table comes to, in sentences."""
    lost = [cell.own.mean - cell.carried.mean for cell in cells]
    gained = [cell.carried.mean - cell.euler.mean for cell in cells]
    worst, least = int(np.argmax(lost)), int(np.argmin(gained))
    return (
        f"Carried is {np.mean(lost):+.1f} dB below its own in the mean, {max(lost):.1f} at most "
        f"({cells[worst].setting}, B = {cells[worst].budget}); it is {min(gained):.1f} dB or more "
        f"above Euler ({cells[least].setting}, B = {cells[least].budget})."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m meancache.tiny.training.carry",
        description="Measures schedules of a carried calibration against those of the setting's "
        "own, on held-out captions of the embedded model.",
    )
    parser.add_argument("--pairs", type=int, default=24, help="held-out videos, default 24")
    parser.add_argument("--settings", help="some of the settings, by number from 0: 0,3,8")
    parser.add_argument(
        "--calibration",
        type=Path,
        default=SHIPPED,
        metavar="FILE",
        help="what is carried; default: the one that ships, of 12 trajectories",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load()
    if torch.cuda.is_available():
        pipe.to("cuda")
    pipe.set_progress_bar_config(disable=True)
    runs = Runs(pipe)
    chosen = range(len(SETTINGS)) if options.settings is None else options.settings.split(",")
    shipped = Calibration.load(options.calibration)
    print(HEADER, flush=True)
    cells: list[Cell] = []
    for number in map(int, chosen):
        for cell in measure(runs, shipped, SETTINGS[number], options.pairs):
            cells.append(cell)
            print(cell.line(), flush=True)
            if options.json is not None:
                rows = [asdict(one) for one in cells]
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(conclusion(cells))


if __name__ == "__main__":
    main()
