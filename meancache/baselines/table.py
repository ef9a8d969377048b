"""Which baselines there are: ready as they are, to be calibrated first, or not usable here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from meancache.baselines.baseline import Baseline, BaselineError
from meancache.baselines.budcache import budcache_schedules
from meancache.baselines.caches import caches, magcache
from meancache.baselines.calibration_data import CalibrationData
from meancache.baselines.dbcache import INSTALL, dbcaches, is_installed
from meancache.baselines.dpcache import dpcache_schedules
from meancache.baselines.freecache import freecache_schedules
from meancache.baselines.golden_path import forced_schedules
from meancache.baselines.hicache import hicache_schedules
from meancache.baselines.l2p import l2p_schedules
from meancache.baselines.optimal_stepsize import optimal_schedules
from meancache.baselines.refined import refined_schedules
from meancache.baselines.seacache import seacaches
from meancache.baselines.solvers import solvers
from meancache.baselines.spectrum import spectrum_schedules
from meancache.baselines.teacache import rescaled_teacaches, teacaches
from meancache.schedule import Schedule

ENTRY_POINTS = "meancache.baselines"
"""The entry point group of packages that add baselines of their own: each entry point names a
function from `CalibrationData` to a sequence of `Baseline`s and `Schedule`s."""

Method = Callable[[CalibrationData], Sequence[Baseline | Schedule]]


def _magcaches(data: CalibrationData) -> list[Baseline]:
    return magcache(data.pipeline, data.runs, data.grid.num_inference_steps)


def _teacaches(data: CalibrationData) -> list[Baseline]:
    return rescaled_teacaches(data.pipeline, data.runs)


HOOKS: tuple[Method, ...] = (_magcaches, _teacaches)
# From cheap to dear, so that a fault shows soon.
METHODS: tuple[Method, ...] = (
    *HOOKS,
    dpcache_schedules,
    l2p_schedules,
    spectrum_schedules,
    hicache_schedules,
    freecache_schedules,
    forced_schedules,
    optimal_schedules,
    budcache_schedules,
    refined_schedules,
)


def sweep() -> list[Baseline]:
    """Every baseline that needs no calibration, over its own knob, from much compute to little.

    Where a method has settings for it, they span about 10% to 50% of the transformer's compute.
    """
    return [*solvers(), *caches(), *seacaches(), *dbcaches(), *teacaches()]


def calibrated(
    pipeline: Any, runs: Sequence[Callable[..., Any]], schedules: Mapping[int, Schedule]
) -> list[Baseline | Schedule]:
    """The baselines that calibrate on runs of the very pipeline, other packages' included.

    Ten small trajectories and five budgets take some minutes on one core; most of it is the
    refinement by gradients.

    Args:
        pipeline: a diffusers flow-matching pipeline, without any cache or schedule on it.
        runs: run(**overrides) renders one calibration trajectory through `pipeline` from its own
            fixed noise, with output_type='latent'; one forward a step.
        schedules: {budget: the `fitted` schedule to refine}; their budgets are all baselines'.

    Returns:
        MagCache and the rescaled TeaCache as baselines over their knobs; each other method as a
        schedule for every budget.

    Raises:
        BaselineError: see `CalibrationData`; or another package's entry point fails.
    """
    data = CalibrationData(pipeline, runs, schedules)
    added = [(point, _load(point)) for point in entry_points(group=ENTRY_POINTS)]
    found: list[Baseline | Schedule] = []
    with data.field.frozen():
        for method in METHODS:
            found += method(data)
        for point, function in added:
            found += _offered(point, function, data)
    return found


def _load(point: EntryPoint) -> Method:
    try:
        function: Method = point.load()
        return function
    except Exception as error:
        raise BaselineError(
            f"the baseline {point.name!r} of the package "
            f"{point.dist.name if point.dist else point.value} cannot be imported ({error}): mend "
            "or uninstall it"
        ) from error


def _offered(
    point: EntryPoint,
    function: Method,
    data: CalibrationData,
) -> list[Baseline | Schedule]:
    """What another package's function makes of the data, if it is what can be compared."""
    try:
        offered = list(function(data))
    except Exception as error:
        raise BaselineError(
            f"the baseline {point.name!r} ({point.value}) failed on the calibration runs: {error}"
        ) from error
    for one in offered:
        if not isinstance(one, Baseline | Schedule):
            raise BaselineError(
                f"the baseline {point.name!r} ({point.value}) returned a {type(one).__name__}; "
                "return a sequence of Baseline and Schedule"
            )
        if isinstance(one, Schedule) and not one.grid.matches(data.grid.sigmas):
            raise BaselineError(
                f"the baseline {point.name!r} ({point.value}) returned a schedule for {one.grid}, "
                f"but the calibration runs are on {data.grid}: use `data.schedule`"
            )
    return offered


def unusable() -> list[tuple[str, str]]:
    """(method, reason) for the baselines that cannot run here; the tests try each of them."""
    if is_installed():
        return []
    return [
        (method, f"cache-dit is not installed: {INSTALL}")
        for method in ("dbcache", "dbcache-taylorseer")
    ]
