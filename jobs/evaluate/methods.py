"""The methods of an evaluation: a schedule, a baseline or the full run, all run in the same way.

What runs on a gang's ranks is here; what is made of the videos is the job's matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.ranks import Rendering, use_adapters
from cluster.store import Store
from cluster.work.plan import WorkItem
from jobs.evaluate.results import method_name
from jobs.evaluate.table import FULL
from meancache import baselines
from meancache.baselines import Baseline
from meancache.calibration import Calibration
from meancache.methods import paper_schedules, secant_schedules
from meancache.schedule import Schedule

if TYPE_CHECKING:
    from cluster.ranks.renderer import Renderer

HERE = "this project"
# Methods whose schedules were solved here, but thought out elsewhere.
SOURCES = {"paper": "written from arXiv:2601.19961"}
# The paper's ablation (Table 3): execution rule -> gammas.
ABLATION = {"jump": (1.0, 2.0, 3.0, 4.0, 5.0), "fine-step": (3.0, 4.0)}


@dataclass(frozen=True)
class Method:
    """One row of the final table. Pickles.

    Attributes:
        method: 'fitted', 'taylorseer', ...
        setting: its knob in words; None where its method and budget say all.
        source: whose code it is.
        budget: forwards it may take; None where its knob is not a budget.
        runs: the schedule or the baseline; None for the full run.
    """

    method: str
    setting: str | None
    source: str
    budget: int | None
    runs: Schedule | Baseline | None

    @property
    def name(self) -> str:
        """In words, different for each method."""
        return method_name(self.method, self.budget, self.setting)

    @property
    def schedule(self) -> Schedule | None:
        """The schedule that it is, or None."""
        return self.runs if isinstance(self.runs, Schedule) else None

    def applied(self, pipeline: Any) -> AbstractContextManager[dict[str, Any]]:
        """Opens a baseline on the pipeline; yields overrides of the call's arguments."""
        return self.runs.applied(pipeline) if isinstance(self.runs, Baseline) else nullcontext({})


def full_run(steps: int) -> Method:
    """The run that computes every step, to which all others are compared."""
    return Method(FULL, None, "diffusers", steps, None)


def from_schedules(schedules: Mapping[str, Schedule]) -> list[Method]:
    """Schedules as methods, each once, with settings where method and budget are shared.

    Args:
        schedules: by a name that tells them apart, such as that of their file.
    """
    each = {schedule.id: (name, schedule) for name, schedule in sorted(schedules.items())}
    entries = [(name, schedule, _setting(schedule)) for name, schedule in each.values()]
    taken = [(schedule.method, schedule.budget, setting) for _, schedule, setting in entries]
    return [
        Method(
            method=schedule.method,
            setting=name
            if taken.count((schedule.method, schedule.budget, setting)) > 1
            else setting,
            source=_source(schedule),
            budget=schedule.budget,
            runs=schedule,
        )
        for name, schedule, setting in entries
    ]


def _source(schedule: Schedule) -> str:
    """Where its method is from: as it says itself, or as is known of the project's own."""
    said = schedule.calibration.get("source")
    return said if isinstance(said, str) else SOURCES.get(schedule.method, HERE)


def _setting(schedule: Schedule) -> str | None:
    """What sets a schedule apart by nature: the paper's rule and gamma, or a finer aim."""
    if schedule.method == "paper" and schedule.gamma is not None:
        return f"{schedule.execution}, gamma {schedule.gamma:g}"
    aim = schedule.reference_steps
    return None if aim == schedule.num_inference_steps else f"fitted to {aim} steps"


def from_graph(graph: Calibration, there: Sequence[Method]) -> list[Method]:
    """The methods that need a graph alone, at the budgets of those that are there already.

    The paper's ablation, its two execution rules by gamma, and `secant`; none is added that
    is there already under the same method, budget and setting.

    Raises:
        CalibrationError: the graph has no trajectory.
        SolverError: a budget exceeds the graph's steps.
    """
    budgets = sorted({one.budget for one in there if one.budget is not None})
    solved = [
        *(
            paper_schedules(graph, budgets, gamma, execution)
            for execution, gammas in ABLATION.items()
            for gamma in gammas
        ),
        secant_schedules(graph, budgets),
    ]
    taken = {(one.method, one.budget, one.setting) for one in there}
    found = from_schedules({schedule.id: schedule for row in solved for schedule in row.values()})
    return [one for one in found if (one.method, one.budget, one.setting) not in taken]


def from_baselines(found: Iterable[Baseline]) -> list[Method]:
    """Baselines as methods; a budget, where their knob is one, shows when they run."""
    return [Method(one.method, one.setting, one.source, None, one) for one in found]


@dataclass(frozen=True)
class VideoRequest:
    """What every rank of a gang gets to render one video by one method.

    Attributes:
        item: the pair's prompt, seed and arguments.
        method: how it is rendered.
        count_flops: whether to run it once more, to count its transformer's FLOPs.
        store: the root, which keeps the adapters that the item names.
    """

    item: WorkItem
    method: Method
    count_flops: bool = False
    store: Store | None = None


@dataclass(frozen=True)
class MethodVideo:
    """What comes back.

    Attributes:
        rendering: the video, its forwards and its seconds.
        steps: denoising steps of the run, where the method changed them; else None.
        flops: of the transformer; None where they were not counted.
    """

    rendering: Rendering
    steps: int | None
    flops: int | None

    @property
    def frames(self) -> np.ndarray:
        """(F, H, W, 3) uint8; rank 0's answer, which is the one that comes back, has them."""
        assert self.rendering.frames is not None
        return self.rendering.frames


def render_video(renderer: Renderer, request: VideoRequest) -> MethodVideo:
    """The gang's task: one method's video of one pair."""
    item, method = request.item, request.method
    with method.applied(renderer.pipeline) as overrides:
        use_adapters(renderer, item, request.store)
        arguments = {**item.call, **overrides}
        rendering = renderer.render(item.prompt, item.seed, arguments, method.schedule)
    flops = None
    if request.count_flops:
        # Opened anew: nothing of the measured run may be left in a baseline's cache.
        with method.applied(renderer.pipeline):
            flops = renderer.transformer_flops(item.prompt, item.seed, arguments)
    return MethodVideo(rendering, overrides.get("num_inference_steps"), flops)


def fine_request(item: WorkItem, schedule: Schedule, store: Store | None) -> VideoRequest:
    """The pair's fine solution, by a schedule of `meancache.reference`, from the same noise."""
    arguments = {**item.arguments, "num_inference_steps": schedule.num_inference_steps}
    fine = Method("fine", None, HERE, None, schedule)
    return VideoRequest(replace(item, arguments=arguments), fine, store=store)


@dataclass(frozen=True)
class CalibrationRequest:
    """What a gang of one rank gets to calibrate the baselines that ask for it.

    Attributes:
        trajectories: (prompt, seed) of the calibration runs.
        arguments: of the pipeline's call.
        fitted: budget -> the `fitted` schedule that the gradient-refined baseline starts from.
    """

    trajectories: Sequence[tuple[str, int]]
    arguments: Mapping[str, Any]
    fitted: Mapping[int, Schedule]


def calibrate_baselines(
    renderer: Renderer, request: CalibrationRequest
) -> list[Baseline | Schedule]:
    """The gang's task: the baselines that need calibration runs."""
    runs = renderer.runs(request.trajectories, request.arguments)
    return baselines.calibrated(renderer.pipeline, runs, request.fitted)
