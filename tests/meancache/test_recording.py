"""A run that goes on below its last level, in the real pipeline."""

import torch

from meancache.carrying import levels_below
from meancache.grid import Grid
from meancache.recording import with_levels_below
from meancache.trajectory import record_trajectory


def test_the_run_is_the_same_as_far_as_it_goes_and_then_goes_on(pipe, draw):
    with record_trajectory(pipe) as plain:
        draw()
    grid = Grid.from_scheduler(pipe.scheduler)
    below = levels_below(grid)
    with with_levels_below(pipe.scheduler, below), record_trajectory(pipe) as deeper:
        draw()
    reached = Grid.from_scheduler(pipe.scheduler)
    assert reached.matches([*grid.sigmas[:-1], *below, 0.0])
    assert "set_timesteps" not in vars(pipe.scheduler)
    torch.testing.assert_close(deeper.velocities(15)[:12], plain.velocities(12))
    draw()
    assert Grid.from_scheduler(pipe.scheduler) == grid
