"""The transformer as the velocity field v(latents, sigma) of a batch of calibration runs.

A run is stopped at its first call of the transformer; what it passed there is all that the field
needs. Loops over the field then read like the algorithms they come from.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from meancache.baselines.baseline import BaselineError
from meancache.grid import Grid
from meancache.hooks.outputs import velocity_of


class Field:
    """v(latents, sigma) for N calibration trajectories at once.

    Attributes:
        noise: (N, ...) float32, the latents that the runs start from.
        grid: the noise levels of the runs.
    """

    def __init__(self, pipeline: Any, runs: Sequence[Callable[..., Any]]) -> None:
        """Asks every run for its first call.

        Args:
            pipeline: the pipeline that `runs` render through.
            runs: each renders one calibration trajectory, from its own fixed noise.

        Raises:
            BaselineError: there are no runs, or they differ in shapes or noise levels.
        """
        if not runs:
            raise BaselineError("there are no calibration runs; give at least one")
        self._transformer = pipeline.transformer
        calls, grids = [], []
        for run in runs:
            calls.append(_first_call(pipeline.transformer, run))
            grids.append(Grid.from_scheduler(pipeline.scheduler))
        self.grid = grids[0]
        if any(grid != self.grid for grid in grids):
            raise BaselineError(
                "calibration runs are on different noise levels; give all of them the same "
                "num_inference_steps"
            )
        self._arguments = {
            name: _batched(name, [call[name] for call in calls]) for name in calls[0]
        }
        self.noise = self._arguments.pop("hidden_states").float()
        # The unit of timesteps: 1000 for most pipelines, 1 for some.
        self._timestep = self._arguments.pop("timestep") / self.grid.sigmas[0]

    def __call__(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        """The velocity at noise level `sigma`: (N, ...) to (N, ...), float32, differentiable."""
        output = self._transformer(
            hidden_states=latents.to(self._transformer.dtype),
            timestep=self._timestep * sigma,
            **self._arguments,
        )
        return velocity_of(output).float()

    def reference(self) -> torch.Tensor:
        """The full Euler runs: (T + 1, N, ...) float32 latents at every noise level."""
        states = [self.noise]
        with torch.no_grad():
            for sigma, following in itertools.pairwise(self.grid.sigmas):
                states.append(states[-1] + (following - sigma) * self(states[-1], sigma))
        return torch.stack(states)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While open, gradients go to latents and weights of a solver, not to the model's."""
        parameters = [p for p in self._transformer.parameters() if p.requires_grad]
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)


class _Reached(BaseException):
    """The first call of the transformer has been seen; the rest of the run is not needed."""


def _first_call(transformer: torch.nn.Module, run: Callable[..., Any]) -> dict[str, Any]:
    names = tuple(inspect.signature(transformer.forward).parameters)
    seen: dict[str, Any] = {}

    def stop(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(zip(names, args, strict=False), **kwargs)
        raise _Reached

    stopping = transformer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Reached:
        return seen
    finally:
        stopping.remove()
    raise BaselineError(
        "a calibration run ended without calling the pipeline's transformer; let runs render "
        "through the pipeline that is given"
    )


def _batched(name: str, values: list[Any]) -> Any:
    if not isinstance(values[0], torch.Tensor):
        return values[0]
    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) > 1:
        raise BaselineError(
            f"calibration runs pass `{name}` of different shapes, {sorted(shapes)}; give all of "
            "them the same sizes"
        )
    return torch.cat(values)
