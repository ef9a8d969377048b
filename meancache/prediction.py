"""How close a schedule's runs will come to the full run, as far as a calibration can tell.

A calibration holds the products of a reference run's velocities, so it knows by how much a schedule
misses each of its jumps there. It does not know how such errors grow on the way, nor what a decoder
makes of them: the figures between that and decibels of pixels were measured on the embedded model,
and on another model they rank schedules rather than promise anything.
"""

from __future__ import annotations

import numpy as np

from meancache.schedule import Schedule
from meancache.velocity import velocities_in_use

# PSNR in pixels, in terms of the signal-to-error ratio in dB. On `tiny`, over 20 grids, budgets and
# methods between 18 and 60 dB: standard deviation 2.5 dB, at most 5.5 (docs/calibration.md).
SLOPE = 1.5
# What carrying to another size, length or guidance cost at most in the mean, in dB.
CARRYING = 2.0


def signal_to_error(schedule: Schedule, gram: np.ndarray) -> float:
    """RMS of the whole path from noise to sample over that of what the jumps miss, in dB.

    The errors of the jumps are added up as if they were independent.

    Args:
        schedule: on the grid of `gram`.
        gram: (T, T) float64, the mean of V V^T / D.

    Returns:
        inf where the schedule computes every step.
    """
    lengths = np.diff(schedule.grid.array())
    missed = lengths[:, None] * (velocities_in_use(schedule) - np.eye(len(lengths)))
    jumps = np.add.reduceat(missed, [edge.start for edge in schedule.edges], axis=0)
    error = float(((jumps @ gram) * jumps).sum())
    signal = float(lengths @ gram @ lengths)
    if error <= np.finfo(np.float64).eps * signal:
        return float("inf")
    return 10 * float(np.log10(signal / error))


def predicted_psnr(schedule: Schedule, gram: np.ndarray, beyond_grid: bool = False) -> float:
    """About how many dB its videos will have against the full run's; see the module's caveat.

    Args:
        schedule: on the grid of `gram`.
        gram: (T, T) float64, of the calibration on that grid.
        beyond_grid: whether the calibration was made under other conditions than the run's, which
            costs up to CARRYING.
    """
    lost = CARRYING if beyond_grid else 0.0
    return SLOPE * signal_to_error(schedule, gram) - lost
