"""The ruler: what the embedded model shows, and how far fewer steps end from its 50.

    python -m meancache.tiny.training.measure [--captions 32] [--json FILE]

Reports, on held-out captions, the share of facts the 50-step videos show, and the PSNR of 10 and 20
plain Euler steps against the 50-step video from the same noise.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from meancache.quality import Summary, psnr
from meancache.tiny import DEFAULTS, load
from meancache.tiny.captions import HELD_OUT, Caption
from meancache.tiny.scorer import FACTS, score

if TYPE_CHECKING:
    from diffusers import HunyuanVideoPipeline

REFERENCE_STEPS = 50
FEWER_STEPS = (10, 20)


@dataclass(frozen=True)
class Ruler:
    """What `measure` found: shares of right facts in [0, 1], fidelity by number of Euler steps."""

    captions: int
    facts: dict[str, float]
    facts_overall: float
    euler: dict[int, Summary]


def generate(
    pipe: HunyuanVideoPipeline, caption: Caption, seed: int, steps: int = REFERENCE_STEPS
) -> npt.NDArray[np.float32]:
    """One video (F, H, W, 3), float in [0, 1], from CPU noise of that seed."""
    arguments: dict[str, Any] = {**DEFAULTS, "num_inference_steps": steps}
    generator = torch.Generator().manual_seed(seed)
    frames = pipe(caption.text, generator=generator, output_type="np", **arguments).frames
    video: npt.NDArray[np.float32] = frames[0]
    return video


def measure(pipe: HunyuanVideoPipeline, captions: tuple[Caption, ...], say: bool = False) -> Ruler:
    """Measures the model on the captions, with one noise each (its seed is the caption's place).

    With `say`, prints a line a caption with the time left.
    """
    right = dict.fromkeys(FACTS, 0)
    fidelity: dict[int, list[float]] = {steps: [] for steps in FEWER_STEPS}
    started = time.monotonic()
    for seed, caption in enumerate(captions):
        reference = generate(pipe, caption, seed)
        shown = score(reference, caption)
        for fact in FACTS:
            right[fact] += getattr(shown, fact)
        for steps, values in fidelity.items():
            values.append(psnr(generate(pipe, caption, seed, steps), reference))
        if say:
            done = seed + 1
            left = (time.monotonic() - started) / done * (len(captions) - done)
            decibels = ", ".join(f"{steps} steps {v[-1]:.1f} dB" for steps, v in fidelity.items())
            wrong = [fact for fact in FACTS if not getattr(shown, fact)]
            print(
                f"{done:3d}/{len(captions)}  {caption.text}: {shown.right} of {len(FACTS)} facts"
                f"{' (not ' + ', '.join(wrong) + ')' if wrong else ''}, {decibels}; "
                f"about {left:.0f} s left",
                flush=True,
            )
    return Ruler(
        captions=len(captions),
        facts={fact: count / len(captions) for fact, count in right.items()},
        facts_overall=sum(right.values()) / len(captions) / len(FACTS),
        euler={steps: Summary.of(values) for steps, values in fidelity.items()},
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m meancache.tiny.training.measure",
        description="Measures the embedded model on held-out captions.",
    )
    parser.add_argument(
        "--captions",
        type=int,
        default=32,
        choices=range(1, len(HELD_OUT) + 1),
        metavar=f"1..{len(HELD_OUT)}",
        help="how many held-out captions, default 32",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    arguments = parser.parse_args()
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    ruler = measure(pipe, HELD_OUT[: arguments.captions], say=True)
    print(f"\nfacts right at {REFERENCE_STEPS} steps, {ruler.captions} held-out captions")
    for fact, share in ruler.facts.items():
        print(f"  {fact:11s}{share:6.1%}")
    print(f"  {'overall':11s}{ruler.facts_overall:6.1%}")
    print(f"PSNR against the {REFERENCE_STEPS}-step video, same noise")
    for steps, fidelity in ruler.euler.items():
        print(
            f"  {steps} Euler steps  {fidelity.mean:.1f} dB, standard error "
            f"{fidelity.standard_error:.1f}, worst {fidelity.worst:.1f}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(ruler), indent=2) + "\n")


if __name__ == "__main__":
    main()
