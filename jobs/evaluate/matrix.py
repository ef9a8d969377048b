"""What carrying costs on a model: calibrations x settings, from the same prompts and noise.

Each setting is an evaluation of its own below the output (`settings/NAME/`), which a stopped job
resumes; here they become one table, `carrying.parquet`, and one page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from cluster.store import open_store
from jobs._shared.pages import environment, number, plus_minus
from jobs._shared.roots import refusing, to_look_at
from jobs.evaluate import workflow
from jobs.evaluate.config import Config
from jobs.evaluate.request import Comparison, prepare
from jobs.evaluate.results import results
from jobs.evaluate.settings import Setting
from jobs.evaluate.summary import aligned
from jobs.evaluate.table import to_parquet
from meancache.errors import CalibrationError
from meancache.quality import Summary

TABLE_KEY, REPORT_KEY = "carrying.parquet", "report.html"

SCHEMA = pa.schema(
    [
        pa.field("setting", pa.string(), nullable=False),
        pa.field("calibration", pa.string(), nullable=False),
        pa.field("budget", pa.int32(), nullable=False),
        pa.field("own", pa.bool_(), nullable=False),
        pa.field("pairs", pa.int32(), nullable=False),
        pa.field("psnr", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64()),
        pa.field("tail", pa.float64(), nullable=False),
        pa.field("worst", pa.float64(), nullable=False),
        pa.field("predicted", pa.float64()),
    ],
    metadata={"schema": "1"},
)
"""A row a (setting, calibration, budget). `own`: the calibration was made under this very setting;
`psnr`, `tail`, `worst`: mean, 10th percentile and lowest, in dB against the setting's full run;
`predicted`: what the calibration expects, in dB."""


@dataclass(frozen=True)
class Cell:
    """One calibration under one setting at one budget; the fields of SCHEMA."""

    setting: str
    calibration: str
    budget: int
    own: bool
    pairs: int
    predicted: float | None
    psnr: Summary

    def row(self) -> dict[str, object]:
        """As SCHEMA has it."""
        known = {key: value for key, value in asdict(self).items() if key != "psnr"}
        return {
            **known,
            "psnr": self.psnr.mean,
            "standard_error": self.psnr.standard_error,
            "tail": self.psnr.tail,
            "worst": self.psnr.worst,
        }


def run(config: Config) -> workflow.Outcome:
    """Compares the calibrations under every setting; writes table and page.

    All settings are checked before any rank starts.

    Raises:
        InputError: a setting, a calibration or a prompt is refused.
    """
    comparisons = _prepared(config)
    tables: dict[Setting, pa.Table] = {}
    for setting, comparison in comparisons.items():
        print(f"\nsetting {setting}:")
        outcome = workflow.compare(comparison, config.dry_run)
        if outcome.failed:
            return outcome
        if outcome.table is not None:
            tables[setting] = outcome.table
    if config.dry_run:
        return workflow.Outcome(None)
    cells = [cell for one in comparisons for cell in _cells(one, comparisons[one], tables[one])]
    table = pa.Table.from_pylist([cell.row() for cell in cells], SCHEMA)
    store = open_store(config.output)
    store.put(TABLE_KEY, to_parquet(table))
    store.put(REPORT_KEY, page(cells, {str(one): one.folder for one in comparisons}).encode())
    print(f"\n{text_matrix(cells)}\n\n{conclusion(cells)}")
    print(f"report: {to_look_at(store, REPORT_KEY)}")
    return workflow.Outcome(table)


@refusing()
def _prepared(config: Config) -> dict[Setting, Comparison]:
    """Every setting's evaluation, checked. Raises what `prepare` does."""
    for given, flag in ((config.schedules, "--schedules"), (config.graph, "--graph")):
        if given is not None:
            raise CalibrationError(
                f"{flag} does not go with --settings: a schedule is right for one setting; give "
                "--calibrations, which are carried to each"
            )
    if config.calibrations is None or config.baselines:
        raise CalibrationError(
            "--settings compare calibrations alone: give --calibrations DIR, and no --baselines"
        )
    names = [str(one) for one in config.settings]
    for name in names:
        if names.count(name) > 1:
            raise CalibrationError(f"--settings has {name!r} twice; give each once")
    found = {}
    root = config.output.rstrip("/")
    for setting in config.settings:
        below = replace(
            config,
            output=f"{root}/settings/{setting.folder}",
            model=setting.of(config.model),
            settings=(),
        )
        found[setting] = prepare(below)
    return found


def _cells(setting: Setting, comparison: Comparison, table: pa.Table) -> Iterator[Cell]:
    measured = {one.schedule_id: one for one in results(table)}
    for (name, budget), schedule in comparison.calibrated.items():
        found = measured[schedule.id]
        assert found.psnr is not None  # only the full run is not compared with itself
        carried = schedule.calibration.get("carried") or {}
        predicted = schedule.predicted_psnr
        yield Cell(
            setting=str(setting),
            calibration=name,
            budget=budget,
            own=not carried,
            pairs=found.pairs,
            predicted=schedule.estimated_psnr if predicted is None else predicted,
            psnr=found.psnr,
        )


def text_matrix(cells: Sequence[Cell]) -> str:
    """Settings and budgets down, calibrations across; a star marks a setting's own."""
    body = [
        [
            place,
            str(budget),
            *(f"{c.psnr.mean:.1f} ({c.psnr.worst:.1f}){'*' if c.own else ' '}" for c in row),
        ]
        for (place, budget), row in _rows(cells).items()
    ]
    table = aligned([["setting", "B", *_calibrations(cells)], *body], left={0})
    return f"{table}\nPSNR in dB, mean (worst); * made under this setting"


def _calibrations(cells: Sequence[Cell]) -> list[str]:
    """The table's columns; every setting and budget has a cell of each, in this order."""
    return list(dict.fromkeys(cell.calibration for cell in cells))


def _rows(cells: Sequence[Cell]) -> dict[tuple[str, int], list[Cell]]:
    """The cells of each setting and budget."""
    rows: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.setting, cell.budget), []).append(cell)
    return rows


def conclusion(cells: Sequence[Cell]) -> str:
    """What carrying costs, in a sentence, where a setting has a calibration of its own."""
    best: dict[tuple[str, int], float] = {}
    for cell in cells:
        if cell.own:
            place = (cell.setting, cell.budget)
            best[place] = max(best.get(place, cell.psnr.mean), cell.psnr.mean)
    lost = [
        (best[cell.setting, cell.budget] - cell.psnr.mean, cell)
        for cell in cells
        if not cell.own and math.isfinite(best.get((cell.setting, cell.budget), math.inf))
    ]
    if not lost:
        return (
            "No setting has both a calibration of its own and one carried to it, so what carrying "
            "costs is not known: calibrate under one of the other settings too."
        )
    most, worst = max(lost, key=lambda pair: pair[0])
    mean = Summary.of([loss for loss, _ in lost])
    return (
        f"Carried is {mean.mean:+.1f} dB below a setting's own calibration in the mean of "
        f"{len(lost)}, {most:.1f} dB at most ({worst.calibration} to {worst.setting}, "
        f"B = {worst.budget})."
    )


def page(cells: Sequence[Cell], folders: Mapping[str, str]) -> str:
    """The table as a page of its own, with a link to each setting's evaluation."""
    shown = environment("evaluate")
    shown.filters |= {"plus_minus": plus_minus, "number": number}
    return shown.get_template("carrying.html").render(
        names=_calibrations(cells),
        rows=_rows(cells),
        folders=folders,
        conclusion=conclusion(cells),
    )
