"""Records the velocities of a full (reference) run: what its sampler integrates.

That is what the pipeline's scheduler is given at every step: the transformer's output after
guidance in two forwards, its renormalisation and the sign that a pipeline may give it. So a
recorded run is z_{k+1} = z_k + h_k v_k exactly, whatever a pipeline does around its transformer.
In a loop without a pipeline it is the transformer's output itself. Nothing else is kept: every
statistic of `stability` follows from velocities alone, and differencing bf16 latents instead
would cost 2-15% in the estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import ModelHook

from meancache.hooks.attach import attach, detach
from meancache.hooks.outputs import velocity_of
from meancache.hooks.pipelines import calling_pipeline, check_scheduler, transformers_of

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
    watched: dict[int, _Watched] = {}
    modules = transformers_of(transformer)
    for module in modules:
        attach(module, _WatchHook(see, watched), HOOK_NAME)
    try:
        yield
    finally:
        for module in modules:
            detach(module, HOOK_NAME)
        for one in watched.values():
            one.release()


@dataclass(frozen=True)
class _Watched:
    """A scheduler whose steps are watched."""

    scheduler: Any
    found: Any  # another watcher's `step`, where one was there before

    def release(self) -> None:
        if self.found is None:
            del self.scheduler.step
        else:
            self.scheduler.step = self.found


class _WatchHook(ModelHook):
    """Finds the scheduler that the transformer's output goes to, and watches its steps."""

    def __init__(self, see: Callable[[torch.Tensor], None], watched: dict[int, _Watched]) -> None:
        super().__init__()
        self.see = see
        self.watched = watched

    def pre_forward(
        self, module: torch.nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        caller = calling_pipeline()
        self.alone = caller is None
        if caller is not None and id(caller.scheduler) not in self.watched:
            check_scheduler(caller.scheduler)
            self._watch(caller.scheduler)
        return args, kwargs

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        if self.alone:
            self.see(velocity_of(output).detach())
        return output

    def _watch(self, scheduler: Any) -> None:
        step = scheduler.step

        def seen(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.see(model_output.detach())
            return step(model_output, *args, **kwargs)

        self.watched[id(scheduler)] = _Watched(scheduler, vars(scheduler).get("step"))
        scheduler.step = seen
