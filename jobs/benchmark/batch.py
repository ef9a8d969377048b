"""python -m jobs.benchmark batch: images a second, by how many go into one forward.

Renders with FLUX.1, full-size on a GPU, scaled down on a CPU, of random weights: speed does not
depend on them. Each image is decoded by itself, as in a job. Batches of all sizes take turns, so
that whatever else the machine does falls on all; medians are given. On a CPU the seconds are those
of a core's time, which other work does not lengthen. Needs no Ray.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs._shared.cli import EXIT_REFUSED
from jobs._shared.numbers import positive
from meancache.errors import InputError

SIDES = {"cuda": 1024, "cpu": 256}


@dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        sizes: of batches.
        side: of an image, in pixels; None for the device's own.
        budget: forwards of a run.
        repeats: batches of each size, after one that is not counted.
        json: a file for the figures, or None.
    """

    sizes: tuple[int, ...] = (1, 2, 4)
    side: int | None = None
    budget: int = 10
    repeats: int = 3
    json: Path | None = None


def run(config: Config) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    import torch

    from cluster.models.cost_model import GIB
    from cluster.ranks.random_images import random_flux
    from cluster.ranks.renderer import Renderer
    from jobs.benchmark.speed import even_schedule

    cuda = torch.cuda.is_available()
    side = config.side or SIDES["cuda" if cuda else "cpu"]
    model = random_flux(cuda, side, "bfloat16" if cuda else "float32")
    arguments = dict(model.defaults)
    model.check_arguments(arguments, 1)
    schedule = even_schedule(
        model.grid(arguments["num_inference_steps"], arguments).sigmas, config.budget
    )
    renderer = Renderer(model, 0, 1, "")
    figures: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if cuda else "a core",
        "model": "FLUX.1, " + ("full size" if cuda else "scaled down") + ", random weights",
        "side": side,
        "tokens": model.tokens(arguments),
        "budget": config.budget,
        "batches": {},
    }
    print(f"{figures['model']}, {side}x{side}, {config.budget} forwards, {figures['machine']}")
    taken: dict[int, list[tuple[float, float]]] = {size: [] for size in config.sizes}
    peaks = {}
    for _ in range(config.repeats + 1):
        for size in config.sizes:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            taken[size].append(_render(renderer, arguments, schedule, size))
            peaks[size] = torch.cuda.max_memory_allocated() / GIB if cuda else None
    for size, all_of_it in taken.items():
        seconds, loops = (statistics.median(one) for one in zip(*all_of_it[1:], strict=True))
        found = {"images_per_s": size / seconds, "denoised_per_s": size / loops}
        figures["batches"][size] = {**found, "peak_gib": peaks[size]}
    _print(figures["batches"])
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=1))
    return figures


def _render(renderer: Any, arguments: Any, schedule: Any, size: int) -> tuple[float, float]:
    """Seconds of a batch, decoded, and of its denoising alone."""
    from cluster.ranks.batches import joined, split

    texts = joined([renderer.model.texts(seed) for seed in range(size)])
    prompts, seeds = [f"image {seed}" for seed in range(size)], list(range(size))
    clock = time.perf_counter if renderer.device.type == "cuda" else time.process_time
    started = clock()
    denoised = renderer.denoise(prompts, seeds, arguments, schedule, texts)
    denoise_s = clock() - started
    for latents in split(denoised.latents, size):
        renderer.decode(latents, arguments)
    return clock() - started, denoise_s


def _print(batches: dict[int, dict[str, Any]]) -> None:
    first = next(iter(batches.values()))
    for size, found in batches.items():
        peak = "" if found["peak_gib"] is None else f", peak {found['peak_gib']:.1f} GiB"
        print(
            f"batch {size}: {found['images_per_s']:.3g} images a second "
            f"({found['images_per_s'] / first['images_per_s']:.2f} times), denoising alone "
            f"{found['denoised_per_s']:.3g} "
            f"({found['denoised_per_s'] / first['denoised_per_s']:.2f} times){peak}"
        )


def parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    result = argparse.ArgumentParser(
        prog="python -m jobs.benchmark batch",
        description=__doc__,
        epilog="example: python -m jobs.benchmark batch --sizes 1 2 4 8 --json figures.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[1, 2, 4],
        metavar="N",
        help="images in a forward (default: 1 2 4)",
    )
    result.add_argument(
        "--side",
        type=positive,
        metavar="PIXELS",
        help="of the square images (default: 1024 on a GPU, 256 on a CPU)",
    )
    result.add_argument(
        "--budget", type=positive, default=10, metavar="B", help="forwards an image (default 10)"
    )
    result.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="of which medians are given"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(argv)
    sizes = tuple(dict.fromkeys(options.sizes))
    try:
        run(Config(sizes, options.side, options.budget, options.repeats, options.json))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
