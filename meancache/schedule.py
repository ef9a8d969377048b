"""What a schedule is: the grid it is valid for, which steps compute, what the others return.

A schedule is a file that people exchange, so it is checked at the door: nothing that loads can
make a run divide by zero, read a velocity that will not exist or compute more than it promised.
Knows nothing about how a schedule is solved (`solver`) or run (`velocity`, `hook`).
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from meancache.errors import ScheduleError
from meancache.grid import Grid
from meancache.json_values import (
    MAX_DEPTH,
    canonical_json,
    is_deep,
    is_number,
    is_whole_number,
    shown,
)

SCHEMA = 1
MAX_SPAN = 5
EXECUTIONS = ("jump", "fine-step")
# A file of MAX_STEPS edges whose weights name every computed step has 13 MB.
MAX_BYTES = 16 * 2**20
_TOO_DEEP = f"a schedule is nested in more than {MAX_DEPTH} levels; flatten it"
# A method becomes part of file names, store keys and lines in terminals.
_METHOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_REQUIRED = ("schema", "grid", "method", "budget", "edges")
_OPTIONAL = ("model", "conditions", "gamma", "execution", "predicted_cost", "calibration", "id")


@dataclass(frozen=True)
class Edge:
    """One computed step and the jump that its velocity is used for.

    The transformer runs at step `start`; the steps `start + 1 .. stop - 1` are skipped. The
    estimate of the average velocity over the jump comes either from the paper's rule with the
    history span K = `span` (eq. 9-11) or from `weights` on the velocities of computed steps.

    Attributes:
        start: index t of the computed step.
        stop: index s > t of the next computed step, or T.
        span: K in 1..5; K > 1 needs K <= start.
        weights: computed step -> weight; only steps at or before `start`.

    Raises:
        ScheduleError: the indices, the span or the weights break one of these rules.
    """

    start: int
    stop: int
    span: int | None = None
    weights: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        # Plain numbers: what a solver made of numpy's must save as JSON, and hash as it loads.
        object.__setattr__(self, "start", operator.index(self.start))
        object.__setattr__(self, "stop", operator.index(self.stop))
        if self.span is not None:
            object.__setattr__(self, "span", operator.index(self.span))
        if self.weights is not None:
            plain = {operator.index(step): float(self.weights[step]) for step in self.weights}
            object.__setattr__(self, "weights", plain)
        where = f"edge {self.start} -> {self.stop}"
        if not 0 <= self.start < self.stop:
            raise ScheduleError(f"{where}: an edge must go forward from a step at or after 0")
        if (self.span is None) == (self.weights is None):
            raise ScheduleError(f"{where}: give either a `span` (paper) or `weights`, not both")
        if self.span is not None:
            if not 1 <= self.span <= MAX_SPAN:
                raise ScheduleError(f"{where}: span {self.span} must be between 1 and {MAX_SPAN}")
            # Fine-step execution uses the span one step later first; `Schedule` knows which it is.
            if self.span > self.start + 1:
                raise ScheduleError(
                    f"{where}: span {self.span} reaches before step 0; use at most {self.start}"
                )
        if self.weights is not None:
            if not self.weights:
                raise ScheduleError(f"{where}: `weights` is empty; name at least one computed step")
            for step, weight in self.weights.items():
                if not math.isfinite(weight):
                    raise ScheduleError(f"{where}: the weight of step {step} is not finite")
                if not 0 <= step <= self.start:
                    raise ScheduleError(
                        f"{where}: weights name step {step}, but only steps computed at or "
                        f"before {self.start} are known there"
                    )

    def to_json(self) -> dict[str, Any]:
        """The edge as the schedule format has it."""
        if self.weights is not None:
            weights = {str(step): weight for step, weight in sorted(self.weights.items())}
            return {"start": self.start, "stop": self.stop, "weights": weights}
        return {"start": self.start, "stop": self.stop, "span": self.span}

    @classmethod
    def from_json(cls, data: object) -> Edge:
        """Reads one edge. Raises ScheduleError on anything that is not one."""
        if not isinstance(data, Mapping) or not set(data) <= {"start", "stop", "span", "weights"}:
            raise ScheduleError(
                f"an edge must be {{start, stop, span or weights}}, not {shown(data)}"
            )
        for name in ("start", "stop", "span"):
            value = data.get(name)
            if not is_whole_number(value) and not (name == "span" and value is None):
                raise ScheduleError(
                    f"an edge's `{name}` must be a whole number, not {shown(value)}"
                )
        weights = data.get("weights")
        if weights is not None:
            if not isinstance(weights, Mapping):
                raise ScheduleError("an edge's `weights` must map computed steps to numbers")
            weights = dict(_weight(step, weight) for step, weight in weights.items())
        return cls(data["start"], data["stop"], data.get("span"), weights)


@dataclass(frozen=True)
class Schedule:
    """Which denoising steps run the transformer, and what the skipped ones return.

    Attributes:
        grid: the noise levels it was solved on; it runs on no other.
        edges: a path 0 = n_0 -> n_1 -> ... -> T; every edge's start is computed, so NFE = len.
        method: 'paper', 'secant' or 'fitted'.
        budget: B, the most forwards it may take; NFE <= B.
        execution: 'jump' (eq. 10) or 'fine-step' for the paper's spans; None for weights.
        gamma: the peak-suppression exponent it was solved with (eq. 15), if it was solved.
        model: {id, revision, pipeline} it was calibrated on; empty where left open.
        conditions: {height, width, num_frames, guidance_scale, dtype, lora}; empty where open.
        predicted_cost: the sum of its edges' costs raised to gamma.
        calibration: {graph, trajectories} it came from.

    Raises:
        ScheduleError: the edges are not such a path, or NFE exceeds the budget.
    """

    grid: Grid
    edges: tuple[Edge, ...]
    method: str
    budget: int
    execution: str | None = None
    gamma: float | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    predicted_cost: float | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.grid.num_inference_steps
        if not self.edges:
            raise ScheduleError("a schedule needs at least one edge")
        reached = 0
        computed: set[int] = set()
        for edge in self.edges:
            if edge.start != reached:
                raise ScheduleError(
                    f"edge {edge.start} -> {edge.stop} must start at step {reached}, where the "
                    f"one before it ends: edges are contiguous from 0 to {steps}"
                )
            computed.add(edge.start)
            unknown = sorted(set(edge.weights or ()) - computed)
            if unknown:
                raise ScheduleError(
                    f"edge {edge.start} -> {edge.stop}: weights name step {unknown[0]}, which "
                    "is skipped; name computed steps only"
                )
            reached = edge.stop
        if reached != steps:
            raise ScheduleError(
                f"the edges end at step {reached}; they must end at num_inference_steps {steps}"
            )
        if len({edge.span is None for edge in self.edges}) > 1:
            raise ScheduleError("some edges have spans and some weights; a schedule has one kind")
        if self.edges[0].span is not None and self.execution not in EXECUTIONS:
            raise ScheduleError(
                f"execution {shown(self.execution)} must be one of {', '.join(EXECUTIONS)} where "
                "edges have spans"
            )
        for edge in self.edges:
            if (
                self.execution == "jump"
                and edge.span is not None
                and edge.span > max(1, edge.start)
            ):
                raise ScheduleError(
                    f"edge {edge.start} -> {edge.stop}: span {edge.span} reaches before step "
                    f"0; use at most {edge.start}"
                )
        if self.edges[0].weights is not None and self.execution is not None:
            raise ScheduleError("`execution` belongs to edges with spans; leave it out for weights")
        if self.nfe > self.budget:
            raise ScheduleError(f"{self.nfe} edges exceed the budget of {self.budget} forwards")

    @property
    def nfe(self) -> int:
        """Number of function evaluations: forwards of the transformer in one run."""
        return len(self.edges)

    @property
    def num_inference_steps(self) -> int:
        """T, the steps of the grid."""
        return self.grid.num_inference_steps

    @property
    def computed_steps(self) -> tuple[int, ...]:
        """The steps that run the transformer, ascending."""
        return tuple(edge.start for edge in self.edges)

    @property
    def reference_steps(self) -> int:
        """Steps of the run that it was made to follow: T, or more where that was a finer one."""
        steps = self.calibration.get("reference_steps", self.num_inference_steps)
        return steps if is_whole_number(steps) else self.num_inference_steps

    @property
    def predicted_psnr(self) -> float | None:
        """Mean dB that its videos had on calibration runs, against their reference; if known."""
        known: Any = self.calibration.get("psnr")
        return float(known) if is_number(known) and math.isfinite(known) else None

    @property
    def estimated_psnr(self) -> float | None:
        """About the mean dB of its videos, as its calibration has it (`prediction`); if known."""
        known: Any = self.calibration.get("psnr_estimate")
        return float(known) if is_number(known) and math.isfinite(known) else None

    @property
    def predicted_interval(self) -> tuple[float, float] | None:
        """(low, high) dB that hold the mean of new prompts' videos 9 times of 10; if known.

        From calibration runs under weights that were fitted without their prompts.
        """
        known: Any = self.calibration.get("psnr_interval")
        if not isinstance(known, list | tuple) or len(known) != 2:
            return None
        if not all(is_number(one) and math.isfinite(one) for one in known):
            return None
        return float(known[0]), float(known[1])

    @classmethod
    def from_edges(
        cls,
        sigmas: Sequence[float],
        edges: Iterable[Edge | Mapping[str, Any]],
        execution: str | None = None,
    ) -> Schedule:
        """A schedule of given edges, with its model and conditions left open.

        Args:
            sigmas: T + 1 noise levels, the final 0 included.
            edges: `Edge` objects or {start, stop, span} / {start, stop, weights} mappings.
            execution: 'jump' or 'fine-step' for spans; None means 'jump', the paper's eq. 10.

        Raises:
            ScheduleError: the sigmas or edges break a rule of `Grid`, `Edge` or `Schedule`.
        """
        path = tuple(edge if isinstance(edge, Edge) else Edge.from_json(edge) for edge in edges)
        spans = bool(path) and path[0].span is not None
        return cls(
            grid=_grid(lambda: Grid.from_sigmas(sigmas)),
            edges=path,
            method="paper" if spans else "fitted",
            budget=len(path),
            execution=execution or "jump" if spans else execution,
        )

    def on(self, sigmas: Sequence[float]) -> Schedule:
        """The same edges on other noise levels, for which they were not solved.

        Spans are counts of steps, and the paper's rule takes its coefficients from the grid that it
        runs on; weights are numbers for one grid, and stay there.

        Args:
            sigmas: T + 1 noise levels, the final 0 included, such as
                `pipe.scheduler.sigmas.tolist()` after a call of the size in question.

        Returns:
            A schedule with its conditions and predicted cost left open, as neither holds there.

        Raises:
            ScheduleError: the schedule has weights, or the grid has another number of steps.
        """
        if self.execution is None:
            raise ScheduleError(
                f"a schedule of the method {self.method!r} has weights that hold on its own grid "
                "only; solve one for the other grid, as Calibration.schedule does"
            )
        grid = _grid(lambda: Grid.from_sigmas(sigmas))
        if grid.num_inference_steps != self.num_inference_steps:
            raise ScheduleError(
                f"the schedule is for {self.num_inference_steps} steps, but the grid has "
                f"{grid.num_inference_steps}; give one of {self.num_inference_steps} steps"
            )
        return replace(self, grid=grid, conditions={}, predicted_cost=None)

    @cached_property
    def id(self) -> str:
        """sha256 of the canonical JSON without `id`, 64 hex digits."""
        body = {key: value for key, value in self._body().items() if key != "id"}
        return hashlib.sha256(canonical_json(body)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The schedule as a JSON object, format `schema: 1`."""
        return {**self._body(), "id": self.id}

    def _body(self) -> dict[str, Any]:
        body = {
            "schema": SCHEMA,
            "model": dict(self.model),
            "grid": self.grid.to_json(),
            "conditions": dict(self.conditions),
            "method": self.method,
            "gamma": self.gamma,
            "budget": self.budget,
            "edges": [edge.to_json() for edge in self.edges],
            "predicted_cost": self.predicted_cost,
            "calibration": dict(self.calibration),
        }
        if self.execution is not None:
            body["execution"] = self.execution
        return body

    @classmethod
    def from_json(cls, data: object) -> Schedule:
        """Reads a JSON object of the schedule format.

        Raises:
            ScheduleError: it is not one, breaks a rule, or does not hash to the `id` it bears.
        """
        if not isinstance(data, Mapping):
            raise ScheduleError("a schedule file must hold one JSON object")
        if is_deep(data):
            raise ScheduleError(_TOO_DEEP)
        try:
            written = hashlib.sha256(
                canonical_json({key: value for key, value in data.items() if key != "id"})
            ).hexdigest()
        except (TypeError, ValueError, RecursionError) as error:
            raise ScheduleError(f"a schedule cannot be written as JSON: {error}") from error
        missing = [key for key in _REQUIRED if key not in data]
        unknown = sorted(map(str, set(data) - {*_REQUIRED, *_OPTIONAL}))
        if missing or unknown:
            raise ScheduleError(
                f"a schedule needs the key {missing[0]!r}"
                if missing
                else f"a schedule has no key {shown(unknown[0])}"
            )
        if not is_whole_number(data["schema"]) or data["schema"] != SCHEMA:
            raise ScheduleError(f"schedule schema {shown(data['schema'])} is not {SCHEMA}")
        for name in ("model", "grid", "conditions", "calibration"):
            if not isinstance(data.get(name, {}), Mapping):
                raise ScheduleError(f"a schedule's `{name}` must be a JSON object")
        if not isinstance(data.get("edges"), list) or not is_whole_number(data.get("budget")):
            raise ScheduleError("a schedule needs a list `edges` and a whole number `budget`")
        for name in ("gamma", "predicted_cost"):
            value = data.get(name)
            if value is not None and not (is_number(value) and math.isfinite(value)):
                raise ScheduleError(f"a schedule's `{name}` must be a finite number or null")
        if not isinstance(data["method"], str) or not _METHOD.fullmatch(data["method"]):
            raise ScheduleError(
                f"a schedule's `method` must be a name of letters, digits and . _ + -, at most 64, "
                f"not {shown(data['method'])}"
            )
        schedule = cls(
            grid=_grid(lambda: Grid.from_json(data.get("grid", {}))),
            edges=tuple(Edge.from_json(edge) for edge in data["edges"]),
            method=data["method"],
            budget=data["budget"],
            execution=data.get("execution"),
            gamma=data.get("gamma"),
            model=data.get("model", {}),
            conditions=data.get("conditions", {}),
            predicted_cost=data.get("predicted_cost"),
            calibration=data.get("calibration", {}),
        )
        # As it is written, or as it would be written here: 1 and 1.0 are one number.
        if data.get("id", written) not in (written, schedule.id):
            raise ScheduleError(
                f"the schedule's id {shown(data['id'])} is not the hash of its content "
                f"({written[:16]}...): the file was edited; remove `id` if that was meant"
            )
        return schedule

    @classmethod
    def loads(cls, text: str | bytes) -> Schedule:
        """Reads a schedule from the text of its JSON file. Raises ScheduleError."""
        if len(text) > MAX_BYTES:
            raise ScheduleError(
                f"a schedule file has at most {MAX_BYTES} bytes, and this one more: it is none"
            )
        try:
            data = json.loads(
                text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repetition
            )
        except ScheduleError:
            raise
        except RecursionError as error:
            raise ScheduleError(_TOO_DEEP) from error
        except ValueError as error:
            raise ScheduleError(f"a schedule file is not JSON: {error}") from error
        return cls.from_json(data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """Reads a schedule file.

        Raises:
            ScheduleError: the file is missing or is not a valid schedule; names the file.
        """
        try:
            with open(path, "rb") as file:
                return cls.loads(file.read(MAX_BYTES + 1))
        except OSError as error:
            raise ScheduleError(f"schedule {os.fspath(path)}: {error.strerror}") from error
        except ValueError as error:
            raise ScheduleError(f"schedule {os.fspath(path)!r}: {error}") from error

    def dumps(self) -> str:
        """The text of the schedule's JSON file."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the schedule's JSON file."""
        Path(path).write_text(self.dumps(), encoding="utf-8")

    def strip(self, computed: str = "#", skipped: str = ".") -> str:
        """One character a step, for terminals: which of the T steps compute."""
        chosen = set(self.computed_steps)
        return "".join(
            computed if step in chosen else skipped for step in range(self.num_inference_steps)
        )


def _grid(build: Any) -> Grid:
    try:
        return build()
    except (TypeError, ValueError, OverflowError) as error:
        raise ScheduleError(str(error)) from error


def _weight(step: object, weight: object) -> tuple[int, float]:
    if not (
        is_whole_number(step)
        or (isinstance(step, str) and re.fullmatch(r"0|[1-9][0-9]{0,5}", step))
    ):
        raise ScheduleError(f"an edge's weights name {shown(step)}; name a step by its number")
    if not is_number(weight):
        raise ScheduleError(f"the weight of step {step} must be a number, not {shown(weight)}")
    return int(step), float(weight)  # type: ignore[call-overload,arg-type]


def _refuse_constant(name: str) -> float:
    raise ScheduleError(f"a schedule's numbers must be finite, not {name}")


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless readers could disagree on which of two values counts."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ScheduleError(f"a schedule names the key {shown(key)} twice; keep one")
        found[key] = value
    return found
