"""What audits say: a fall is reported, and a schedule that is worse than it was promoted with."""

from datetime import UTC, datetime, timedelta

import numpy as np

from cluster.results.audit import Audit
from jobs.refresh.audits import trends

FIRST = "a" * 64
SECOND = "b" * 64


def rows(schedule_id: str, psnr, day: int = 1) -> list[Audit]:
    begin = datetime(2026, 1, day, tzinfo=UTC)
    return [
        Audit(f"{n:032x}", schedule_id, begin + timedelta(minutes=n), float(value), 0.9)
        for n, value in enumerate(psnr)
    ]


def noise(mean: float, count: int = 40) -> np.ndarray:
    """Scores with exactly this mean."""
    scores = np.random.default_rng(7).normal(0.0, 1.0, count)
    return mean + scores - scores.mean()


def test_a_fall_is_reported_in_whatever_order_the_roots_are_read():
    audits = [*rows(FIRST, noise(36.0), day=20), *rows(FIRST, noise(40.0), day=2)]
    (trend,) = trends(audits, {})
    (warning,) = trend.warnings
    assert warning.startswith("falling: 36.0")
    assert "falling" in str(trend)
    assert trend.count == 80


def test_a_steady_audit_and_a_rising_one_are_as_they_were():
    for later in (40.0, 44.0):
        audits = [*rows(FIRST, noise(40.0)), *rows(FIRST, noise(later), day=20)]
        (trend,) = trends(audits, {})
        assert trend.warnings == []
        assert str(trend).endswith("as it was")


def test_another_schedule_that_is_worse_is_no_fall():
    audits = [*rows(FIRST, noise(40.0)), *rows(SECOND, noise(30.0), day=20)]
    assert [trend.schedule_id for trend in trends(audits, {})] == [FIRST, SECOND]
    assert all(trend.warnings == [] for trend in trends(audits, {}))


def test_production_is_held_to_what_a_schedule_was_promoted_with():
    (trend,) = trends(rows(FIRST, noise(36.0)), {FIRST: (40.0, 0.5)})
    (warning,) = trend.warnings
    assert warning.startswith("below what it was promoted with: 36.0")
    (trend,) = trends(rows(FIRST, noise(36.0)), {FIRST: (36.4, 0.5)})
    assert trend.warnings == []


def test_a_few_rows_say_nothing():
    (trend,) = trends(rows(FIRST, [50.0, 20.0, 10.0]), {FIRST: (40.0, 0.5)})
    assert trend.warnings == []
