"""Whether compiling a transformer's blocks repays itself within a job.

Arithmetic on the plan alone. Compiled blocks save a share of every forward, and every gang compiles
each size of the output once, while no video of that size is rendered.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.models.cost_model import Transformer

# What a rank is told; ON_GPU compiles where it has one.
NEVER, ON_GPU, ALWAYS = "never", "gpu", "always"
# What a user says.
CHOICES = ("never", "always", "auto")
# A forward of HunyuanVideo at 640x480x65 on an H100 takes 1.06 s instead of 1.37.
SAVED = 0.226
# Seconds of the first size and of each other one, on that machine with an empty cache.
FIRST_S, NEXT_S = 28.0, 24.0
# Where a job takes all gangs that a cluster has, before their number is known: those of a node.
USUAL_GANGS = 8


def repays(
    transformer: Transformer | None, forwards: Mapping[int, float], gang_size: int, gangs: int
) -> bool:
    """Whether a job is long enough for what is compiled to save more than it costs.

    Args:
        transformer: None for one that the cost model does not know, which is never compiled.
        forwards: tokens of an output -> forwards of all items of that size.
        gang_size: GPUs that share an output.
        gangs: that share the items; each compiles for itself.
    """
    if transformer is None or not forwards:
        return False
    eager = sum(
        count * transformer.forward_seconds(tokens, gang_size) for tokens, count in forwards.items()
    )
    return SAVED * eager / gangs > FIRST_S + (len(forwards) - 1) * NEXT_S


def decided(choice: str, worth: bool) -> str:
    """What ranks are told: NEVER, ON_GPU or ALWAYS.

    Args:
        choice: one of CHOICES.
        worth: what `repays` says of the job.
    """
    if choice == "auto":
        return ON_GPU if worth else NEVER
    return ALWAYS if choice == "always" else NEVER
