"""What a baseline is: another acceleration method at one of its settings, ready to be compared.

A baseline travels to worker processes, so it holds no pipeline: it is given one when it is
applied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

Application = Callable[[Any], AbstractContextManager[dict[str, Any]]]
"""Opens a baseline on a pipeline; yields overrides of the pipeline's call arguments."""


class BaselineError(ValueError):
    """A baseline cannot be applied or calibrated; the message says why, and what to do instead."""


@dataclass(frozen=True)
class Baseline:
    """One method at one setting of its knob. Pickles.

    >>> for baseline in sweep():
    ...     with baseline.applied(pipe) as overrides:
    ...         video = pipe(prompt, **{**arguments, **overrides}).frames

    Attributes:
        method: the name under which its settings make one curve: 'taylorseer'.
        setting: the knob in words: 'cache_interval 4'.
        source: whose code runs: 'diffusers 0.42.1', or 'written from arXiv:2411.19108'.
        application: opens it on a pipeline; a module-level function, or a partial of one.
    """

    method: str
    setting: str
    source: str
    application: Application = field(repr=False, compare=False)

    def applied(self, pipeline: Any) -> AbstractContextManager[dict[str, Any]]:
        """Runs `pipeline` under this baseline while the context is open.

        Args:
            pipeline: a diffusers flow-matching pipeline with a `transformer` and a `scheduler`.

        Returns:
            A context that yields overrides of the pipeline's call arguments, such as
            {'num_inference_steps': 10}. Afterwards, also after an exception, the pipeline is as
            it was.

        Raises:
            BaselineError: on opening, where this pipeline is not one that the baseline can run on.
        """
        return self.application(pipeline)


@contextmanager
def hushed(logger: str) -> Iterator[None]:
    """Drops what a library logs below ERROR: a job applies and removes hundreds of baselines."""
    log = logging.getLogger(logger)
    # Some libraries hang one handler on all their loggers instead of letting records rise.
    emitters: list[logging.Logger | logging.Handler] = [log, *log.handlers]
    before = [emitter.level for emitter in emitters]
    for emitter in emitters:
        emitter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for emitter, level in zip(emitters, before, strict=True):
            emitter.setLevel(level)
