"""A finer reference than the run of T steps: the flow itself, to well below the error of any run.

The same pipeline on a grid whose steps are cut in m (num_inference_steps = m T: the shift keeps
every m-th noise level), all steps computed, each with the second-order Adams-Bashforth velocity.
That is a schedule like any other, so it runs through the same hook.
"""

from __future__ import annotations

from meancache.errors import FittingError
from meancache.grid import Grid
from meancache.schedule import Edge, Schedule


def check_refines(grid: Grid, fine: Grid) -> None:
    """Refuses a fine grid that does not pass through every noise level of `grid`.

    Raises:
        FittingError: names both.
    """
    steps, finer = grid.num_inference_steps, fine.num_inference_steps
    if finer % steps or finer == steps or not grid.matches(fine.sigmas[:: finer // steps]):
        raise FittingError(
            f"reference steps {finer} must be a multiple of the {steps} steps of the schedule's "
            f"grid, such as {6 * steps}, and pass through its noise levels"
        )


def fine_schedule(grid: Grid) -> Schedule:
    """Every step of `grid` computed and taken with v_k + h_k / (2 h_{k-1}) (v_k - v_{k-1}).

    Args:
        grid: the fine grid of m T steps.

    Returns:
        A schedule with NFE = m T, second-order accurate in the step, at no more forwards.
    """
    edges = [Edge(0, 1, weights={0: 1.0})]
    for step in range(1, grid.num_inference_steps):
        before, here, after = grid.sigmas[step - 1 : step + 2]
        gain = (after - here) / (2 * (here - before))
        edges.append(Edge(step, step + 1, weights={step - 1: -gain, step: 1.0 + gain}))
    return Schedule(grid=grid, edges=tuple(edges), method="adams-bashforth", budget=len(edges))
