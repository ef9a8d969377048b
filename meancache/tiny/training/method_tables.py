"""The measured rows of `table` as Markdown, one table a budget.

    python -m meancache.tiny.training.method_tables shift-7.json shift-15.json

docs/methods.md is made of what it prints.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# A method may take so many times the compute of the budget; its best setting within that counts.
MORE = 1.25
HEADER = (
    "| method | setting | compute | PSNR | 10th percentile | worst | SSIM | FLIP | seconds |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)

Row = Mapping[str, Any]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m meancache.tiny.training.method_tables")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    print("\n\n".join(sections(json.loads(file.read_text())) for file in parser.parse_args().files))


def sections(found: Mapping[str, Any]) -> str:
    """A heading and a table for each budget of an output of `table`."""
    steps, rows = found["steps"], found["rows"]
    tables = [
        f"## Shift {found['shift']:g}, {steps} steps, B = {budget}\n\n"
        f"{table(best(rows, budget, steps))}"
        for budget in found["budgets"]
    ]
    return "\n\n".join(tables)


def best(rows: Sequence[Row], budget: int, steps: int) -> list[Row]:
    """The best setting of each method at this budget, by mean PSNR, the best method first.

    Args:
        rows: of any budgets; those without scores were too slow to be measured.
        budget: forwards. Of schedules, those of just this budget count.
        steps: of a full run.
    """
    found: dict[str, Row] = {}
    for row in sorted((row for row in rows if "psnr" in row), key=_mean):
        of_budget = row["budget"] == budget
        if of_budget or (row["budget"] is None and row["share"] <= MORE * budget / steps):
            found[row["method"]] = row
    return sorted(found.values(), key=_mean, reverse=True)


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    return "\n".join([HEADER, *(line(row) for row in rows)])


def line(row: Row) -> str:
    """A row of a Markdown table."""
    p = row["psnr"]
    cells = [
        f"`{row['method']}`",
        row["setting"] or "",
        f"{100 * row['share']:.0f}%",
        f"{p['mean']:.1f} ± {p['standard_error']:.1f}",
        f"{p['tail']:.1f}",
        f"{p['worst']:.1f}",
        f"{row['ssim']['mean']:.4f}",
        f"{row['flip']['mean']:.4f}",
        f"{row['seconds']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _mean(row: Row) -> float:
    return float(row["psnr"]["mean"])


if __name__ == "__main__":
    main()
