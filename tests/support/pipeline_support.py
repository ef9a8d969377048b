"""What every pipeline class of diffusers does with a schedule: the table in the docs.

`python -m tests.support.pipeline_support` tries the classes and writes the page again.
"""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.errors import ScheduleError
from meancache.grid import Grid
from meancache.hooks.pipelines import check_scheduler
from meancache.velocity import velocities_in_use
from tests.support.pipeline_classes import BUILT
from tests.support.small_pipelines import STEPS, Case, Small, quiet

PAGE = Path(__file__).parents[2] / "docs/pipeline-support.md"
SKIPS = [(0, 1, 1), (1, 2, 1), (2, 5, 2), (5, 6, 1), (6, 9, 3), (9, 10, 1)]
ALL = [(step, step + 1, 1) for step in range(STEPS)]


@dataclass(frozen=True)
class Support:
    """What a class does: 'works', 'refused' or 'not built here', and why."""

    state: str
    why: str


def classes() -> dict[str, Any]:
    """Every pipeline class that diffusers exports, classic and modular, by name."""
    found = {}
    for name in sorted(set(dir(diffusers))):
        one = getattr(diffusers, name, None)
        if inspect.isclass(one) and issubclass(one, DiffusionPipeline | ModularPipeline):
            found[name] = one
    return {name: one for name, one in found.items()
            if name not in ("DiffusionPipeline", "ModularPipeline")}  # fmt: skip


def without_building(one: Any) -> Support | None:
    """What follows from the schedulers that the class names; None where it may be Euler's."""
    if issubclass(one, ModularPipeline):
        return None
    signature = inspect.signature(one.__init__).parameters
    if "scheduler" not in signature:
        return Support("refused", "it has no scheduler of its own that a schedule could follow")
    named = _named(signature["scheduler"].annotation)
    if any("FlowMatchEuler" in name for name in named) or not named:
        return None
    try:
        check_scheduler(getattr(diffusers, named[0])())
    except ScheduleError as error:
        return Support("refused", str(error))
    except Exception:
        return None
    return None


def _named(annotation: Any) -> list[str]:
    """The schedulers' class names in an annotation, itself a class, a union or a string."""
    if annotation is diffusers.schedulers.KarrasDiffusionSchedulers or (
        isinstance(annotation, str) and "Karras" in annotation
    ):
        return ["DDIMScheduler"]
    parts = typing.get_args(annotation) or (annotation,)
    text = " ".join(one if isinstance(one, str) else getattr(one, "__name__", "") for one in parts)
    return [name for name in re.findall(r"\w+Scheduler\b", text) if name != "SchedulerMixin"]


def schedule_of(small: Small, path: list[tuple[int, int, int]]) -> Schedule:
    """For the grid of the pipeline's last call."""
    edges = [{"start": start, "stop": stop, "span": span} for start, stop, span in path]
    sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    return Schedule.from_edges(sigmas, edges, "fine-step")


def tried(case: Case) -> tuple[str, str]:
    """Runs the case plain, with all steps and with skips; (state, why)."""
    small = Small(case, quiet(case.make()))
    plain = small.draw()
    begin = STEPS - len(recorded(small))
    hook = apply_mean_cache(small.pipe, schedule_of(small, ALL))
    assert torch.equal(small.draw(), plain), "all steps are not the plain run"
    assert hook.forwards == case.calls * (STEPS - begin), f"{hook.forwards} forwards"
    remove_mean_cache(small.pipe)
    # One history term: what a run that begins in the middle can follow from its first step.
    path = SKIPS if begin == 0 else from_step(begin)
    schedule = schedule_of(small, path)
    hook = apply_mean_cache(small.pipe, schedule)
    got = small.draw()
    remove_mean_cache(small.pipe)
    want = independent(small, schedule)
    assert torch.allclose(got, want, atol=1e-4, rtol=1e-3), "not the independent loop"
    wanted = case.calls * sum(start >= begin for start, _, _ in path)
    assert hook.forwards == wanted, f"{hook.forwards} forwards, not {wanted}"
    return "works", ""


def from_step(begin: int) -> list[tuple[int, int, int]]:
    """A path that computes `begin`, then skips."""
    before = [(step, step + 1, 1) for step in range(begin)]
    return [*before, (begin, begin + 2, 1), (begin + 2, STEPS, 1)]


def recorded(small: Small) -> list[torch.Tensor]:
    """The velocities that the pipeline's scheduler is given in a run."""
    given: list[torch.Tensor] = []
    step = small.pipe.scheduler.step

    def watched(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(model_output)
        return step(model_output, *args, **kwargs)

    small.pipe.scheduler.step = watched
    try:
        small.draw()
    finally:
        del small.pipe.scheduler.step
    return given


def independent(small: Small, schedule: Schedule) -> torch.Tensor:
    """The run of all forwards in which skipped steps integrate the schedule's combination."""
    rows = torch.from_numpy(velocities_in_use(schedule))
    scheduler = small.pipe.scheduler
    step, given = scheduler.step, {}

    def combined(model_output: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        k = scheduler.step_index
        if k is None:
            k = scheduler.begin_index
        if k is None:
            k = scheduler.index_for_timestep(timestep)
        given[k] = model_output.double()
        terms = [float(rows[k, n]) * given[n] for n in range(k + 1) if float(rows[k, n])]
        return step(sum(terms).to(model_output.dtype), timestep, *args, **kwargs)

    scheduler.step = combined
    try:
        return small.draw()
    finally:
        del scheduler.step


def support(name: str, one: Any) -> Support:
    """What the class does, tried where it is built here."""
    if name in BUILT:
        try:
            return Support(*tried(BUILT[name]))
        except Exception as error:
            print(name, type(error).__name__, error)
            return Support("not built here", "its small parts, as put together here, do not run")
    known = without_building(one)
    if known is not None:
        return known
    kind = "modular" if issubclass(one, ModularPipeline) else "classic"
    return Support("not built here", f"no small parts of this {kind} pipeline are put together yet")


def page(found: dict[str, Support]) -> str:
    """The page of the docs."""
    counts = {state: sum(one.state == state for one in found.values())
              for state in ("works", "refused", "not built here")}  # fmt: skip
    lines = [
        "# Pipeline classes",
        "",
        f"Every pipeline class of diffusers {diffusers.__version__}: {counts['works']} work, "
        f"{counts['refused']} are refused before the first forward, {counts['not built here']} are "
        "not built here.",
        "*Works* means, with small random weights: a schedule of all steps is the plain run bit "
        "for bit, one with skips equals an independent loop, and exactly its forwards run.",
        "Written by `python -m tests.support.pipeline_support`.",
        "",
        "| class | state | why |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {one.state} | {one.why} |" for name, one in found.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    PAGE.write_text(page({name: support(name, one) for name, one in classes().items()}))


if __name__ == "__main__":
    main()
