"""What pandas, Polars, DuckDB, pyarrow and Python write is read as it was, or refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cluster.work.prompts import PromptsError, read_prompts
from tests.support.hostile import FUZZ

NAMES = ("prompt", "prompt_id", "seed", "guidance_scale", "note", "rank")
TYPES = dict(
    zip(
        NAMES,
        (pa.string(), pa.string(), pa.int64(), pa.float64(), pa.string(), pa.int64()),
        strict=True,
    )
)
# With what tables are made of: quotes, separators, line ends, escapes, nulls in words.
ODD = st.text(st.sampled_from('ab ",;\t\r\n\\é\u2028\x1b\ufeff'), min_size=1, max_size=8)
TEXT = ODD | st.sampled_from(["NULL", "null", "None", "NaN", "\\N", "1", "1.0", "#", '"a"', "a, b"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": TEXT.filter(str.strip),
            "prompt_id": st.none() | TEXT,
            "seed": st.none() | st.integers(0, 2**63 - 1) | st.integers(0, 9),
            "guidance_scale": st.none() | st.integers(4, 40).map(lambda quarters: quarters / 4),
            "note": st.none() | TEXT,
            "rank": st.none() | st.integers(-(2**53), 2**53),
        }
    ),
    min_size=1,
    max_size=5,
)
Row = dict[str, Any]


def table(rows: list[Row]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], TYPES[name]) for name in NAMES})


def pandas_of(rows: list[Row]) -> pd.DataFrame:
    """As people have it: integers with a gap become floats."""
    return pd.DataFrame({name: [row[name] for row in rows] for name in NAMES})


def of_pandas(write: Callable[[pd.DataFrame, Path], Any]) -> Callable[[list[Row], Path], Any]:
    return lambda rows, path: write(pandas_of(rows), path)


def of_polars(write: Callable[[pl.DataFrame, Path], Any]) -> Callable[[list[Row], Path], Any]:
    return lambda rows, path: write(pl.from_arrow(table(rows)), path)


def of_duckdb(options: str) -> Callable[[list[Row], Path], Any]:
    def write(rows: list[Row], path: Path) -> None:
        duckdb.from_arrow(table(rows)).query("rows", f"COPY rows TO '{path}' ({options})")

    return write


def of_csv(**dialect: Any) -> Callable[[list[Row], Path], Any]:
    def write(rows: list[Row], path: Path) -> None:
        sink = io.StringIO(newline="")
        writer = csv.DictWriter(sink, NAMES, **dialect)
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(sink.getvalue(), newline="")

    return write


WRITERS: dict[str, Callable[[list[Row], Path], Any]] = {
    "pandas.csv": of_pandas(lambda frame, path: frame.to_csv(path, index=False)),
    "pandas-index.csv": of_pandas(lambda frame, path: frame.to_csv(path)),
    "pandas-escaped.csv": of_pandas(
        lambda frame, path: frame.to_csv(path, index=False, doublequote=False, escapechar="\\")
    ),
    "pandas-utf16.csv": of_pandas(
        lambda frame, path: frame.to_csv(path, index=False, encoding="utf-16")
    ),
    "pandas-bom.csv": of_pandas(
        lambda frame, path: frame.to_csv(path, index=False, encoding="utf-8-sig")
    ),
    "pandas.tsv": of_pandas(lambda frame, path: frame.to_csv(path, index=False, sep="\t")),
    "pandas-na.csv": of_pandas(lambda frame, path: frame.to_csv(path, index=False, na_rep="NULL")),
    "pandas.jsonl": of_pandas(
        lambda frame, path: frame.to_json(path, orient="records", lines=True)
    ),
    "pandas.jsonl.gz": of_pandas(
        lambda frame, path: frame.to_json(path, orient="records", lines=True)
    ),
    "pandas.parquet": of_pandas(lambda frame, path: frame.to_parquet(path)),
    "pandas-index.parquet": of_pandas(
        lambda frame, path: frame.set_axis([f"r{n}" for n in range(len(frame))]).to_parquet(path)
    ),
    "pandas-category.parquet": of_pandas(
        lambda frame, path: frame.astype({"note": "category"}).to_parquet(path)
    ),
    "polars.csv": of_polars(lambda frame, path: frame.write_csv(path)),
    "polars-always.csv": of_polars(lambda frame, path: frame.write_csv(path, quote_style="always")),
    "polars-never.csv": of_polars(lambda frame, path: frame.write_csv(path, quote_style="never")),
    "polars.tsv": of_polars(lambda frame, path: frame.write_csv(path, separator="\t")),
    "polars.ndjson": of_polars(lambda frame, path: frame.write_ndjson(path)),
    "polars.parquet": of_polars(lambda frame, path: frame.write_parquet(path)),
    "duckdb.csv": of_duckdb("FORMAT CSV, HEADER"),
    "duckdb-escaped.csv": of_duckdb("FORMAT CSV, HEADER, ESCAPE '\\'"),
    "duckdb-semicolon.csv": of_duckdb("FORMAT CSV, HEADER, DELIMITER ';'"),
    "duckdb.csv.gz": of_duckdb("FORMAT CSV, HEADER, COMPRESSION gzip"),
    "duckdb.jsonl.zst": of_duckdb("FORMAT JSON, COMPRESSION zstd"),
    "duckdb.parquet": of_duckdb("FORMAT PARQUET"),
    "pyarrow.csv": lambda rows, path: pyarrow.csv.write_csv(table(rows), path),
    "pyarrow.parquet": lambda rows, path: pq.write_table(table(rows), path, compression="zstd"),
    "python.csv": of_csv(),
    "python-all.csv": of_csv(quoting=csv.QUOTE_ALL),
    "python-lf.csv": of_csv(lineterminator="\n"),
    "python-cr.csv": of_csv(lineterminator="\r"),
    "python-escaped.csv": of_csv(quoting=csv.QUOTE_NONE, escapechar="\\"),
    "python.jsonl": lambda rows, path: path.write_text("\n".join(map(json.dumps, rows))),
}
# A CSV that quotes every field has no null, and one with a null in words has it in texts too.
LOSES_NULLS = {"polars-always.csv", "python-all.csv", "pandas-na.csv"}


# Dialects that cannot be told from others: refused, whatever is in them.
REFUSED = {"duckdb-semicolon.csv"}
PLAIN = [
    {"prompt": "a cat, and a dog", "prompt_id": "1", "seed": 7, "guidance_scale": 6.0},
    {"prompt": "ein Bär's Tag; 猫 🎈", "prompt_id": "x-2", "seed": 2**31, "guidance_scale": 1.5},
]


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"python-escaped.csv", "polars-never.csv"}))
def test_rows_as_most_are_are_read_and_not_refused(tmp_path, name):
    """Otherwise a reader that refuses all would do for the test below."""
    rows = [{**row, "note": "said, twice", "rank": 4} for row in PLAIN]
    WRITERS[name](rows, tmp_path / name)
    if name in REFUSED:
        with pytest.raises(PromptsError, match="separate columns by commas"):
            read_prompts(str(tmp_path / name))
        return
    found = read_prompts(str(tmp_path / name))
    for row, prompt in zip(rows, found, strict=True):
        known = (prompt.prompt, prompt.prompt_id, prompt.seed, prompt.overrides["guidance_scale"])
        assert known == tuple(row[key] for key in NAMES[:4])
    assert found.extra["note"].to_pylist() == ["said, twice"] * 2
    assert [int(rank) for rank in found.extra["rank"].to_pylist()] == [4, 4]


@pytest.mark.parametrize("name", WRITERS)
@settings(FUZZ, max_examples=15, phases=[Phase.explicit, Phase.generate])
@given(rows=ROWS)
def test_what_was_written_is_read_or_refused(tmp_path_factory, name, rows):
    path = tmp_path_factory.getbasetemp() / name
    if name in LOSES_NULLS:
        others = {"note": "x", "prompt_id": "x", "rank": 1}
        rows = [
            {**row, **{key: value for key, value in others.items() if row[key] is None}}
            for row in rows
        ]
    try:
        WRITERS[name](rows, path)
    except (csv.Error, pl.exceptions.PolarsError, pa.ArrowException, OSError, ValueError):
        return  # the program itself refuses to write it
    try:
        found = read_prompts(str(path))
    except PromptsError:
        return
    assert len(found) == len(rows)
    for number, (row, prompt) in enumerate(zip(rows, found, strict=True)):
        assert prompt.prompt == row["prompt"]
        assert row["prompt_id"] in (None, prompt.prompt_id)
        assert prompt.seed == row["seed"]
        assert prompt.overrides.get("guidance_scale") == row["guidance_scale"]
        for column in ("note", "rank"):
            extra = found.extra[column][number].as_py()
            same = extra == row[column] or (
                path.suffix != ".parquet" and _same_text(extra, row[column])
            )
            assert same, (column, extra, row[column])


def _same_text(found: Any, written: Any) -> bool:
    """A CSV's extra columns are text, a float where pandas had to make room for a null."""
    if isinstance(written, int) and isinstance(found, str):
        return float(found) == written
    return found == written
