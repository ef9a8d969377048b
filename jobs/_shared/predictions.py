"""The fidelity that schedules had, or are expected to have: said, and chosen by."""

from __future__ import annotations

from collections.abc import Sequence

from meancache.errors import SolverError
from meancache.schedule import Schedule


def smallest_budget(
    schedules: Sequence[Schedule], target_psnr: float, fix: str = "add larger --budgets"
) -> Schedule:
    """The cheapest schedule whose mean fidelity is predicted to reach the target.

    Where it was predicted by calibration runs, the lower end of the interval counts, so that new
    prompts' videos fall short in one of twenty such choices.

    Args:
        schedules: those without a known fidelity are passed over.
        target_psnr: dB, mean over videos.
        fix: what to do where none reaches it.

    Raises:
        SolverError: none reaches it; names the one that comes closest.
    """
    expected = [(_expected(one), one) for one in schedules]
    known = [(psnr, one) for psnr, one in expected if psnr is not None]
    reaching = [one for psnr, one in known if psnr >= target_psnr]
    if not reaching:
        closest = "none has a known fidelity"
        if known:
            most, best = max(known, key=lambda pair: pair[0])
            closest = f"{best.budget} forwards come closest, at {most:.1f} dB"
        raise SolverError(f"no budget here reaches {target_psnr:g} dB: {closest}; {fix}")
    return min(reaching, key=lambda schedule: schedule.budget)


def prediction(schedule: Schedule) -> str:
    """', 53.2 dB (51.6 to 54.8) by 10 calibration runs', or nothing where that is not known."""
    if schedule.predicted_psnr is None:
        estimated = schedule.estimated_psnr
        return "" if estimated is None else f", about {estimated:.0f} dB by its calibration"
    interval = schedule.predicted_interval
    spread = "" if interval is None else f" ({interval[0]:.1f} to {interval[1]:.1f})"
    known = schedule.calibration
    count = known.get("predicted_on", known.get("fitted_on", 1))
    return f", {schedule.predicted_psnr:.1f} dB{spread} by {runs(count)}"


def _expected(schedule: Schedule) -> float | None:
    """The lower end of what runs left out of its fit predict, else what is known at all."""
    if schedule.predicted_interval is not None:
        return schedule.predicted_interval[0]
    known = schedule.predicted_psnr
    return schedule.estimated_psnr if known is None else known


def runs(count: int) -> str:
    """'1 calibration run', '10 calibration runs'."""
    return f"{count} calibration run{'' if count == 1 else 's'}"
