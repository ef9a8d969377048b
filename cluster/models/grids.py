"""The noise levels of a run, from a scheduler's configuration alone.

diffusers' FlowMatchEulerDiscreteScheduler computes the same, and takes seconds to import; a driver
only needs the numbers. All arithmetic is in the dtype that diffusers uses, so the levels are equal
to the last bit of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from meancache.grid import Grid
from meancache.json_values import shown

EULER = "FlowMatchEulerDiscreteScheduler"
KARRAS_RHO = 7.0
BETA = 0.6


def euler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The Euler scheduler's configuration for a checkpoint's scheduler.

    A checkpoint may have another sampler of the same flow, as Wan's have: then it is the Euler
    scheduler of that sampler's shift, because a schedule's jumps add up only there.

    Raises:
        ValueError: the scheduler does not sample a flow.
    """
    name = config.get("_class_name", EULER)
    if name == EULER:
        return dict(config)
    if config.get("prediction_type") == "flow_prediction" and "flow_shift" in config:
        trained = config.get("num_train_timesteps", 1000)
        return {"shift": config["flow_shift"], "num_train_timesteps": trained}
    raise ValueError(f"its scheduler {shown(name)} does not follow a flow")


Mu = Callable[[Mapping[str, Any], int, int], float]
"""(scheduler's configuration, tokens, steps) -> how far a call shifts the levels."""
Spacing = Callable[[int, int], np.ndarray]
"""(steps, timesteps of the training) -> the levels that a call gives its scheduler, falling."""


def even(steps: int, trained: int) -> np.ndarray:
    """Levels in equal steps from 1."""
    return np.linspace(1.0, 0.0, steps + 1)[:-1]


def whole_timesteps(steps: int, trained: int) -> np.ndarray:
    """CogView4's: from 1 to that of timestep 1, each rounded down to a whole timestep."""
    timesteps: np.ndarray = np.linspace(trained, 1.0, steps).astype(np.int64).astype(np.float32)
    return timesteps / trained


def linear_quadratic(steps: int, trained: int) -> np.ndarray:
    """Mochi's: half of the steps fall from 1 by 0.025 together, the others quadratically to 0."""
    if steps < 2:
        raise ValueError("it falls in a line at first, and then faster")
    fallen, linear = 0.025, steps // 2
    rest = steps - linear
    left = linear - fallen * steps
    quadratic = left / (linear * rest**2)
    slope = fallen / linear - 2 * left / rest**2
    k = np.arange(steps, dtype=np.float64)
    curve = quadratic * k**2 + slope * k + quadratic * linear**2
    return 1.0 - np.where(k < linear, k * fallen / linear, curve)


def euler_grid(
    config: Mapping[str, Any],
    steps: int,
    spacing: Spacing | None,
    tokens: int | None,
    mu: Mu | None = None,
) -> Grid:
    """The grid that the Euler scheduler of this configuration runs.

    Args:
        config: of the scheduler.
        steps: T.
        spacing: the levels that the pipeline's call gives; None where the scheduler spaces its own,
            from the largest to the smallest that it was trained on.
        tokens: of the output, where the pipeline's call shifts the levels with their number.
        mu: how far, where the call takes no line through two points of the configuration.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: the configuration cannot be used, or the
            levels do not fall strictly to 0.
    """
    dynamic = config.get("use_dynamic_shifting", False)
    if dynamic and tokens is None:
        raise ValueError("use_dynamic_shifting without a shift from the number of tokens")
    shift = float(config.get("shift", 1.0))
    trained = config.get("num_train_timesteps", 1000)
    if spacing is not None:
        sigmas = spacing(steps, trained).astype(np.float32)
    else:
        ends = np.array([trained, 1], np.float32) / np.float32(trained)
        first, last = (float(end) for end in (ends if dynamic else _shifted(ends, shift)))
        sigmas = np.linspace(first * trained, last * trained, steps) / trained
    if dynamic:
        assert tokens is not None
        by = dynamic_shift(config, tokens) if mu is None else mu(config, tokens, steps)
        sigmas = _shifted_by_size(sigmas, config, by)
    else:
        sigmas = _shifted(sigmas, shift)
    if config.get("shift_terminal"):
        left = 1 - sigmas
        sigmas = 1 - left / (left[-1] / (1 - config["shift_terminal"]))
    levels = _respaced(sigmas, config).astype(np.float32)
    if config.get("invert_sigmas"):
        # It counts them from the other end, and with them the rounding (`Grid.from_scheduler`).
        levels = np.float32(1) - (np.float32(1) - levels)
    return Grid((*map(float, levels), 0.0), scheduler=EULER, shift=shift)


def dynamic_shift(config: Mapping[str, Any], tokens: int) -> float:
    """mu of a scheduler with use_dynamic_shifting: a line through the two points of its
    configuration, as in diffusers' calculate_shift."""
    tokens_0, tokens_1 = config["base_image_seq_len"], config["max_image_seq_len"]
    mu_0, mu_1 = config["base_shift"], config["max_shift"]
    return float(mu_0 + (mu_1 - mu_0) * (tokens - tokens_0) / (tokens_1 - tokens_0))


def _shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    with np.errstate(all="ignore"):  # the grid refuses what is not finite
        shifted: np.ndarray = shift * sigmas / (1 + (shift - 1) * sigmas)
    return shifted


def _shifted_by_size(sigmas: np.ndarray, config: Mapping[str, Any], mu: float) -> np.ndarray:
    kind = config.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise ValueError(f"time_shift_type {shown(kind)} is neither exponential nor linear")
    scale = math.exp(mu) if kind == "exponential" else mu
    shifted: np.ndarray = scale / (scale + (1 / sigmas - 1))
    return shifted


def _respaced(sigmas: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Levels between the same ends, spaced as one of three papers has them, or as they are."""
    first, last = float(sigmas[0]), float(sigmas[-1])
    ramp = np.linspace(0, 1, len(sigmas))
    if config.get("use_karras_sigmas"):
        ends = first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO)
        return (ends[0] + ramp * (ends[1] - ends[0])) ** KARRAS_RHO
    if config.get("use_exponential_sigmas"):
        return np.exp(np.linspace(math.log(first), math.log(last), len(sigmas)))
    if config.get("use_beta_sigmas"):
        import scipy.stats  # half a second, and few checkpoints need it

        return last + scipy.stats.beta.ppf(1 - ramp, BETA, BETA) * (first - last)
    return sigmas
