"""How fast this machine renders, and what skipping steps saves.

On a GPU the full-size HunyuanVideo, on a CPU the same graph scaled down, both with random weights:
speed does not depend on them. Needs no Ray. `python -m jobs.benchmark scale` measures what a job
costs around the model instead.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.ranks.random_weights import RandomModel
    from jobs.benchmark import speed

# (width, height, frames): the paper's and xDiT's on a GPU, and smaller ones of like proportions.
SHAPES = {
    "full": {"480p": (640, 480, 65), "544p": (960, 544, 65), "720p": (1280, 720, 129)},
    "scaled": {"480p": (112, 80, 17), "544p": (160, 96, 17), "720p": (192, 112, 17)},
}
STEPS = 50
BUDGETS = (10, 5)
# Sides of the matrices whose product is the limit, by device.
MATRIX = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        shape: a key of SHAPES.
        repeats: turns of each kind of run.
        videos: of the steady state.
        compile: with the blocks of the transformer compiled.
        json: a file for the figures, or None.
    """

    shape: str = "544p"
    repeats: int = 3
    videos: int = 12
    compile: bool = False
    json: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """The figures, as --json writes them."""

    figures: dict[str, Any]


def run(config: Config) -> Outcome:
    """Runs the benchmark, prints as it goes, and writes the figures."""
    figures = measure(config.shape, config.repeats, config.videos, config.compile)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=1))
    return Outcome(figures)


def measure(shape: str, repeats: int, videos: int, compiled: bool = False) -> dict[str, Any]:
    """Runs the benchmark, prints as it goes, and returns what `--json` writes.

    Args:
        shape: a key of SHAPES.
        repeats: turns of each kind of run.
        videos: of the steady state.
        compiled: with the blocks of the transformer compiled.
    """
    import torch

    from cluster.ranks.random_weights import FULL, SCALED, random_model

    cuda = torch.cuda.is_available()
    model = random_model(FULL, "bfloat16") if cuda else random_model(SCALED, "float32")
    width, height, frames = SHAPES["full" if cuda else "scaled"][shape]
    arguments = {
        **model.defaults,
        **{"width": width, "height": height, "num_frames": frames, "num_inference_steps": STEPS},
    }
    machine = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, a core a process"
    figures: dict[str, Any] = {
        "machine": machine,
        "model": "HunyuanVideo, " + ("full size" if cuda else "scaled down") + ", random weights",
        "versions": {name: version(name) for name in ("torch", "diffusers", "xfuser")},
        "shape": {"width": width, "height": height, "num_frames": frames},
        "tokens": model.tokens(arguments),
        "steps": STEPS,
        "repeats": repeats,
        "compiled": compiled,
    }
    print(f"{figures['model']}, {width}x{height}x{frames}, {machine}{', compiled' * compiled}")
    figures |= _figures(model, arguments, repeats, videos, compiled)
    for part in ("seconds", "peak_gib", "ratios"):
        for name, value in figures[part].items():
            if not isinstance(value, list):
                print(f"{part:8} {name:26} {value:10.4g}")
    return figures


def _skipped_step(turns: Sequence[speed.Turn], computed: Collection[int]) -> float:
    """Median seconds of the steps that a schedule skips."""
    from jobs.benchmark import speed

    return speed.median(
        [
            second
            for turn in turns
            for step, second in enumerate(turn.steps, start=1)
            if step not in computed
        ]
    )


def _figures(
    model: RandomModel, arguments: dict[str, Any], repeats: int, videos: int, compiled: bool
) -> dict[str, Any]:
    from cluster.models.cost_model import Transformer
    from cluster.ranks.renderer import Renderer
    from jobs._shared.progress import progress
    from jobs.benchmark import speed

    sigmas = model.grid(STEPS, arguments).sigmas
    schedules = {f"b{budget}": speed.even_schedule(sigmas, budget) for budget in BUDGETS}
    renderer = Renderer(model, 0, 1, "", compiled=compiled)
    kinds = {"full": None, **schedules}
    turns: dict[str, list[speed.Turn]] = defaultdict(list)
    runs = speed.take_turns(renderer, arguments, kinds, repeats)
    for name, turn in progress(
        runs, repeats * len(kinds), "videos", also=lambda: "" if turns else ", warming up"
    ):
        turns[name].append(turn)
    every = [turn for of in turns.values() for turn in of]
    loop = {name: speed.median([turn.loop for turn in of]) for name, of in turns.items()}
    video = {name: speed.median([turn.video for turn in of]) for name, of in turns.items()}
    forward = speed.median([second for turn in turns["full"] for second in turn.steps])
    skipped = _skipped_step(turns["b10"], schedules["b10"].computed_steps)
    statistics_s = speed.statistics_seconds(renderer, arguments)
    peaks = {name: speed.peak_gib(renderer, arguments, of) for name, of in kinds.items()}
    limit = speed.matmul_rate(renderer, MATRIX[renderer.device.type])
    transformer = Transformer.of(renderer.pipeline.transformer.config, model.text_tokens)
    flops = transformer.forward_flops(model.tokens(arguments))
    del renderer
    steady = speed.steady_state(model, arguments, schedules["b10"], videos, compiled)
    return {
        "seconds": {
            "forward": forward,
            "skipped_step": skipped,
            "text": speed.median([turn.text for turn in every]),
            "decode": speed.median([turn.decode for turn in every]),
            "mp4": speed.median([turn.file for turn in every]),
            "statistics": statistics_s,
            **{f"loop_{name}": seconds for name, seconds in loop.items()},
            **{f"video_{name}": seconds for name, seconds in video.items()},
            "video_b10_in_steady_state": steady.seconds,
            **{f"loops_{name}": [turn.loop for turn in of] for name, of in turns.items()},
        },
        "peak_gib": {name: gib for name, gib in peaks.items() if gib is not None},
        "ratios": {
            **{f"loop_speedup_b{budget}": loop["full"] / loop[f"b{budget}"] for budget in BUDGETS},
            "end_to_end_speedup_b10": video["full"] / steady.seconds,
            "one_by_one_speedup_b10": video["full"] / video["b10"],
            "skipped_step_share": skipped / forward,
            "statistics_share": statistics_s / loop["full"],
            "goodput": steady.goodput,
            "share_of_matmul_rate": flops / forward / limit,
        },
    }
