"""The state of a pipeline's run: where it is, and which velocities it still needs.

The velocity of a step is what the scheduler is given. On a skipped step the transformer's calls
are answered with its newest outputs, for their form alone, and the estimate takes the place of what
the pipeline makes of them. So guidance, its renormalisation, a change of sign, a prediction of the
clean sample and all else between transformer and scheduler are in the velocities already.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from meancache.errors import ScheduleError
from meancache.hooks.history import History, Rule
from meancache.hooks.outputs import Form, of_samples, velocities_of
from meancache.hooks.schedulers import listen, listeners, unlisten


@dataclass
class Replay:
    """Velocities of computed steps that need not be computed again, and those that were.

    Attributes:
        velocities: by scheduler or call, and by step.
        outputs: of the transformer, one for each form or call that it was called in.
    """

    velocities: dict[Hashable, dict[int, list[torch.Tensor]]] = field(default_factory=dict)
    outputs: dict[Any, Any] = field(default_factory=dict)

    def copy(self) -> Replay:
        """Another one of the same velocities, to go on from."""
        return Replay(
            {key: dict(known) for key, known in self.velocities.items()}, dict(self.outputs)
        )


class PipelineRun:
    """A run whose steps a scheduler takes.

    Attributes:
        hook: whose run it is.
        scheduler: the pipeline's.
        sigmas: the very tensor of noise levels that it made for this run.
        rule: the schedule.
        offset: the step of the scheduler at which the schedule begins.
        replay: velocities that are known before, by the number of the scheduler.
    """

    def __init__(
        self,
        hook: Any,
        scheduler: Any,
        others: list[Any],
        rule: Rule,
        offset: int,
        replay: Replay | None,
    ) -> None:
        self.hook = hook
        self.scheduler = scheduler
        self.sigmas = scheduler.sigmas
        self.rule = rule
        self.offset = offset
        self.replay = replay
        self.schedulers = [scheduler, *others]
        self.histories = [History(rule) for _ in self.schedulers]
        self.outputs: dict[Form, Any] = {} if replay is None else replay.outputs
        self.step = -1  # of the schedule
        self.skipped = False  # whether the step answered a call without computing
        self.waiting: set[int] = set()  # schedulers that have not taken the step yet
        for scheduler in self.schedulers:
            listen(scheduler, self, first=True)

    @classmethod
    def on(cls, scheduler: Any, hook: Any) -> PipelineRun | None:
        """The hook's run on the scheduler's noise levels; one on earlier levels is ended."""
        for one in listeners(scheduler):
            if isinstance(one, cls) and one.hook is hook:
                if one.goes_on():
                    return one
                one.end()
        return None

    def goes_on(self) -> bool:
        """Whether the scheduler still runs on the noise levels of this run."""
        return self.scheduler.sigmas is self.sigmas

    def enter(self, step: int) -> None:
        """A call of the transformer in the scheduler's step `step`.

        Raises:
            ScheduleError: the scheduler has not taken the last step, or has no such step.
        """
        step -= self.offset
        if not 0 <= step < self.rule.steps:
            raise ScheduleError(
                f"the scheduler is at step {step + self.offset} of {len(self.sigmas) - 1}, which "
                "the schedule does not have: call the scheduler's set_timesteps before each run"
            )
        if step == self.step:
            return
        if 0 in self.waiting:
            raise ScheduleError(
                f"a call for step {step + self.offset} came before the scheduler took step "
                f"{self.step + self.offset}: a schedule stands in for what scheduler.step is "
                "given, so a pipeline that integrates by itself cannot follow one"
            )
        self.step, self.skipped = step, False
        for history in self.histories:
            history.forget_before(step)

    def computes(self, form: Form) -> bool:
        """Whether the step's call of this form must run the transformer."""
        self.waiting = set(range(len(self.schedulers)))
        if not self._computed(self.step) and all(one.knows(self.step) for one in self.histories):
            return self._answer(form) is None
        return not self._replayed() or self._answer(form) is None

    def begin_forward(self, form: Form) -> None:
        """Frees what the forward replaces, while it needs the memory itself."""
        for history in self.histories:
            history.let_go()
        if self.replay is None:
            self.outputs.pop(form, None)

    def keep(self, form: Form, output: Any) -> Any:
        """Notes what the transformer has returned."""
        self.outputs[form] = output
        return output

    def answer(self, form: Form) -> Any:
        """An output of the form that the call is due; what it holds will be replaced."""
        self.skipped = True
        return self._answer(form)

    def before_step(self, scheduler: Any, velocity: torch.Tensor) -> torch.Tensor:
        """What the scheduler integrates: the velocity itself, or the estimate."""
        number = self._number(scheduler)
        if number not in self.waiting or not self.goes_on():  # the hook saw no call of this step
            return velocity
        history = self.histories[number]
        if self._computed(self.step):
            known = self._known(number, velocity)
            history.keep(self.step, [known])
            if self.rule.is_own(self.step) or not history.knows(self.step):
                return known.to(velocity.dtype) if self.skipped else velocity
        elif not self.skipped:
            return velocity
        used = self.rule.weights[self.step]
        if any(history.velocities[n][0].shape != velocity.shape for n in used):
            raise ScheduleError(
                f"the velocity of step {self.step + self.offset} has the shape "
                f"{tuple(velocity.shape)}, but earlier ones of the run had another: such a "
                "pipeline cannot follow a schedule; call remove_mean_cache"
            )
        return history.estimate(self.step, [velocity])[0]

    def after_step(self, scheduler: Any) -> None:
        """The scheduler has taken its step; the last one ends the run.

        Raises:
            ScheduleError: it took another step than the transformer was called for.
        """
        number = self._number(scheduler)
        if number not in self.waiting or not self.goes_on():
            return
        self.waiting.discard(number)
        taken = scheduler.step_index - 1 - self.offset
        if taken != self.step:
            raise ScheduleError(
                f"the transformer was called for step {self.step + self.offset}, but the "
                f"scheduler took step {taken + self.offset}: give the scheduler the timestep that "
                "the transformer got, or set its begin_index"
            )
        if self.step + 1 == self.rule.steps and not self.waiting:
            self.end()

    def end(self) -> None:
        """Frees all that the run has kept."""
        for scheduler in self.schedulers:
            unlisten(scheduler, self)
        self.histories = [History(self.rule) for _ in self.schedulers]
        self.outputs, self.step, self.waiting = {}, -1, set()

    def _number(self, scheduler: Any) -> int:
        return next(n for n, one in enumerate(self.schedulers) if one is scheduler)

    def _computed(self, step: int) -> bool:
        return step in self.rule.computed

    def _replayed(self) -> bool:
        """Whether the step's velocities are all known before."""
        return self.replay is not None and all(
            self.step in self.replay.velocities.get(number, {})
            for number in range(len(self.schedulers))
        )

    def _known(self, number: int, velocity: torch.Tensor) -> torch.Tensor:
        """The computed step's velocity: known before, or the one that was given."""
        if self.replay is None:
            return velocity
        steps = self.replay.velocities.setdefault(number, {})
        if self.step not in steps:
            steps[self.step] = [velocity.detach().to(torch.float32, copy=True)]
        return steps[self.step][0]

    def _answer(self, form: Form) -> Any:
        """The newest output of this form; or one that has the very shape of the velocity; or one
        for another number of samples, as before guidance in the same call has ended or begun."""
        if form in self.outputs:
            return self.outputs[form]
        shapes = [v[0].shape for one in self.histories[:1] for v in one.velocities.values()]
        for output in reversed(self.outputs.values()):
            if velocities_of(output)[0].shape in shapes:
                return output
        for other, output in reversed(self.outputs.items()):
            if form.samples and other.samples and form.samples != other.samples:
                return of_samples(output, other.samples, form.samples)
        return None
