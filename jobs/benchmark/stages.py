"""What the benchmark measures, a stage each, the most telling first.

A stage takes a `Machine` and returns its figures. It says beforehand what it takes, in forwards and
in seconds, so that a benchmark of a few minutes leaves out what would not fit.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.models.cost_model import GIB, PEAK
from cluster.models.memory_plan import Demand
from cluster.models.model import Model
from cluster.ranks.attention import TRIED
from cluster.ranks.compiling import compile_blocks
from cluster.ranks.loading import load_pipeline
from cluster.ranks.memory import component_bytes
from cluster.ranks.renderer import Renderer
from cluster.ranks.watching import synchronized_now
from jobs.benchmark import speed
from meancache.schedule import Schedule
from meancache.trajectory import record_trajectory

Figures = dict[str, Any]
BUDGETS = (10, 5)
REPEATS = 2
# Sides of the matrices whose product is the limit, by device.
MATRIX = {"cuda": 8192, "cpu": 1024}
# What enable_tiling sets where it is called without sizes.
DIFFUSERS_TILES = {
    **{"tile_sample_min_height": 256, "tile_sample_stride_height": 192},
    **{"tile_sample_min_width": 256, "tile_sample_stride_width": 192},
    **{"tile_sample_min_num_frames": 16, "tile_sample_stride_num_frames": 12},
}


class Machine:
    """The model on this machine, built when a stage first needs it.

    Args:
        model: of random weights.
        arguments: of the pipeline's call.
        repeats: videos of a kind that are measured, one after the other, after one that is not.
        videos: that are measured with all stages at work; None for a few.
    """

    def __init__(
        self,
        model: Model,
        arguments: Mapping[str, Any],
        repeats: int = REPEATS,
        videos: int | None = None,
    ) -> None:
        self.model = model
        self.arguments = dict(arguments)
        self.repeats = repeats
        self.videos = videos or (5 if self.cuda else 2)
        self._renderer: Renderer | None = None
        self._compiled = False

    @property
    def cuda(self) -> bool:
        return torch.cuda.is_available()

    @property
    def renderer(self) -> Renderer:
        """One rank with the whole pipeline; compiled once `compile` was called."""
        if self._renderer is None:
            self._renderer = Renderer(self.model, 0, 1, "", compiled=self._compiled)
        return self._renderer

    def compile(self) -> None:
        """Compiles the transformer's blocks, from the next forward on."""
        if not self._compiled:
            compile_blocks(self.renderer.pipeline.transformer)
            self._compiled = True

    def free(self) -> None:
        """Leaves the GPU to other processes and pipelines."""
        self._renderer = None
        if self.cuda:
            torch.cuda.empty_cache()

    def schedule(self, budget: int) -> Schedule:
        """A schedule of that many forwards."""
        steps = self.arguments["num_inference_steps"]
        return speed.even_schedule(self.model.grid(steps, self.arguments).sigmas, budget)

    def flops(self) -> float:
        """FLOPs of a forward, the padding of the text left out."""
        assert self.model.transformer is not None
        return self.model.transformer.forward_flops(self.model.tokens(self.arguments))


@dataclass(frozen=True)
class Stage:
    """One part of the benchmark.

    Attributes:
        name: its key among the figures.
        measure: returns its figures.
        forwards: about how many it takes.
        seconds: about how many it takes beside, on a GPU.
        gpu: it has nothing to say without one.
    """

    name: str
    measure: Callable[[Machine], Figures]
    forwards: float
    seconds: float
    gpu: bool = False


def forward(machine: Machine) -> Figures:
    """A forward by attention, the text without padding, and the limit of this machine."""
    given = _given(machine.renderer.pipeline, machine)
    transformer = machine.renderer.pipeline.transformer
    limit = speed.matmul_rate(machine.renderer, MATRIX["cuda" if machine.cuda else "cpu"])
    found: Figures = {"matmul_tflops": limit / 1e12, "attention": machine.renderer.attention}
    for name in TRIED if machine.cuda else TRIED[:1]:
        transformer.set_attention_backend(name)
        found[name] = _forward(transformer, given, machine)
    transformer.set_attention_backend(machine.renderer.attention)
    best = min(found[name]["seconds"] for name in TRIED if name in found)
    return {**found, "share_of_matmul_rate": machine.flops() / best / limit}


def compiled(machine: Machine) -> Figures:
    """The same of compiled blocks, and what compiling takes."""
    given = _given(machine.renderer.pipeline, machine)
    machine.compile()
    transformer = machine.renderer.pipeline.transformer
    started = synchronized_now()
    with torch.no_grad():
        transformer(**given)
    compile_s = synchronized_now() - started
    other = {**given, "encoder_hidden_states": given["encoder_hidden_states"][:, :-2]}
    other["encoder_attention_mask"] = given["encoder_attention_mask"][:, :-2]
    started = synchronized_now()
    with torch.no_grad():
        transformer(**other)
    other_s = synchronized_now() - started
    taken = _forward(transformer, given, machine)
    return {**taken, "compile_s": compile_s, "first_of_another_text_s": other_s}


def loop(machine: Machine) -> Figures:
    """Videos of ten forwards: each part of them, one after the other."""
    schedule = machine.schedule(BUDGETS[0])
    _, *turns = (speed.turn(machine.renderer, machine.arguments, schedule) for _ in _runs(machine))
    skipped = [
        second
        for turn in turns
        for step, second in enumerate(turn.steps, start=1)
        if step not in schedule.computed_steps
    ]
    return {
        "loop": statistics.median(turn.loop for turn in turns),
        "text": statistics.median(turn.text for turn in turns),
        "decode": statistics.median(turn.decode for turn in turns),
        "mp4": statistics.median(turn.file for turn in turns),
        "skipped_step": statistics.median(skipped),
        "loops": [turn.loop for turn in turns],
        "decodes": [turn.decode for turn in turns],
    }


def memory(machine: Machine) -> Figures:
    """What denoising and decoding take beside the weights, and what the plan says, in GiB."""
    renderer, arguments = machine.renderer, machine.arguments
    demand = Demand(machine.model, component_bytes(machine.model), arguments, 1, 1)
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    denoised = renderer.denoise(speed.PROMPT, speed.SEED, arguments, machine.schedule(1))
    denoising = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert denoised.latents is not None  # of rank 0
    renderer.decode(denoised.latents, arguments)
    decoding = torch.cuda.max_memory_allocated()
    planned = replace(demand, encoders_size=0).parts(0)
    return {
        "weights": weights / GIB,
        "denoising": (denoising - weights) / GIB,
        "decoding": (decoding - weights) / GIB,
        "plan_alone": {name: size / GIB for name, size in planned.items()},
        "plan_staged": {name: size / GIB for name, size in demand.parts(0).items()},
    }


def steady(machine: Machine) -> Figures:
    """Videos of ten forwards with all stages at work, in processes as those of a job."""
    machine.free()
    return speed.steady_state(
        machine.model,
        machine.arguments,
        machine.schedule(BUDGETS[0]),
        videos=machine.videos,
        compiled=machine.cuda,
    )


def plain(machine: Machine) -> Figures:
    """Plain diffusers, as a user has it: padded text with its mask, every step, its own tiles."""
    machine.free()
    pipeline = load_pipeline(machine.model, torch.device("cuda" if machine.cuda else "cpu"))
    pipeline.vae.enable_tiling(**DIFFUSERS_TILES)
    given = _given(pipeline, machine)
    found: Figures = {"forward": _forward(pipeline.transformer, given, machine)}
    generator = torch.Generator().manual_seed(speed.SEED)
    started = synchronized_now()
    pipeline(speed.PROMPT, generator=generator, output_type="np", **machine.arguments)
    found["video"] = synchronized_now() - started
    return found


def full(machine: Machine) -> Figures:
    """A video of every step, and the statistics of its trajectory."""
    renderer, arguments = machine.renderer, machine.arguments
    with record_trajectory(renderer.pipeline) as trajectory:
        turn = speed.turn(renderer, arguments, None)
    return {
        "loop": turn.loop,
        "forward": statistics.median(turn.steps),
        "statistics": speed.statistics_seconds(machine.model, trajectory, arguments),
    }


def fewer(machine: Machine) -> Figures:
    """A video of five forwards."""
    turn = speed.turn(machine.renderer, machine.arguments, machine.schedule(BUDGETS[1]))
    return {"loop": turn.loop}


STAGES = (
    Stage("forward", forward, 9, 20),
    Stage("compiled", compiled, 5, 35, gpu=True),
    Stage("loop", loop, 30, 25),
    Stage("memory", memory, 1, 8, gpu=True),
    Stage("steady", steady, 100, 90),
    Stage("plain", plain, 54, 45),
    Stage("full", full, 50, 25),
    Stage("fewer", fewer, 5, 8),
)
"""In their order. Those that measure videos come after `compiled`, and are of compiled blocks."""


def _runs(machine: Machine) -> range:
    """Those that are measured, and the first, which is slower than all that follow."""
    return range(machine.repeats + 1)


class _Reached(BaseException):
    """The transformer's first call, whose arguments are all that is wanted."""


def _given(pipeline: Any, machine: Machine) -> Figures:
    """What a pipeline gives its transformer in the first step, padding and mask included."""
    given: Figures = {}

    def look(module: torch.nn.Module, positional: Any, named: Figures) -> None:
        given.update(named)
        raise _Reached

    looking = pipeline.transformer.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
    try:
        pipeline(speed.PROMPT, output_type="latent", **machine.arguments)
    except _Reached:
        return {**given, "return_dict": False}
    finally:
        looking.remove()
    raise RuntimeError("the pipeline did not call its transformer")


def _forward(transformer: Any, given: Figures, machine: Machine) -> Figures:
    """Seconds of a forward, median of three after one, and its share of an H100's peak."""

    @torch.no_grad()
    def run() -> float:
        started = synchronized_now()
        transformer(**given)
        return synchronized_now() - started

    run()
    seconds = statistics.median(run() for _ in range(3))
    share = {"share_of_peak": machine.flops() / seconds / PEAK} if machine.cuda else {}
    return {"seconds": seconds, **share}
