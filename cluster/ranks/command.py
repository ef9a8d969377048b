"""The command of `python -m cluster.ranks.command`, also under torchrun."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from cluster.models.model import ModelError, find_model
from cluster.ranks import renderer
from cluster.ranks.tasks import encoded
from meancache import Schedule, ScheduleError


def main() -> None:
    """Renders one prompt on the ranks that torchrun started (or on one, without torchrun)."""
    parser = argparse.ArgumentParser(
        description=renderer.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="tiny, a folder or a Hugging Face id")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedule", type=Path, help="a schedule file; default: every step")
    parser.add_argument("--output", type=Path, required=True, help="the mp4 to write, or png")
    options = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        model = find_model(options.model)
        schedule = None if options.schedule is None else Schedule.load(options.schedule)
        model.check_arguments(model.defaults, world_size)
        if schedule is not None:
            model.check_schedule(schedule, model.defaults)
    except (ModelError, ScheduleError) as error:
        parser.error(str(error))
    if not options.output.parent.is_dir():
        parser.error(f"--output {options.output}: there is no folder {options.output.parent}")
    built = renderer.Renderer(model, rank, world_size, "env://")
    rendering = built.render(options.prompt, options.seed, model.defaults, schedule)
    if rendering.frames is not None:
        options.output.write_bytes(encoded(model, rendering.frames))
        print(
            f"{options.output}: {len(rendering.frames)} frames, {rendering.nfe} forwards, "
            f"{rendering.seconds:.1f} s on {world_size} rank(s)"
        )
    if world_size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
