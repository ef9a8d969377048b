"""A gradient-refined non-stationary solver, written from arXiv:2403.01329.

The paper's solvers have a weight for every past velocity at every step and learn them by
gradient. Here the steps are those of a `fitted` schedule and so are the first weights; Adam then
goes down the error of the final latents, through the whole rollout.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from meancache.baselines.calibration_data import CalibrationData, Velocity
from meancache.schedule import Edge, Schedule

SOURCE = "written from arXiv:2403.01329"
ITERATIONS = 24
LEARNING_RATE = 2e-3


def refined_schedules(data: CalibrationData) -> list[Schedule]:
    """The `fitted` schedule of each budget, refined on the calibration runs."""
    return [
        refine(data.field, data.field.noise, data.reference[-1], data.schedules[budget])
        for budget in data.budgets
    ]


def refine(
    field: Velocity,
    noise: torch.Tensor,
    target: torch.Tensor,
    schedule: Schedule,
    iterations: int = ITERATIONS,
) -> Schedule:
    """The schedule with weights that end nearer to `target`, or as near at worst.

    Args:
        field: v(latents, sigma) of N calibration trajectories, differentiable.
        noise: (N, ...) where they start.
        target: (N, ...) where they should end.
        schedule: has weights; its steps are kept.

    Returns:
        A schedule with method 'refined', the best of all iterations, the start included.
    """
    # Every computed velocity so far, as in the paper, not only those that the start uses.
    steps = schedule.computed_steps
    weights = [
        torch.tensor([edge.weights.get(step, 0.0) for step in steps[: index + 1]])
        for index, edge in enumerate(schedule.edges)
        if edge.weights is not None
    ]
    for row in weights:
        row.requires_grad_()
    adam = torch.optim.Adam(weights, lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    best, lowest = [row.detach().clone() for row in weights], float("inf")
    for iteration in range(iterations + 1):
        with torch.set_grad_enabled(iteration < iterations):
            loss = rollout_error(field, noise, target, schedule, weights)
        if loss.item() < lowest:
            best, lowest = [row.detach().clone() for row in weights], loss.item()
        if iteration < iterations:
            adam.zero_grad()
            loss.backward()
            adam.step()
            decay.step()
    return replace(
        schedule,
        method="refined",
        edges=tuple(
            Edge(edge.start, edge.stop, weights=dict(zip(steps, row.tolist(), strict=False)))
            for edge, row in zip(schedule.edges, best, strict=True)
        ),
        gamma=None,
        predicted_cost=None,
        calibration={"source": SOURCE, "trajectories": len(noise)},
    )


def rollout_error(
    field: Velocity,
    noise: torch.Tensor,
    target: torch.Tensor,
    schedule: Schedule,
    weights: list[torch.Tensor],
) -> torch.Tensor:
    """The mean over trajectories of the log of the mean squared error of the final latents.

    The logarithm makes it the negative of a mean PSNR, up to scale, so that no single bad
    trajectory decides.

    Args:
        weights: for the edge of index i, (i + 1,) weights of the velocities computed so far.
    """
    sigmas = schedule.grid.sigmas
    latents, velocities = noise, []
    for edge, row in zip(schedule.edges, weights, strict=True):
        velocities.append(field(latents, sigmas[edge.start]))
        estimate = sum(weight * velocity for weight, velocity in zip(row, velocities, strict=True))
        latents = latents + (sigmas[edge.stop] - sigmas[edge.start]) * estimate
    return (latents - target).square().flatten(1).mean(dim=1).log().mean()
