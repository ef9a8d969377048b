"""Two ideas for the worst videos, beyond a search of the steps, measured on `tiny`.

    python -m meancache.tiny.training.worst_videos --shift 15 --output worst-15.json

    soft worst case    runs that end far off count for more when the weights are fitted
    one more forward   about half of the videos get one: those whose velocity, at some step, is
                       furthest from what the two before it foretold

Both start from the path of `fitted` and are judged on held-out pairs, by paired differences. One
more forward is compared with the same given by chance to as many, to those that end worst (which
no run can know beforehand), and to all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from meancache.baselines.calibration_data import roll_out
from meancache.schedule import Schedule
from meancache.solver import Steps
from meancache.tiny.training import batch
from meancache.tiny.training.batch import Batch
from meancache.tiny.training.table import Setting, made_by, parser_of
from meancache.tiny.training.tail import (
    CALIBRATION_SEED,
    TRAJECTORIES,
    change,
    chosen,
    gains,
    prepared,
)

# Powers of its RMS error by which a run counts, and how often weights are fitted anew with that.
POWERS = (1.0, 2.0)
PASSES = 4
# Ways to give a forward to some of the videos by chance.
DRAWS = 200


@dataclass(frozen=True)
class Rule:
    """When a video gets one more forward.

    Attributes:
        at: where a run looks: the place of a step in its path.
        above: by how much its velocity was unforeseen there, at least.
        longer: its path then, the same up to there.
    """

    at: int
    above: float
    longer: Steps


def main() -> None:
    """The command line."""
    given = parser_of("worst_videos", (8, 10, 12)).parse_args()
    torch.set_num_threads(1)
    setting = Setting(given.steps, given.shift, given.budgets, given.pairs, 0)
    about = {**made_by("worst_videos"), **vars(setting), "trajectories": TRAJECTORIES}
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for row in measured(setting):
            rows.append(row)
            given.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
            print(f"{row['forwards']:5.2f} forwards, {row['idea']}: {change(row)}", flush=True)


def measured(setting: Setting) -> Iterator[dict[str, Any]]:
    """A row an idea and budget; the first of each budget is `fitted` as it is."""
    pipeline, held_out, full, runs = prepared(setting, CALIBRATION_SEED)

    def scores(schedule: Schedule) -> np.ndarray:
        ends = roll_out(held_out.field, held_out.reference[0], schedule)
        return np.array(batch.psnrs(pipeline, ends, full))

    for budget in setting.budgets:
        steps, _ = chosen(runs, budget)
        usual = fitted(runs, steps)
        before = scores(usual)
        yield {"idea": "fitted", "forwards": budget, **gains(before, before)}
        for power in POWERS:
            after = scores(soft_worst_case(runs, steps, power))
            idea = f"soft worst case, power {power:g}"
            yield {"idea": idea, "forwards": budget, **gains(after, before)}
        rule = best_rule(runs, usual)
        more = scores(fitted(runs, rule.longer))
        asked = unforeseen(held_out, usual)[rule.at] >= rule.above
        step, count = steps[rule.at], int(asked.sum())
        worst = np.isin(np.arange(len(before)), np.argsort(before)[:count])
        random = np.random.default_rng(0)
        by_chance = [np.where(random.permutation(asked), more, before) for _ in range(DRAWS)]
        found = [gains(draw, before) for draw in by_chance]
        # The middle of all draws by what it does to the worst tenth.
        typical = sorted(found, key=lambda one: one["tail_gained"])[DRAWS // 2]
        forwards = budget + count / len(before)
        for whom, gained in (
            (f"by the velocity at step {step}", gains(np.where(asked, more, before), before)),
            ("by chance", typical),
            ("to those that end worst", gains(np.where(worst, more, before), before)),
        ):
            yield {"idea": f"one more forward {whom}", "forwards": forwards, **gained}
        yield {"idea": "one more forward to all", "forwards": budget + 1, **gains(more, before)}


def fitted(runs: Batch, steps: Steps, counts: torch.Tensor | None = None) -> Schedule:
    """The schedule of these steps, with weights fitted on the runs."""
    edges, _ = batch.fit(runs, steps, counts)
    return Schedule(runs.field.grid, tuple(edges), method="fitted", budget=len(steps))


def soft_worst_case(runs: Batch, steps: Steps, power: float) -> Schedule:
    """Weights for which runs count by a power of the error that they ended with before."""
    counts = torch.ones(len(runs))
    for _ in range(PASSES):
        _, ends = batch.fit(runs, steps, counts)
        counts = torch.tensor(batch.errors(runs, ends)).sqrt() ** power
    return fitted(runs, steps, counts)


def unforeseen(runs: Batch, schedule: Schedule) -> np.ndarray:
    """How far each computed velocity is from the line through the two before it, of its length.

    Returns:
        (B, N); zero for the first two steps.
    """
    seen: list[torch.Tensor] = []

    def field(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(runs.field(latents, sigma))
        return seen[-1]

    roll_out(field, runs.reference[0], schedule)
    sigmas, steps = schedule.grid.array(), schedule.computed_steps
    found = np.zeros((len(steps), len(runs)))
    for place in range(2, len(steps)):
        first, second, now = (sigmas[step] for step in steps[place - 2 : place + 1])
        slope = float((now - second) / (second - first))
        foretold = seen[place - 1] + slope * (seen[place - 1] - seen[place - 2])
        missed = (seen[place] - foretold).flatten(1).norm(dim=1)
        found[place] = (missed / seen[place].flatten(1).norm(dim=1)).cpu().numpy()
    return found


def best_rule(runs: Batch, usual: Schedule) -> Rule:
    """The rule for half of the calibration runs that leaves the smallest mean RMS error."""
    signs, steps = unforeseen(runs, usual), usual.computed_steps
    without = errors(runs, usual)
    best, least = None, np.inf
    for place, (t, s) in enumerate(pairwise((*steps, len(runs.reference) - 1))):
        if s - t < 2:
            continue
        longer = (*steps[: place + 1], (t + s) // 2, *steps[place + 1 :])
        more = errors(runs, fitted(runs, longer))
        for at in range(2, place + 1):
            above = float(np.median(signs[at]))
            mean = float(np.where(signs[at] >= above, more, without).mean())
            if mean < least:
                best, least = Rule(at, above, longer), mean
    assert best is not None, "no jump after the third computed step has room for a step"
    return best


def errors(runs: Batch, schedule: Schedule) -> np.ndarray:
    """(N,) RMS errors of the final latents."""
    ends = roll_out(runs.field, runs.reference[0], schedule)
    return np.sqrt(batch.errors(runs, ends))


if __name__ == "__main__":
    main()
