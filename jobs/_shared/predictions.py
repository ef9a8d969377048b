"""The fidelity that schedules had on their calibration runs: said, and chosen by."""

from __future__ import annotations

from collections.abc import Sequence

from meancache.errors import SolverError
from meancache.schedule import Schedule


def smallest_budget(
    schedules: Sequence[Schedule], target_psnr: float, fix: str = "add larger --budgets"
) -> Schedule:
    """The cheapest schedule whose fidelity on calibration runs reaches the target.

    Args:
        schedules: fitted ones; those without a known fidelity are passed over.
        target_psnr: dB, mean over videos.
        fix: what to do where none reaches it.

    Raises:
        SolverError: none reaches it; names the one that comes closest.
    """
    known = [(one.predicted_psnr, one) for one in schedules if one.predicted_psnr is not None]
    reaching = [one for predicted, one in known if predicted >= target_psnr]
    if not reaching:
        closest = "none has a known fidelity"
        if known:
            most, best = max(known, key=lambda pair: pair[0])
            closest = f"{best.budget} forwards come closest, at {most:.1f} dB"
        raise SolverError(f"no budget here reaches {target_psnr:g} dB: {closest}; {fix}")
    return min(reaching, key=lambda schedule: schedule.budget)


def prediction(schedule: Schedule) -> str:
    """', 53.2 ± 0.9 dB on 10 calibration runs', or nothing where that is not known."""
    if schedule.predicted_psnr is None:
        return ""
    error = schedule.calibration.get("psnr_standard_error")
    spread = "" if error is None else f" ± {error:.1f}"
    count = schedule.calibration.get("fitted_on", 1)
    return f", {schedule.predicted_psnr:.1f}{spread} dB on {runs(count)}"


def runs(count: int) -> str:
    """'1 calibration run', '10 calibration runs'."""
    return f"{count} calibration run{'' if count == 1 else 's'}"
