"""The state of a run in a loop without a pipeline: its timestep says which step it is.

The transformer's output is the velocity there, for each of the calls that a step makes. Calls are
told apart by their cache context and by the form of their inputs; each is made once a step.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from meancache.errors import ScheduleError
from meancache.hooks.history import History, Rule
from meancache.hooks.outputs import velocities_of, with_velocities
from meancache.hooks.runs import Replay
from meancache.hooks.timesteps import Timestep


class Branch:
    """One of the calls that every step makes, such as cond; computes and answers it.

    Attributes:
        run: the loop's.
        key: its cache context and its form.
        step: the step of its next call.
    """

    def __init__(self, run: LoopRun, key: Hashable) -> None:
        self.run = run
        self.rule = run.rule
        self.key = key
        # Velocities of computed steps that need not be computed again.
        self.known: dict[int, list[torch.Tensor]] | None = None
        if run.replay is not None:
            self.known = run.replay.velocities.setdefault(key, {})
        self.begin(0)

    def begin(self, step: int) -> None:
        """A new run, from `step` on."""
        self.step = step
        self.history = History(self.rule)
        replay = self.run.replay
        self.output: Any = None if replay is None else replay.outputs.get(self.key)

    def computes(self, form: Hashable) -> bool:
        """Whether the branch's step must run the transformer."""
        if self.output is None:
            return True
        if self.step in self.rule.computed:
            return self.known is None or self.step not in self.known
        return not self.history.knows(self.step)

    def begin_forward(self, form: Hashable) -> None:
        """Frees what the forward replaces, while it needs the memory itself."""
        self.history.let_go()
        self.output = None

    def keep(self, form: Hashable, output: Any) -> Any:
        """Notes what the transformer has returned, and gives the output of the call."""
        self.output = output
        step, velocities = self.step, velocities_of(output)
        if step in self.rule.computed:
            self.history.keep(step, velocities)
            if self.known is not None and self.run.replay is not None:
                self.known[step] = [one.detach().to(torch.float32, copy=True) for one in velocities]
                self.run.replay.outputs[self.key] = output
        if step in self.rule.computed and not self.rule.is_own(step) and self.history.knows(step):
            output = self._estimate()
        self._go_on()
        return output

    def answer(self, form: Hashable) -> Any:
        """The output of a call that is not computed: the estimate."""
        if self.step in self.rule.computed:
            assert self.known is not None
            self.history.velocities[self.step] = self.known[self.step]
        output = self._estimate()
        self._go_on()
        return output

    def end(self) -> None:
        """Frees all that the loop has kept."""
        self.run.branches.clear()

    def _estimate(self) -> Any:
        velocities = self.history.estimate(self.step, velocities_of(self.output))
        return with_velocities(self.output, velocities)

    def _go_on(self) -> None:
        self.step += 1
        self.history.forget_before(self.step)
        if self.step == self.rule.steps:
            del self.run.branches[self.key]


class LoopRun:
    """The runs of one thread, one after the other."""

    def __init__(self, rule: Rule, replay: Replay | None) -> None:
        self.rule = rule
        self.replay = replay
        self.branches: dict[Hashable, Branch] = {}

    def enter(self, key: Hashable, timestep: Timestep) -> Branch:
        """The branch that a call is of, at the step that its timestep says.

        Raises:
            ScheduleError: the timestep is not that of the branch's next step, nor of the first.
        """
        sigmas = self.rule.schedule.grid.sigmas
        branch = self.branches.get(key)
        if branch is None:
            branch = Branch(self, key)
            # It may begin later than others, such as guidance: in the step that these are at.
            steps = {n for one in self.branches.values() for n in (one.step - 1, one.step)}
            likely = [0, *sorted(steps - {-1, 0})]
            branch.step = min(likely, key=lambda step: timestep.distance(sigmas[step]))
            self.branches[key] = branch
        elif timestep.distance(sigmas[0]) < timestep.distance(sigmas[branch.step]):
            branch.begin(0)  # the last run was not finished
        if not timestep.is_at(sigmas[branch.step]):
            raise ScheduleError(
                f"the schedule is at step {branch.step} of {self.rule.schedule.grid}, but the "
                f"timestep is {timestep}: run on the schedule's grid from its first step, one call "
                "a step in each cache context"
            )
        return branch
