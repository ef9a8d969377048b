"""Carries velocities from the noise levels of a calibration to those of any other run.

Along a reference run the velocity is a smooth function of the noise level, and nearly the same
function whatever steps or shift the run is drawn with. So a spline through a calibration's levels
gives the velocities V' = P V at others, and the Gram matrix there is P G P^T: no model is run.

Between the levels lies a cubic spline with not-a-knot ends, in the time tau of the schedulers'
shift, sigma = S tau / (1 + (S - 1) tau), where a calibration's levels are even. Below its lowest
level, and above its highest, a calibration knows nothing, so those are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from meancache.errors import CalibrationError
from meancache.grid import SIGMA_TOLERANCE, Grid
from meancache.json_values import shown

# Levels below the last one of a run that a calibration records, each at half the time of the one
# before. On `tiny` 50 steps and three levels carried further than 100 steps, and as well, for 6%
# more forwards instead of 100% (docs/calibration.md).
LEVELS_BELOW = 3


def levels_below(grid: Grid, count: int = LEVELS_BELOW) -> tuple[float, ...]:
    """Noise levels below the last of a run, for it to be recorded at too.

    A run of more steps, or of a smaller shift, ends at lower levels than this one, and beyond its
    own levels a calibration knows nothing.

    Args:
        grid: of the run, T >= 2 steps.
        count: how many; with the grid's shift S they reach those of 2^count T steps.

    Returns:
        Their sigmas, falling.
    """
    shift, highest = time_shift(grid), grid.sigmas[0]
    (last,) = _time(np.array([grid.sigmas[-2] / highest]), shift)
    times = (last / 2**number for number in range(1, count + 1))
    return tuple(float(highest * shift * tau / (1 + (shift - 1) * tau)) for tau in times)


def carrying_weights(known: Grid, wanted: Grid) -> np.ndarray:
    """P, from the velocities at the levels of `known` to those at the levels of `wanted`.

    Args:
        known: the noise levels of a calibration, T >= 2 steps.
        wanted: those of another run, T' steps.

    Returns:
        (T', T) float64; each row adds up to 1. The final 0 of a grid has no velocity.

    Raises:
        CalibrationError: a level of `wanted` lies outside those of `known`.
    """
    from scipy.interpolate import CubicSpline  # half a second, which --help does without

    check_range(known, wanted)
    levels, asked = known.array()[:-1], wanted.array()[:-1]
    asked = np.clip(asked, levels[-1], levels[0])
    shift = time_shift(known)
    knots, times = (_time(sigmas / levels[0], shift) for sigmas in (levels, asked))
    spline = CubicSpline(knots[::-1], np.eye(len(knots))[::-1], bc_type="not-a-knot")
    weights: np.ndarray = spline(times)
    return weights


def check_range(known: Grid, wanted: Grid) -> None:
    """Refuses a grid with levels that a calibration on `known` says nothing about.

    Raises:
        CalibrationError: names the level, the range and a calibration that would reach it.
    """
    highest, lowest = known.sigmas[0], known.sigmas[-2]
    first, last = wanted.sigmas[0], wanted.sigmas[-2]
    if known.num_inference_steps < 2:
        raise CalibrationError(
            "the calibration has a single noise level, and nothing lies between; calibrate with "
            "more steps to carry it to another grid"
        )
    if first > highest + SIGMA_TOLERANCE:
        raise CalibrationError(
            f"the run begins at noise level {first:.4g}, above the calibration's highest, "
            f"{highest:.4g}: calibrate on a grid that begins there"
        )
    if last < lowest - SIGMA_TOLERANCE:
        raise CalibrationError(
            f"the run's last noise level {last:.4g} lies below the calibration's lowest, "
            f"{lowest:.4g}, where nothing is known of its velocities: calibrate with "
            f"{steps_that_reach(known, last)} steps or more (at the same shift), with more levels "
            "below the last step, or on this grid"
        )


def steps_that_reach(known: Grid, sigma: float) -> int:
    """The fewest steps with the shift of `known` whose last level is `sigma` or below."""
    (time,) = _time(np.array([sigma / known.sigmas[0]]), time_shift(known))
    return math.ceil(round(1 / time, 6))


def time_shift(grid: Grid) -> float:
    """S of a grid's levels, by which their times are as even as they can be; 1 for two steps.

    Read from the levels, as a scheduler that shifts by the size does not say by how much: with even
    times tau_k = 1 - k / T it is S = (1 / tau_k - 1) / (1 / sigma_k - 1) at every level between.
    """
    sigmas, steps = grid.array(), grid.num_inference_steps
    between = np.arange(1, steps)
    times = 1 - between / steps
    return float(np.median((1 / times - 1) / (sigmas[0] / sigmas[between] - 1)))


def _time(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """tau of noise levels in [0, 1]."""
    times: np.ndarray = sigmas / (shift - (shift - 1) * sigmas)
    return times


def carried_conditions(
    known: Mapping[str, Any], wanted: Mapping[str, Any], strict: bool = False
) -> dict[str, dict[str, Any]]:
    """In what a run differs from the conditions of a calibration; an open one differs in nothing.

    Args:
        known: the calibration's.
        wanted: the run's, as far as they are known.
        strict: refuse a difference.

    Returns:
        name -> {"from": the calibration's, "to": the run's}.

    Raises:
        CalibrationError: strict, and they differ; names the first.
    """
    differences = {
        name: {"from": known[name], "to": value}
        for name, value in wanted.items()
        if name != "negative_prompt"  # what it says makes no other schedule
        and value is not None
        and known.get(name) is not None
        and known[name] != value
    }
    for name, both in differences.items() if strict else ():
        raise CalibrationError(
            f"the calibration was made for {name} {shown(both['from'])}, the run has {name} "
            f"{shown(both['to'])}, and strict allows carrying to another grid alone: calibrate "
            "under the run's conditions, or leave strict out"
        )
    return differences


def check_model(known: Mapping[str, Any], wanted: Mapping[str, Any], any_revision: bool) -> None:
    """Refuses another model than a calibration's; what either leaves open is not compared.

    Args:
        known: the calibration's {id, revision, pipeline}.
        wanted: the run's.
        any_revision: take another revision of the same model.

    Raises:
        CalibrationError: names what differs.
    """
    for name in ("pipeline", "id", "revision"):
        here, there = wanted.get(name), known.get(name)
        if here is None or there is None or here == there:
            continue
        if name != "revision":
            raise CalibrationError(
                f"the calibration is of {name} {shown(there)}, and the run is of {shown(here)}: "
                "a calibration serves the model that it was made on alone"
            )
        if not any_revision:
            raise CalibrationError(
                f"the calibration is of revision {shown(there)}, and the run is of "
                f"{shown(here)}: calibrate this revision, or allow any (--any-revision)"
            )
