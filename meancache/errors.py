"""What can be wrong with an input of the method: an error for each kind, all of them InputErrors.

A message names the value, the rule and the fix.
"""

from __future__ import annotations


class InputError(ValueError):
    """An input breaks a rule. Commands print the message and exit with code 2."""


class ScheduleError(InputError):
    """A schedule, or its use on a pipeline, breaks a rule."""


class CalibrationError(InputError):
    """A file is not a calibration, or calibrations do not belong together."""


class SolverError(InputError):
    """Costs, a budget or gamma break a rule, or no path exists."""


class FittingError(InputError):
    """A fit cannot be made as asked."""
