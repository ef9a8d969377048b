"""The captions the embedded model understands, and which of them it was trained on.

A caption is four facts in words: shape, colour, direction, background. All 144 combinations exist;
a quarter is held out so that a right answer on them means that the words were understood.

    python -m meancache.tiny.captions held-out > held-out.txt
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")
DIRECTIONS = ("left", "right", "up", "down")
BACKGROUNDS = ("dark", "light")

_PATTERN = re.compile(r"a (\w+) (\w+) moving (\w+) on a (\w+) background")


@dataclass(frozen=True)
class Caption:
    """What one video shows.

    Raises ValueError, naming the word and the known ones, where a fact is not one of
    SHAPES, COLOURS, DIRECTIONS, BACKGROUNDS.
    """

    shape: str
    colour: str
    direction: str
    background: str

    def __post_init__(self) -> None:
        for fact, word, known in (
            ("shape", self.shape, SHAPES),
            ("colour", self.colour, COLOURS),
            ("direction", self.direction, DIRECTIONS),
            ("background", self.background, BACKGROUNDS),
        ):
            if word not in known:
                raise ValueError(
                    f"unknown {fact} {word!r}: the tiny model knows {', '.join(known)}; "
                    "use one of them"
                )

    @property
    def text(self) -> str:
        """The prompt, for example "a red circle moving left on a dark background"."""
        thing = f"{self.colour} {self.shape}"
        return f"a {thing} moving {self.direction} on a {self.background} background"

    @classmethod
    def parse(cls, text: str) -> Caption:
        """The caption a prompt spells. Raises ValueError where sentence or word is unknown."""
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"not a caption of the tiny model: {text!r}; expected "
                '"a COLOUR SHAPE moving DIRECTION on a BACKGROUND background"'
            )
        colour, shape, direction, background = match.groups()
        return cls(shape, colour, direction, background)


def _residue(caption: Caption) -> int:
    """A class in 0..3 with exactly one direction of each (shape, colour, background) in it."""
    return (
        SHAPES.index(caption.shape)
        + COLOURS.index(caption.colour)
        + 2 * BACKGROUNDS.index(caption.background)
        + DIRECTIONS.index(caption.direction)
    ) % 4


def _mixed(captions: list[Caption]) -> tuple[Caption, ...]:
    """The same captions, reordered with a fixed stride so that every prefix is varied."""
    stride = 19
    return tuple(captions[stride * i % len(captions)] for i in range(len(captions)))


ALL: tuple[Caption, ...] = tuple(
    Caption(shape, colour, direction, background)
    for shape in SHAPES
    for colour in COLOURS
    for direction in DIRECTIONS
    for background in BACKGROUNDS
)
HELD_OUT = _mixed([caption for caption in ALL if _residue(caption) == 0])
CALIBRATION = _mixed([caption for caption in ALL if _residue(caption) == 1])
TRAIN: tuple[Caption, ...] = tuple(caption for caption in ALL if caption not in set(HELD_OUT))
SETS = {"calibration": CALIBRATION, "held-out": HELD_OUT, "train": TRAIN}


def main() -> None:
    """Prints one of the sets, a caption a line: a prompts file for the jobs."""
    parser = argparse.ArgumentParser(description="Prints captions of the embedded model.")
    parser.add_argument("set", choices=SETS, help="calibration and held-out share no caption")
    # In one piece, for whom reads on with `head`.
    print("\n".join(caption.text for caption in SETS[parser.parse_args().set]))


if __name__ == "__main__":
    main()
