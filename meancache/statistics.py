"""What one reference trajectory says of every jump: two small tables in the place of gigabytes.

One streamed pass, where the trajectory lies, gives the Gram matrix of its velocities, from which
the squared cost of every linear estimator follows, and the paper's L1 cost of every edge (t, s, K)
(eq. 13). Knows nothing of files, and needs torch only to measure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from meancache.errors import CalibrationError
from meancache.grid import Grid
from meancache.json_values import shown
from meancache.schedule import MAX_SPAN
from meancache.velocity import average_velocities, estimated_velocities

if TYPE_CHECKING:
    import torch

# Bytes of residuals held at a time while streaming over a trajectory's elements.
SLICE_BYTES = 24 * 2**20


@lru_cache(maxsize=4)
def edge_list(steps: int) -> tuple[tuple[int, int, int], ...]:
    """All edges (start, stop, span) of the multigraph over `steps` steps, in a fixed order.

    Span 1 (hold the velocity) is possible everywhere; a longer one needs that much history.
    """
    return tuple(
        (start, stop, span)
        for span in range(1, MAX_SPAN + 1)
        for start in range(0 if span == 1 else span, steps)
        for stop in range(start + 1, steps + 1)
    )


def edge_count(steps: int) -> int:
    """E, the length of `edge_list`, without making it."""
    return sum(
        left * (left + 1) // 2
        for left in (max(0, steps - (0 if span == 1 else span)) for span in range(1, MAX_SPAN + 1))
    )


@dataclass(frozen=True)
class Statistics:
    """What one reference trajectory says of every jump; under 200 KB for 50 steps.

    Attributes:
        prompt_id: whose trajectory it is; with `seed` its key.
        prompt: the text, from which the trajectory can be run again (`fitting`).
        seed: of the initial noise.
        elements: D, the elements of one velocity.
        gram: (N, N) float64, V V^T / D of the velocities V, N >= T: those of the T steps, and of
            levels below them that were recorded to carry them further (`carrying`).
        l1: (E,) float64, mean absolute error of u_hat over the elements (eq. 13), per edge of the
            T steps in the order of `edge_list`; empty where the trajectory was carried to another
            grid, as means of absolute values do not follow from products.

    Raises:
        CalibrationError: a table has the wrong shape, or holds a number that no trajectory gives.
    """

    prompt_id: str
    prompt: str
    seed: int
    elements: int
    gram: np.ndarray
    l1: np.ndarray

    def __post_init__(self) -> None:
        whose = f"{shown(self.prompt_id)}, seed {self.seed}"
        levels = len(self.gram)
        edges = {(edge_count(steps),) for steps in range(levels + 1)}
        if self.gram.shape != (levels, levels) or self.l1.shape not in edges:
            raise CalibrationError(
                f"the statistics of {whose}, have shapes {self.gram.shape} and {self.l1.shape}, "
                "which do not belong together"
            )
        # Squares of what is summed must stay finite too.
        bound = np.sqrt(np.finfo(np.float64).max)
        if not ((np.abs(self.gram) < bound).all() and (np.abs(self.l1) < bound).all()):
            raise CalibrationError(
                f"the trajectory of {whose}, is not finite: its run diverged, so it says nothing "
                "about stability"
            )
        if self.elements < 1 or (self.l1 < 0).any() or (self.gram.diagonal() < 0).any():
            raise CalibrationError(
                f"the statistics of {whose}, hold a negative mean of squares or sizes, or no "
                "elements: they are of no trajectory"
            )

    @property
    def key(self) -> tuple[str, int]:
        """(prompt_id, seed): two statistics with one key are the same trajectory."""
        return (self.prompt_id, self.seed)

    def carried(self, weights: np.ndarray) -> Statistics:
        """The same trajectory at other noise levels (`carrying.carrying_weights`).

        Args:
            weights: P (T', N) float64: row k times the velocities is the velocity at level k.

        Returns:
            Its Gram matrix is P G P^T, positive semidefinite as G is; its L1 costs are gone.
        """
        gram = weights @ self.gram @ weights.T
        return replace(self, gram=(gram + gram.T) / 2, l1=np.empty(0))


@lru_cache(maxsize=4)
def paper_residuals(grid: Grid) -> np.ndarray:
    """R (E, T) float64: row e times the velocities is u(t, s) - u_hat(t, s, K) of the edge e."""
    sigmas = grid.array()
    averages = [average_velocities(sigmas, start) for start in range(grid.num_inference_steps)]
    return np.concatenate(
        [
            averages[start] - estimated_velocities(sigmas, start, span)
            for span in range(1, MAX_SPAN + 1)
            for start in range(0 if span == 1 else span, grid.num_inference_steps)
        ]
    )


def trajectory_statistics(
    velocities: torch.Tensor,
    grid: Grid,
    prompt_id: str,
    seed: int,
    prompt: str = "",
    below: int = 0,
) -> Statistics:
    """The statistics of one reference trajectory, in one pass over its elements.

    Every residual u(t, s) - u_hat(t, s, K) is a fixed combination of the velocities, so all of
    them are rows of R V with R (E, T) from the grid alone; they are formed slice by slice and
    never stored whole.

    Args:
        velocities: (T + `below`, D) float32 on any device, from `Trajectory.velocities`.
        grid: the noise levels of the run.
        prompt_id: whose trajectory it is.
        seed: of its initial noise.
        prompt: its text, where it is to be run again.
        below: levels that were recorded below those of the grid.

    Raises:
        CalibrationError: `velocities` has another number of rows, or is not finite.
    """
    import torch  # which calibrations are read, merged, carried and solved without

    steps, (levels, elements) = grid.num_inference_steps, velocities.shape
    if levels != steps + below:
        raise CalibrationError(f"{levels} velocities do not fit a grid of {grid} and {below} below")
    device = velocities.device
    residual = torch.from_numpy(paper_residuals(grid)).to(device, torch.float32)
    velocities = velocities.detach()
    gram = torch.zeros(levels, levels, dtype=torch.float64, device=device)
    l1 = torch.zeros(len(residual), dtype=torch.float64, device=device)
    for part in velocities.split(max(1, SLICE_BYTES // (4 * len(residual))), dim=1):
        wide = part.to(torch.float64)
        gram += wide @ wide.T
        # Short enough to be added up in float32, and to stay in a CPU's cache.
        l1 += torch.linalg.vector_norm(residual @ part[:steps], 1, dim=1)
    return Statistics(
        prompt_id=prompt_id,
        prompt=prompt,
        seed=seed,
        elements=elements,
        gram=(gram / elements).cpu().numpy(),
        l1=(l1 / elements).cpu().numpy(),
    )
