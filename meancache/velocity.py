"""Average-velocity estimators: from velocities in the history to the velocity of a jump.

Every estimator here is linear in the velocities that the transformer returned, with
coefficients that follow from the sigma grid alone. So an estimator is a row of T numbers
over the steps, a schedule is a T x T matrix of such rows, and running it takes no more than
a weighted sum. Rows are float64 numpy arrays; no tensor is touched here.

Notation as in the paper: a jump goes from step t (`start`) to s (`stop`), r = t - K is where
its history begins (K = `span`), h_k = sigma_{k+1} - sigma_k < 0, v_k is the transformer's
output at step k.
"""

from __future__ import annotations

import numpy as np

from meancache.schedule import Edge, Schedule


def average_velocity(sigmas: np.ndarray, start: int, stop: int) -> np.ndarray:
    """u(t, s) = sum_{k=t}^{s-1} h_k v_k / (sigma_s - sigma_t), as a row over the steps.

    Exact on an Euler run: z_s = z_t + (sigma_s - sigma_t) u(t, s) (paper eq. 5).

    Args:
        sigmas: (T + 1,) float64 noise levels, the final 0 included.
        start: t.
        stop: s > t.

    Returns:
        (T,) float64; the coefficient of each v_k.
    """
    row = np.zeros(len(sigmas) - 1)
    steps = np.diff(sigmas[start : stop + 1])
    row[start:stop] = steps / (sigmas[stop] - sigmas[start])
    return row


def average_velocities(sigmas: np.ndarray, start: int) -> np.ndarray:
    """u(t, s) for every s > t: (T - t, T) float64, a row of `average_velocity` each."""
    steps = np.diff(sigmas)
    rows = np.tri(len(steps) - start, len(steps), start) * steps
    rows[:, :start] = 0.0
    return rows / (sigmas[start + 1 :] - sigmas[start])[:, None]


def estimated_velocity(sigmas: np.ndarray, start: int, stop: int, span: int) -> np.ndarray:
    """The paper's estimate of u(t, s) on a reference run, as a row over the steps.

    With r = t - K: JVP_K = (u(r, t) - v_r) / (sigma_t - sigma_r) and
    u_hat = v_t + (sigma_s - sigma_t) JVP_K (eq. 9-11 in velocity form); K = 1 gives v_t.

    Args:
        sigmas: (T + 1,) float64.
        start: t.
        stop: s > t.
        span: K >= 1; K > 1 needs K <= t.

    Returns:
        (T,) float64; the coefficient of each v_k.
    """
    return estimated_velocities(sigmas, start, span)[stop - start - 1]


def estimated_velocities(sigmas: np.ndarray, start: int, span: int) -> np.ndarray:
    """The paper's estimate for every s > t: (T - t, T) float64, as `estimated_velocity` has it."""
    rows = np.zeros((len(sigmas) - 1 - start, len(sigmas) - 1))
    rows[:, start] = 1.0
    if span == 1:
        return rows
    r = start - span
    jvp = average_velocity(sigmas, r, start)
    jvp[r] -= 1.0
    jvp /= sigmas[start] - sigmas[r]
    return rows + (sigmas[start + 1 :] - sigmas[start])[:, None] * jvp


def secant_velocity(sigmas: np.ndarray, previous: int, start: int, stop: int) -> np.ndarray:
    """The line through the last two computed velocities, averaged over the jump, as a row.

    u_hat = v_t + g (v_t - v_p), g = [sum_{k=t}^{s-1} h_k (sigma_k - sigma_t) / (sigma_s - sigma_t)]
    / (sigma_t - sigma_p): the line is averaged as the Euler run averages, over its fine steps, so a
    unit step takes v_t itself. No calibration of coefficients is needed.

    Args:
        sigmas: (T + 1,) float64.
        previous: p, the step computed before t; p = t where there is none, which holds v_t.
        start: t.
        stop: s > t.

    Returns:
        (T,) float64; the coefficient of each v_k, which add up to 1.
    """
    row = np.zeros(len(sigmas) - 1)
    row[start] = 1.0
    if previous < start:
        mean_sigma = average_velocity(sigmas, start, stop) @ sigmas[:-1]
        gain = (mean_sigma - sigmas[start]) / (sigmas[start] - sigmas[previous])
        row[start] += gain
        row[previous] -= gain
    return row


def velocities_in_use(schedule: Schedule) -> np.ndarray:
    """What every fine step of a scheduled run uses for its velocity, in computed velocities.

    Row k gives the velocity of step k as a combination of the outputs of computed steps at or
    before k; columns of skipped steps are 0. A run that follows it step by step ends where the
    schedule's jumps end, because the fine steps of an edge add up to the edge.

    Returns:
        (T, T) float64.
    """
    sigmas = schedule.grid.array()
    steps = schedule.num_inference_steps
    in_use = np.zeros((steps, steps))
    outputs = np.zeros((steps, steps))  # row k: v_k where computed, else the velocity in use
    for edge in schedule.edges:
        if edge.weights is not None:
            row = np.zeros(steps)
            row[list(edge.weights)] = list(edge.weights.values())
            in_use[edge.start : edge.stop] = row
        elif schedule.execution == "jump":
            _jump(sigmas, in_use, outputs, edge)
        else:
            _fine_step(sigmas, in_use, edge)
    return in_use


def _jump(sigmas: np.ndarray, in_use: np.ndarray, outputs: np.ndarray, edge: Edge) -> None:
    """Eq. 10 literally: one estimate, from the history as it was run, for the whole edge."""
    assert edge.span is not None
    t, s = edge.start, edge.stop
    outputs[t, t] = 1.0
    in_use[t:s] = _extrapolated(sigmas, in_use, outputs, t, s, edge.span)
    outputs[t + 1 : s] = in_use[t + 1 : s]


def _fine_step(sigmas: np.ndarray, in_use: np.ndarray, edge: Edge) -> None:
    """The authors' published scripts: advance with v_t, then extrapolate step by step.

    u_k = u_{k-1} + h_k (u(k-K, k) - u_{k-K}) / (sigma_k - sigma_{k-K}) over the velocities in use.
    """
    assert edge.span is not None
    in_use[edge.start, edge.start] = 1.0
    for k in range(edge.start + 1, edge.stop):
        r = k - edge.span
        past = average_velocity(sigmas, r, k) @ in_use
        slope = (past - in_use[r]) / (sigmas[k] - sigmas[r])
        in_use[k] = in_use[k - 1] + (sigmas[k + 1] - sigmas[k]) * slope


def _extrapolated(
    sigmas: np.ndarray, in_use: np.ndarray, outputs: np.ndarray, start: int, stop: int, span: int
) -> np.ndarray:
    """Eq. 9-11 over a history: `in_use` made the path, `outputs` is what the model said on it."""
    if span == 1:
        return outputs[start].copy()
    r = start - span
    past = average_velocity(sigmas, r, start) @ in_use
    jvp = (past - outputs[r]) / (sigmas[start] - sigmas[r])
    return outputs[start] + (sigmas[stop] - sigmas[start]) * jvp
