"""What every pipeline class of diffusers does with a schedule: the table in the docs.

`python -m tests.support.pipeline_support` tries the classes and writes the page again. With names
of classes it tries these alone, says why one fails, and writes nothing.
"""

from __future__ import annotations

import gc
import inspect
import re
import sys
import time
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.errors import ScheduleError
from meancache.grid import Grid
from meancache.hooks.pipelines import named_transformers
from meancache.hooks.schedulers import check_scheduler
from meancache.velocity import velocities_in_use
from tests.support.pipeline_classes import BUILT, NOTES, UNBUILT
from tests.support.small_pipelines import Case, Small, quiet

PAGE = Path(__file__).parents[2] / "docs/pipelines-table.md"
STEPS = 6
STATES = ("works", "refused", "not built here")


@dataclass(frozen=True)
class Support:
    """What a class does: 'works', 'refused' or 'not built here', and why."""

    state: str
    why: str = ""


def classes() -> dict[str, Any]:
    """Every pipeline class that diffusers exports, classic and modular, by name."""
    found = {}
    for name in sorted(set(dir(diffusers))):
        one = getattr(diffusers, name, None)
        if inspect.isclass(one) and issubclass(one, DiffusionPipeline | ModularPipeline):
            found[name] = one
    return {name: one for name, one in found.items()
            if name not in ("DiffusionPipeline", "ModularPipeline")}  # fmt: skip


def unneeded(found: dict[str, Any]) -> set[str]:
    """Names in the lists of cases and reasons that diffusers does not export."""
    return {*BUILT, *UNBUILT, *NOTES} - set(found)


def parts_of(one: Any) -> dict[str, Any]:
    """The names of a pipeline's parts, and what it says of their classes."""
    if issubclass(one, ModularPipeline):
        blocks = getattr(diffusers, one.default_blocks_name)()
        return {spec.name: spec.type_hint for spec in blocks.expected_components}
    parameters = inspect.signature(one.__init__).parameters
    return {name: parameter.annotation for name, parameter in parameters.items()}


def without_building(one: Any) -> Support | None:
    """What follows from the parts that the class names; None where it may follow a schedule.

    The sentences are those of `apply_mean_cache` and of the first call.
    """
    parts = parts_of(one)
    named = _named(parts.get("scheduler"))
    flow = any("FlowMatchEuler" in name for name in named)
    components = {
        name: torch.nn.Identity() for name in parts if "transformer" in name or name == "unet"
    }
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else None
    known = type(one.__name__, (), {"components": components, "scheduler": scheduler})
    try:
        named_transformers(known())
    except ScheduleError as error:
        return Support("refused", str(error))
    if flow or not named:
        return None
    cls = getattr(diffusers, named[0])
    try:
        scheduler = cls()
    except TypeError:  # it takes arguments, of which the sentence says nothing
        scheduler = cls.__new__(cls)
    try:
        check_scheduler(scheduler)
    except ScheduleError as error:
        return Support("refused", str(error))
    return None


def _named(annotation: Any) -> list[str]:
    """The schedulers' class names in an annotation, itself a class, a union or a string."""
    if annotation is diffusers.schedulers.KarrasDiffusionSchedulers or (
        isinstance(annotation, str) and "Karras" in annotation
    ):
        return ["DDIMScheduler"]
    parts = typing.get_args(annotation) or (annotation or "",)
    text = " ".join(one if isinstance(one, str) else getattr(one, "__name__", "") for one in parts)
    return [name for name in re.findall(r"\w+Scheduler\b", text) if hasattr(diffusers, name)]


def every(begin: int = 0) -> list[dict[str, Any]]:
    """A jump for each step."""
    return [{"start": k, "stop": k + 1, "weights": {k: 1.0}} for k in range(begin, STEPS)]


def skipping(begin: int) -> list[dict[str, Any]]:
    """Computes `begin` and one or two later steps, and weighs what the run has computed.

    A run that begins in the middle of the grid has no velocities from before.
    """
    if begin == 0:
        return [
            {"start": 0, "stop": 1, "weights": {0: 1.0}},
            {"start": 1, "stop": 4, "weights": {0: -0.4, 1: 1.4}},
            {"start": 4, "stop": 6, "weights": {1: 0.2, 4: 0.8}},
        ]
    before = every()[:begin]
    middle = {"start": begin, "stop": begin + 2, "weights": {begin: 1.0}}
    last = {"start": begin + 2, "stop": STEPS, "weights": {begin: -0.3, begin + 2: 1.3}}
    return [*before, middle, last]


def schedule_of(small: Small, edges: list[dict[str, Any]]) -> Schedule:
    """For the grid of the pipeline's last call, or for any where that is none."""
    try:
        sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    except ValueError:
        sigmas = tuple(1 - k / STEPS for k in range(STEPS + 1))
    return Schedule.from_edges(sigmas, edges)


def draw(small: Small) -> torch.Tensor:
    return small.everything(num_inference_steps=STEPS)


def tried(case: Case) -> None:
    """Runs the case plain, with all steps, with skips, and in an independent loop.

    Raises:
        ScheduleError: it is refused, and nothing was computed.
        AssertionError: it is wrong.
    """
    small = Small(case, quiet(case.make()))
    plain, ran = recorded(small)
    runs, begin = ran.count(ran[-1]), ran[0]
    steps = STEPS - begin
    assert torch.isfinite(plain).all(), "the plain run is not finite"
    assert len(ran) == runs * steps, f"the scheduler took the steps {ran}"
    hook = apply_mean_cache(small.pipe, schedule_of(small, every()))
    try:
        assert torch.equal(draw(small), plain), "all steps are not the plain run"
    except ScheduleError as error:
        if hook.forwards:
            raise AssertionError(f"refused after {hook.forwards} forwards: {error}") from error
        raise
    assert hook.forwards == case.calls * runs * steps, f"{hook.forwards} forwards"
    remove_mean_cache(small.pipe)
    schedule = schedule_of(small, skipping(begin))
    hook = apply_mean_cache(small.pipe, schedule)
    got = draw(small)
    remove_mean_cache(small.pipe)
    want = independent(lambda: draw(small), schedule)
    assert torch.allclose(got, want, atol=1e-4, rtol=1e-3), "not the independent loop"
    assert not torch.equal(got, plain), "skipping changes nothing"
    wanted = case.calls * runs * sum(step >= begin for step in schedule.computed_steps)
    assert hook.forwards == wanted, f"{hook.forwards} forwards, not {wanted}"


Step = Callable[..., Any]


@contextmanager
def steps_of_euler(step: Callable[[Step], Step]) -> Iterator[None]:
    """Every Euler scheduler, copies made in a run too, takes its steps through `step(plain)`."""
    plain = FlowMatchEulerDiscreteScheduler.step
    FlowMatchEulerDiscreteScheduler.step = step(plain)
    try:
        yield
    finally:
        FlowMatchEulerDiscreteScheduler.step = plain


def recorded(small: Small) -> tuple[torch.Tensor, list[int]]:
    """A plain run, and the steps that its own scheduler took."""
    ran: list[int] = []

    def watched(plain: Step) -> Step:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = plain(self, *args, **kwargs)
            if self is small.pipe.scheduler:
                ran.append(self.step_index - 1)
            return result

        return step

    with steps_of_euler(watched):
        return draw(small), ran


def independent(run: Callable[[], torch.Tensor], schedule: Schedule) -> torch.Tensor:
    """A run of all forwards in which skipped steps integrate the schedule's combination.

    A step that needs velocities from before the run's beginning takes its own.
    """
    weights = torch.from_numpy(velocities_in_use(schedule))
    given: dict[tuple[int, int], torch.Tensor] = {}

    def combined(plain: Step) -> Step:
        def step(
            self: Any, model_output: torch.Tensor, timestep: Any, *args: Any, **kw: Any
        ) -> Any:
            if self.step_index is None:
                self._init_step_index(timestep)
            k, number = self.step_index, id(self)
            given[number, k] = model_output.double()
            used = [n for n in range(len(weights)) if float(weights[k, n])]
            if all((number, n) in given for n in used):
                parts = [float(weights[k, n]) * given[number, n] for n in used]
                model_output = torch.stack(parts).sum(0).to(model_output.dtype)
            return plain(self, model_output, timestep, *args, **kw)

        return step

    with steps_of_euler(combined):
        return run()


def support(name: str, one: Any) -> Support:
    """What the class does, tried where it is built here."""
    if name in BUILT:
        try:
            tried(BUILT[name])
        except ScheduleError as error:
            return Support("refused", str(error))
        return Support("works", NOTES.get(name, ""))
    if name in UNBUILT:
        return Support("not built here", UNBUILT[name])
    known = without_building(one)
    if known is not None:
        return known
    kind = "modular" if issubclass(one, ModularPipeline) else "classic"
    return Support("not built here", f"small parts of this {kind} pipeline are not put together")


def page(found: dict[str, Support]) -> str:
    """The page of the docs."""
    counts = {state: sum(one.state == state for one in found.values()) for state in STATES}
    lines = [
        "# Pipeline classes",
        "",
        f"Every pipeline class that diffusers {diffusers.__version__} exports: {counts['works']} "
        f"work, {counts['refused']} are refused before the first forward, "
        f"{counts['not built here']} are not built here.",
        "",
        "*Works*: with small random weights, a schedule of all steps is the plain run bit for bit, "
        "one with skips equals a loop that does not use the hook, and exactly its forwards run. "
        "What it takes for that is in the last column. *Refused*: in the sentence of the last "
        "column. Written by `python -m tests.support.pipeline_support`.",
        "",
        "| class | state | what to know |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {one.state} | {one.why} |" for name, one in found.items()),
    ]
    return "\n".join(lines) + "\n"


def rows(text: str) -> dict[str, Support]:
    """The table of a page."""
    found = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (.*) \|$", text, re.MULTILINE)
    return {name: Support(state, why) for name, state, why in found}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    every_class = classes()
    chosen = {name: every_class[name] for name in names or every_class}
    found, failed = {}, 0
    for number, (name, one) in enumerate(chosen.items(), 1):
        begin = time.monotonic()
        try:
            found[name] = support(name, one)
        except Exception as error:
            found[name] = Support("not built here", f"fails here: {type(error).__name__}")
            failed += 1
            print(
                *traceback.format_exception(error)[-4:] if names else (), f"{name}: {error}"[:400]
            )
        gc.collect()
        took = time.monotonic() - begin
        if name in BUILT:
            print(f"{number}/{len(chosen)} {name} {found[name].state} {took:.1f} s", flush=True)
    if names:
        return
    if failed:
        sys.exit(f"{failed} classes that are put together fail: the page is not written")
    PAGE.write_text(page(found), encoding="utf-8")
    print({state: sum(one.state == state for one in found.values()) for state in STATES})


if __name__ == "__main__":
    main(sys.argv[1:])
