"""Run state belongs to the run: nothing stays in memory after it, however it ends."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from meancache import Schedule, apply_mean_cache
from meancache.grid import Grid
from meancache.hooks.runs import PipelineRun
from meancache.hooks.schedulers import listeners
from tests.support.small_pipelines import STEPS, Small, build

EDGES = [
    {"start": 0, "stop": 2, "weights": {0: 1.0}},
    {"start": 2, "stop": 6, "weights": {0: -0.5, 2: 1.5}},
    {"start": 6, "stop": STEPS, "weights": {2: 0.5, 6: 0.5}},
]


class StoppedError(Exception):
    pass


def interrupted(small: Small) -> None:
    def stop(pipe, step, *_):
        pipe._interrupt = step >= 3
        return {}

    small.draw(callback_on_step_end=stop)


def callback_raises(small: Small, error: type[BaseException] = StoppedError) -> None:
    def fail(_, step, *__):
        if step == 3:
            raise error
        return {}

    with pytest.raises(error):
        small.draw(callback_on_step_end=fail)


def interrupted_by_hand(small: Small) -> None:
    callback_raises(small, KeyboardInterrupt)


def transformer_raises(small: Small) -> None:
    count = iter(range(STEPS))

    def fail(*_):
        if next(count) == 1:
            raise MemoryError

    handle = small.pipe.transformer.proj_out.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        small.draw()
    handle.remove()


def scheduler_raises(small: Small) -> None:
    step, count = small.pipe.scheduler.step, iter(range(STEPS))

    def fail(*args, **kwargs):
        if next(count) == 3:
            raise StoppedError
        return step(*args, **kwargs)

    small.pipe.scheduler.step = fail
    with pytest.raises(StoppedError):
        small.draw()
    del small.pipe.scheduler.step


def comes_to_its_end(small: Small) -> None:
    small.draw()


ENDS = [
    comes_to_its_end,
    interrupted,
    callback_raises,
    interrupted_by_hand,
    transformer_raises,
    scheduler_raises,
]


@pytest.fixture
def kept(monkeypatch):
    """Weak references to all velocities that runs have kept."""
    found: list[weakref.ref] = []
    before_step = PipelineRun.before_step

    def watched(self, scheduler, velocity):
        result = before_step(self, scheduler, velocity)
        for history in self.histories:
            found.extend(weakref.ref(one) for kept in history.velocities.values() for one in kept)
        found.extend(weakref.ref(output[0]) for output in self.outputs.values())
        return result

    monkeypatch.setattr(PipelineRun, "before_step", watched)
    return found


@pytest.mark.parametrize("alone", [False, True], ids=["pipeline", "transformer"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_nothing_stays_in_memory_and_the_next_run_is_right(end, alone, kept):
    small = build("FLUX.1")
    small.draw()
    schedule = Schedule.from_edges(Grid.from_scheduler(small.pipe.scheduler).sigmas, EDGES)
    apply_mean_cache(small.pipe.transformer if alone else small.pipe, schedule)
    clean = small.draw()
    kept.clear()
    end(small)
    gc.collect()
    assert kept
    assert not [one for one in kept if one() is not None]
    assert not listeners(small.pipe.scheduler)
    assert torch.equal(small.draw(), clean)


def test_an_interrupted_run_does_not_make_the_next_begin_in_its_middle():
    small = build("FLUX.1")
    small.draw()
    schedule = Schedule.from_edges(Grid.from_scheduler(small.pipe.scheduler).sigmas, EDGES)
    hook = apply_mean_cache(small.pipe, schedule)
    clean = small.draw()
    for seed in range(3):
        interrupted(small)
        before = hook.forwards
        small.draw(seed)
        assert hook.forwards - before == len(EDGES)
    assert torch.equal(small.draw(), clean)
