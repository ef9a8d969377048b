"""Which prompts are calibrated on, and which are kept back to judge by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cluster.work.prompts import Prompt, PromptsError
from jobs._shared.prompts import plain

# The share of a file's prompts that is kept back; two at least, for there to be a spread.
HELD_OUT_SHARE = 1 / 3
LEAST_HELD_OUT = 2


def split(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Splits rows into those to calibrate on and those held out, each in file order.

    By the hashes of their texts alone: the same file is always split in the same way, whatever
    the order of its rows, and rows of one text stay together.

    Raises:
        PromptsError: there are too few different prompts to have both.
    """
    texts = sorted({plain(row.prompt) for row in prompts}, key=_hash)
    if len(texts) <= LEAST_HELD_OUT:
        raise PromptsError(
            f"{len(texts)} different prompts are too few to calibrate on some and judge by "
            f"{LEAST_HELD_OUT} others: give {LEAST_HELD_OUT + 1} at least, better 15, or a file of "
            "its own with --held-out"
        )
    kept_back = set(texts[: max(LEAST_HELD_OUT, round(HELD_OUT_SHARE * len(texts)))])
    return (
        [row for row in prompts if plain(row.prompt) not in kept_back],
        [row for row in prompts if plain(row.prompt) in kept_back],
    )


def check_apart(calibration: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    """Refuses to judge on what is calibrated on. Raises PromptsError."""
    known = {plain(row.prompt) for row in calibration}
    for row in held_out:
        if plain(row.prompt) in known:
            raise PromptsError(
                f"the prompt {row.prompt!r} is both in --prompts and in --held-out: judge by "
                "prompts that no calibration has seen"
            )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
