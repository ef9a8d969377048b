"""The evaluation's figures, each a pure function from numbers to one inline SVG."""

from jobs.evaluate.figures.families import family
from jobs.evaluate.figures.fidelity import fidelity
from jobs.evaluate.figures.predictions import Promise, predictions
from jobs.evaluate.figures.steps import computed_steps
from jobs.evaluate.figures.tails import tails
from jobs.evaluate.figures.velocity import WINDOW, velocity_change

__all__ = [
    "WINDOW",
    "Promise",
    "computed_steps",
    "family",
    "fidelity",
    "predictions",
    "tails",
    "velocity_change",
]
