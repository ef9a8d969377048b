"""Records the velocities of a full (reference) run: what its sampler integrates.

That is what the pipeline's scheduler is given at every step: the transformer's output after
guidance in two forwards, its renormalisation and the sign that a pipeline may give it. So a
recorded run is z_{k+1} = z_k + h_k v_k exactly, whatever a pipeline does around its transformer.
In a loop without a pipeline it is the transformer's output itself. Nothing else is kept: every
statistic of `calibration` follows from velocities alone, and differencing bf16 latents instead
would cost 2-15% in the estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline

from meancache.hooks.attach import attach, detach
from meancache.hooks.callers import caller_of
from meancache.hooks.outputs import velocity_of
from meancache.hooks.pipelines import transformers_of
from meancache.hooks.schedulers import check_scheduler, listen, unlisten

HOOK_NAME = "mean_cache_record"


@dataclass
class Trajectory:
    """The velocities of a run in the order of its steps, float32, on their own device.

    Attributes:
        outputs: one tensor a step, in the shape of the sampler's latents: (B, ...), B the samples
            of the batch.
    """

    outputs: list[torch.Tensor] = field(default_factory=list)

    def velocities(self, num_inference_steps: int, sample: int | None = None) -> torch.Tensor:
        """The reference velocities V = [v_0, ..., v_{T-1}].

        Args:
            num_inference_steps: T, the steps the run was asked for.
            sample: which of the batch's samples, each a trajectory of its own; None takes all of
                them together, as one trajectory of B times as many elements.

        Returns:
            (T, D) float32, D the number of elements of one latent, or of all B.

        Raises:
            ValueError: see `check_calls`.
        """
        self.check_calls(num_inference_steps)
        chosen = self.outputs if sample is None else [output[sample] for output in self.outputs]
        return torch.stack([output.flatten() for output in chosen])

    def check_calls(self, num_inference_steps: int) -> None:
        """Refuses a recording that has not one velocity a step.

        Raises:
            ValueError: another number of them, as of two runs, of one that was interrupted, or of
                a loop without a pipeline that calls its transformer twice a step.
        """
        if len(self.outputs) != num_inference_steps:
            raise ValueError(
                f"{len(self.outputs)} velocities were recorded in {num_inference_steps} steps; a "
                "reference trajectory is one whole run with one velocity a step"
            )


@contextmanager
def record_trajectory(transformer: torch.nn.Module | DiffusionPipeline) -> Iterator[Trajectory]:
    """Records the velocity of every step of runs through `transformer` while the context is open.

    >>> with record_trajectory(pipe.transformer) as trajectory:
    ...     pipe(prompt, num_inference_steps=50)
    >>> velocities = trajectory.velocities(50)

    The run itself is not changed, and nothing is left afterwards, also after an exception.

    Args:
        transformer: a pipeline's denoiser, the first of several (Wan 2.2) being enough, or the
            pipeline.

    Raises:
        ScheduleError: in the run, where its scheduler does not integrate a velocity by Euler steps.
    """
    trajectory = Trajectory()

    def keep(velocity: torch.Tensor) -> None:
        # A copy even where the dtype is float32 already: schedulers may work in place.
        trajectory.outputs.append(velocity.to(torch.float32, copy=True))

    with watch_velocities(transformer, keep):
        yield trajectory


@contextmanager
def watch_velocities(
    transformer: torch.nn.Module | DiffusionPipeline, see: Callable[[torch.Tensor], None]
) -> Iterator[None]:
    """Shows `see` every velocity that the sampler is about to integrate, while open.

    Args:
        transformer: as `record_trajectory` takes it.
        see: gets (B, ...) in the pipeline's dtype, to be copied if it is kept.
    """
    watch = _Watch(see)
    modules = transformers_of(transformer)
    for module in modules:
        attach(module, watch, HOOK_NAME)
    try:
        yield
    finally:
        for module in modules:
            detach(module, HOOK_NAME)
        watch.end()


class _Watch:
    """Finds the scheduler that the transformer's output goes to, and watches its steps."""

    def __init__(self, see: Callable[[torch.Tensor], None]) -> None:
        self.see = see
        self.schedulers: list[Any] = []

    @torch.compiler.disable(recursive=False)
    def __call__(
        self, module: torch.nn.Module, compute: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        alone = self._enter(module)
        output = compute(*args, **kwargs)
        if alone:
            self.see(velocity_of(output).detach())
        return output

    @torch.compiler.disable
    def _enter(self, module: torch.nn.Module) -> bool:
        """Whether a loop without a pipeline calls; else its scheduler is watched from now on."""
        caller = caller_of(module)
        if caller is None:
            return True
        if not any(one is caller.scheduler for one in self.schedulers):
            check_scheduler(caller.scheduler)
            listen(caller.scheduler, self)
            self.schedulers.append(caller.scheduler)
        return False

    def before_step(self, scheduler: Any, velocity: torch.Tensor) -> torch.Tensor:
        self.see(velocity.detach())
        return velocity

    def after_step(self, scheduler: Any) -> None:
        pass

    def end(self) -> None:
        for scheduler in self.schedulers:
            unlisten(scheduler, self)
