"""Estimators against closed forms, and schedules against loops written from the formulas."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meancache import Schedule
from meancache.velocity import (
    average_velocity,
    estimated_velocity,
    secant_velocity,
    velocities_in_use,
)

STEPS = 12
UNIFORM = np.linspace(1.0, 0.0, STEPS + 1)
SHIFTED = 7 * UNIFORM / (1 + 6 * UNIFORM)


def random_schedules(execution: str | None = None) -> st.SearchStrategy[Schedule]:
    """Any path from 0 to STEPS, with any spans that its history allows."""

    @st.composite
    def build(draw):
        inner = draw(st.sets(st.integers(1, STEPS - 1)))
        nodes = [0, *sorted(inner), STEPS]
        edges = [
            {"start": t, "stop": s, "span": draw(st.integers(1, max(1, min(5, t))))}
            for t, s in itertools.pairwise(nodes)
        ]
        rule = execution or draw(st.sampled_from(["jump", "fine-step"]))
        return Schedule.from_edges(SHIFTED.tolist(), edges, rule)

    return build()


def field(latents: np.ndarray, sigma: float) -> np.ndarray:
    """A velocity that bends with both the state and the noise level."""
    return np.tanh(latents) + np.cos(7 * sigma)


def run(schedule: Schedule, latents: np.ndarray) -> np.ndarray:
    """The run that `velocities_in_use` stands for: Euler with weighted sums of outputs."""
    sigmas, rows = schedule.grid.array(), velocities_in_use(schedule)
    outputs = np.zeros((schedule.num_inference_steps, len(latents)))
    for k in range(schedule.num_inference_steps):
        if k in schedule.computed_steps:
            outputs[k] = field(latents, sigmas[k])
        latents = latents + (sigmas[k + 1] - sigmas[k]) * (rows[k] @ outputs)
    return latents


def test_the_average_velocity_leads_an_euler_run_from_t_to_s():
    rng = np.random.default_rng(0)
    velocities = rng.normal(size=(STEPS, 5))
    latents = [rng.normal(size=5)]
    for k in range(STEPS):
        latents.append(latents[-1] + (SHIFTED[k + 1] - SHIFTED[k]) * velocities[k])
    for t in range(STEPS):
        for s in range(t + 1, STEPS + 1):
            u = average_velocity(SHIFTED, t, s) @ velocities
            np.testing.assert_allclose(latents[s], latents[t] + (SHIFTED[s] - SHIFTED[t]) * u)


@pytest.mark.parametrize("span", [1, 2, 3, 4, 5])
def test_for_a_field_linear_in_sigma_the_estimate_is_its_closed_form(span):
    a, b = 0.7, -1.3
    velocities = a + b * UNIFORM[:-1]
    h = -1 / STEPS
    for t in range(span, STEPS):
        for s in range(t + 1, STEPS + 1):
            # On a uniform grid u(r, t) = v_r + b h (K - 1) / 2, so JVP_K = b (K - 1) / (2 K).
            closed = velocities[t] + (s - t) * h * b * (span - 1) / (2 * span)
            np.testing.assert_allclose(estimated_velocity(UNIFORM, t, s, span) @ velocities, closed)


def test_for_a_field_linear_in_sigma_a_jump_as_long_as_its_history_is_exact():
    velocities = 0.7 - 1.3 * UNIFORM[:-1]
    for span in range(2, 6):
        for t in range(span, STEPS - span + 1):
            estimate = estimated_velocity(UNIFORM, t, t + span, span) @ velocities
            np.testing.assert_allclose(
                estimate, average_velocity(UNIFORM, t, t + span) @ velocities
            )


@given(random_schedules())
def test_a_constant_field_is_integrated_exactly_by_every_schedule(schedule):
    rows = velocities_in_use(schedule)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=1e-9)


@given(random_schedules())
def test_only_computed_steps_at_or_before_are_used(schedule):
    rows = velocities_in_use(schedule)
    skipped = sorted(set(range(STEPS)) - set(schedule.computed_steps))
    assert not rows[:, skipped].any()
    assert not np.triu(rows, k=1).any()


@given(random_schedules("jump"))
def test_jump_is_equation_10_on_the_latents(schedule):
    sigmas = schedule.grid.array()
    start = np.array([0.3, -1.0, 2.0])
    latents = {0: start}
    outputs: dict[int, np.ndarray] = {}
    for edge in schedule.edges:
        t, s, span = edge.start, edge.stop, edge.span
        outputs[t] = field(latents[t], sigmas[t])
        estimate = outputs[t]
        if span > 1:
            r = t - span
            average = (latents[t] - latents[r]) / (sigmas[t] - sigmas[r])
            jvp = (average - outputs[r]) / (sigmas[t] - sigmas[r])
            estimate = outputs[t] + (sigmas[s] - sigmas[t]) * jvp
        for k in range(t + 1, s + 1):
            latents[k] = latents[t] + (sigmas[k] - sigmas[t]) * estimate
            outputs[k] = estimate  # what a skipped step has instead of an output
    np.testing.assert_allclose(run(schedule, start), latents[STEPS], atol=1e-9)


@given(random_schedules("fine-step"))
def test_fine_step_is_the_published_rule_on_the_latents(schedule):
    sigmas = schedule.grid.array()
    start = np.array([0.3, -1.0, 2.0])
    latents, used = {0: start}, {}
    for edge in schedule.edges:
        for k in range(edge.start, edge.stop):
            if k == edge.start:
                used[k] = field(latents[k], sigmas[k])
            else:
                r = k - edge.span
                average = (latents[k] - latents[r]) / (sigmas[k] - sigmas[r])
                slope = (average - used[r]) / (sigmas[k] - sigmas[r])
                used[k] = used[k - 1] + (sigmas[k + 1] - sigmas[k]) * slope
            latents[k + 1] = latents[k] + (sigmas[k + 1] - sigmas[k]) * used[k]
    np.testing.assert_allclose(run(schedule, start), latents[STEPS], atol=1e-9)


def test_weights_are_used_as_they_stand_on_every_step_of_their_edge():
    edges = [
        {"start": 0, "stop": 4, "weights": {0: 1.0}},
        {"start": 4, "stop": STEPS, "weights": {0: -0.25, 4: 1.25}},
    ]
    rows = velocities_in_use(Schedule.from_edges(SHIFTED.tolist(), edges))
    assert (rows[:4, 0] == 1.0).all()
    assert (rows[4:, [0, 4]] == [-0.25, 1.25]).all()


def test_computing_every_step_uses_every_output_as_it_is():
    edges = [{"start": k, "stop": k + 1, "span": 1} for k in range(STEPS)]
    for rule in ("jump", "fine-step"):
        schedule = Schedule.from_edges(SHIFTED.tolist(), edges, rule)
        assert (velocities_in_use(schedule) == np.eye(STEPS)).all()


@given(previous=st.integers(0, 8), start=st.integers(1, 9), stop=st.integers(2, STEPS))
def test_the_secant_is_exact_where_velocities_lie_on_a_line_in_sigma(previous, start, stop):
    if not previous < start < stop:
        return
    velocities = 3.0 - 2.0 * SHIFTED[:-1]
    row = secant_velocity(SHIFTED, previous, start, stop)
    assert row @ velocities == pytest.approx(average_velocity(SHIFTED, start, stop) @ velocities)
    assert row.sum() == pytest.approx(1.0)
    assert set(np.flatnonzero(row)) <= {previous, start}


def test_a_secant_without_history_or_over_a_unit_step_holds_the_velocity():
    assert secant_velocity(SHIFTED, 4, 4, 9).tolist() == np.eye(STEPS)[4].tolist()
    assert np.allclose(secant_velocity(SHIFTED, 2, 4, 5), np.eye(STEPS)[4])
