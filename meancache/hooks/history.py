"""A schedule as rows of weights, and the velocities of one run that they will still need."""

from __future__ import annotations

import numpy as np
import torch

from meancache.schedule import Schedule
from meancache.velocity import velocities_in_use


class Rule:
    """A schedule, ready to run.

    Attributes:
        schedule: it.
        computed: the steps that compute.
        weights: of each step, the computed steps whose velocities it uses, and their weights.
        last_use: of each computed step, the last step that uses its velocity.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.computed = frozenset(schedule.computed_steps)
        rows = velocities_in_use(schedule)
        self.weights = [{int(n): float(row[n]) for n in np.flatnonzero(row)} for row in rows]
        self.last_use = {n: k for k, weights in enumerate(self.weights) for n in weights}

    @property
    def steps(self) -> int:
        return len(self.weights)

    def is_own(self, step: int) -> bool:
        """Whether the step uses its own velocity as it is."""
        return self.weights[step] == {step: 1.0}


class History:
    """The velocities of computed steps, in float32, as far as later steps use them.

    Attributes:
        velocities: of a step, a tensor for each prediction.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.velocities: dict[int, list[torch.Tensor]] = {}
        # The weights of the newest estimate, and what they came to.
        self._estimate: tuple[dict[int, float], list[torch.Tensor]] | None = None

    def knows(self, step: int) -> bool:
        """Whether all velocities of other steps are there that the step uses."""
        return all(n in self.velocities for n in self.rule.weights[step] if n != step)

    @torch.compiler.disable
    def keep(self, step: int, velocities: list[torch.Tensor]) -> None:
        """Notes a computed step's velocities, as far as they will be needed.

        A copy, as a scheduler may write into what it is given.
        """
        if self.rule.last_use.get(step, -1) > step or not self.rule.is_own(step):
            self.velocities[step] = [one.to(torch.float32, copy=True) for one in velocities]

    @torch.compiler.disable
    def estimate(self, step: int, like: list[torch.Tensor]) -> list[torch.Tensor]:
        """The sum of weights x velocities that the step uses, in the dtypes of `like`."""
        weights = self.rule.weights[step]
        if self._estimate is None or self._estimate[0] != weights:
            self._estimate = weights, self._sum(weights, like)
        return [one.clone() for one in self._estimate[1]]

    def let_go(self) -> None:
        """Frees the newest estimate, while a forward needs the memory."""
        self._estimate = None

    def forget_before(self, step: int) -> None:
        """Frees what no step from `step` on uses."""
        used = self.rule.last_use
        self.velocities = {n: v for n, v in self.velocities.items() if used.get(n, -1) >= step}

    def _sum(self, weights: dict[int, float], like: list[torch.Tensor]) -> list[torch.Tensor]:
        sums = []
        for index, one in enumerate(like):
            total = torch.zeros_like(one, dtype=torch.float32)
            for step, weight in weights.items():
                total.add_(self.velocities[step][index], alpha=weight)
            sums.append(total.to(one.dtype))
        return sums
