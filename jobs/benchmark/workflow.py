"""The benchmark of speed: stages until the time is used up, written after each, resumed by name.

On a GPU the full-size HunyuanVideo, on a CPU the same graph scaled down, both with random weights:
speed does not depend on them. Needs no Ray.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.benchmark.stages import Machine, Stage

# (width, height, frames): the paper's and xDiT's on a GPU, and smaller ones of like proportions.
SHAPES = {
    "full": {"480p": (640, 480, 65), "544p": (960, 544, 65), "720p": (1280, 720, 129)},
    "scaled": {"480p": (112, 80, 17), "544p": (160, 96, 17), "720p": (192, 112, 17)},
}
STEPS = 50
# The most telling first; see `stages`, which needs torch.
STAGES = ("forward", "compiled", "loop", "memory", "steady", "plain", "full", "fewer")
# Until one is measured: seconds of a forward at 480p, and how much longer it is at others.
FORWARD_S = {"cuda": 1.4, "cpu": 0.3}


@dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        shape: a key of SHAPES.
        minutes: after which no stage is begun, nor one that would take longer; None for all.
        stages: names of those that are wanted; empty for all.
        json: a file for the figures, from which a benchmark that was begun is resumed; or None.
        repeats: runs of ten forwards whose medians are given; None for a few.
        videos: in steady state; None for a few.
        compile: measure compiled blocks without a GPU too, which takes minutes of compiling.
    """

    shape: str = "480p"
    minutes: float | None = None
    stages: tuple[str, ...] = ()
    json: Path | None = None
    repeats: int | None = None
    videos: int | None = None
    compile: bool = False


@dataclass(frozen=True)
class Outcome:
    """The figures, as --json writes them; how many stages failed, and the names of those left."""

    figures: dict[str, Any]
    failed: int
    left: tuple[str, ...]


def run(config: Config) -> Outcome:
    """Measures, prints as it goes, and writes the figures after every stage."""
    from jobs.benchmark import stages as all_stages  # with torch

    began = time.perf_counter()
    machine, figures = _machine(config)
    wanted = [
        stage
        for stage in all_stages.STAGES
        if stage.name in (config.stages or (stage.name,))
        and (machine.cuda or not stage.gpu or (config.compile and stage.name == "compiled"))
    ]
    print(f"{figures['model']}, {_size(figures['shape'])}, {figures['machine']}", flush=True)
    failed, left = 0, []
    for stage in wanted:
        if stage.name in figures["stages"]:
            print(f"{stage.name}: measured before", flush=True)
            continue
        until = time.perf_counter() - began + _takes(stage, machine, figures)
        if config.minutes is not None and until > 60 * config.minutes:
            left.append(stage.name)
            continue
        failed += not _measured(stage, machine, figures)
        figures["ratios"] = ratios(figures["stages"])
        if config.json is not None:
            _write(config.json, figures)
    _print(("ratios", figures["ratios"]))
    if left:
        print(f"no time for {', '.join(left)}: the same command goes on there", flush=True)
    return Outcome(figures, failed, tuple(left))


def ratios(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What the figures of several stages say together, of those that are there."""
    loop, full, fewer = (stages.get(name) for name in ("loop", "full", "fewer"))
    steady, plain, forward = (stages.get(name) for name in ("steady", "plain", "forward"))
    found: dict[str, float] = {}
    if loop and full:
        found["loop_speedup_b10"] = full["loop"] / loop["loop"]
        found["skipped_step_share"] = loop["skipped_step"] / full["forward"]
    if fewer and full:
        found["loop_speedup_b5"] = full["loop"] / fewer["loop"]
    if full:
        found["statistics_share"] = full["statistics"] / full["loop"]
    if plain and loop:
        one_by_one = sum(loop[part] for part in ("text", "loop", "decode", "mp4"))
        found["one_by_one_speedup_b10"] = plain["video"] / one_by_one
    if plain and steady:
        found["end_to_end_speedup_b10"] = plain["video"] / steady["seconds"]
    if steady:
        found["goodput"] = steady["goodput"]
    if forward:
        found["share_of_matmul_rate"] = forward["share_of_matmul_rate"]
    return found


def _machine(config: Config) -> tuple[Machine, dict[str, Any]]:
    """What measures, and the figures so far."""
    import torch

    from cluster.ranks.random_weights import FULL, SCALED, random_model
    from jobs.benchmark.stages import REPEATS, Machine

    cuda = torch.cuda.is_available()
    model = random_model(FULL, "bfloat16") if cuda else random_model(SCALED, "float32")
    width, height, frames = SHAPES["full" if cuda else "scaled"][config.shape]
    shape = {"width": width, "height": height, "num_frames": frames}
    arguments = {**model.defaults, **shape, "num_inference_steps": STEPS}
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, a core a process"
    figures = {
        "machine": name,
        "model": "HunyuanVideo, " + ("full size" if cuda else "scaled down") + ", random weights",
        "versions": _versions(("torch", "diffusers", "xfuser")),
        "shape": shape,
        "tokens": model.tokens(arguments),
        "steps": STEPS,
        "stages": {},
        "ratios": {},
        "failed": {},
    }
    if config.json is not None and config.json.exists():
        before = json.loads(config.json.read_text())
        same = [key for key in figures if key not in ("stages", "ratios", "failed")]
        if all(before.get(key) == figures[key] for key in same):
            figures |= {"stages": before["stages"], "ratios": before["ratios"]}
    return Machine(model, arguments, config.repeats or REPEATS, config.videos), figures


def _takes(stage: Stage, machine: Machine, figures: Mapping[str, Any]) -> float:
    """About how many seconds a stage takes."""
    known = figures["stages"].get("forward", {}).get("native", {}).get("seconds")
    forward_s = known or FORWARD_S["cuda" if machine.cuda else "cpu"]
    return stage.forwards * forward_s + (stage.seconds if machine.cuda else stage.seconds / 5)


def _measured(stage: Stage, machine: Machine, figures: dict[str, Any]) -> bool:
    """Runs a stage; one that fails leaves the others their turn."""
    started = time.perf_counter()
    try:
        found = stage.measure(machine)
    except Exception as error:
        traceback.print_exc()
        figures["failed"][stage.name] = f"{type(error).__name__}: {error}"[:500]
        machine.free()
        return False
    figures["failed"].pop(stage.name, None)
    figures["stages"][stage.name] = {**found, "took_s": time.perf_counter() - started}
    _print((stage.name, found))
    return True


def _print(found: tuple[str, Mapping[str, Any]]) -> None:
    name, values = found
    for key, value in values.items():
        if isinstance(value, Mapping):
            _print((f"{name} {key}", value))
        elif isinstance(value, int | float):
            print(f"{name:24} {key:26} {value:10.4g}", flush=True)
        elif isinstance(value, str):
            print(f"{name:24} {key:26} {value:>10}", flush=True)


def _size(shape: Mapping[str, int]) -> str:
    return "x".join(str(shape[name]) for name in ("width", "height", "num_frames"))


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a package that lies on the path without its metadata
            found[name] = getattr(sys.modules.get(name), "__version__", "unknown")
    return found


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    """The whole file or the one before: a benchmark may be stopped at any moment."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(figures, indent=1))
    os.replace(part, path)
