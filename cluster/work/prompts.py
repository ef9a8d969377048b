"""Reads a prompts file: .txt, .jsonl, .csv or .parquet, local or s3://.

Rows come from outside, so each is checked here and the bad ones are named with their line
numbers before any rank starts.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.store import StoreError, read
from meancache.errors import InputError
from meancache.json_values import canonical_json, shown

MAX_SEED = 2**63 - 1
MAX_PROMPT_ID = 256
NAMED_ROWS = 5
# Rows of a Parquet file unpacked at a time.
BATCH = 1024

# Pipeline arguments that a row may override, and what makes a value of each.
OVERRIDES: dict[str, type] = {
    "negative_prompt": str,
    "true_cfg_scale": float,
    "guidance_scale": float,
    "height": int,
    "width": int,
    "num_frames": int,
    "num_inference_steps": int,
}
COLUMNS = ("prompt", "prompt_id", "seed", *OVERRIDES)


class PromptsError(InputError):
    """A prompts file cannot be used; the message names the rows and the rule."""


# Shared by the rows that override nothing: a million dictionaries would be most of their memory.
NO_OVERRIDES: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompts file.

    Attributes:
        line: its line in the file (its row, in Parquet), from 1.
        prompt: the text.
        prompt_id: the user's, or one made from the row's content.
        seed: of the noise, or None where the row leaves it open.
        overrides: pipeline arguments that differ from the job's.
    """

    line: int
    prompt: str
    prompt_id: str
    seed: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=lambda: NO_OVERRIDES)


def stable_seed(prompt_id: str, draw: int = 0) -> int:
    """The seed that a prompt without one gets: always the same, 0 .. 2^31 - 1.

    Args:
        prompt_id: of the prompt.
        draw: which of its several seeds, where a job takes more than one.
    """
    digest = hashlib.sha256(canonical_json(["seed", prompt_id, draw])).hexdigest()
    return int(digest[:8], 16) >> 1


def read_prompts(uri: str) -> list[Prompt]:
    """All rows of a prompts file, in its order, their text as it is written there.

    In a .txt file white space at both ends of a line is not part of the prompt.

    Raises:
        PromptsError: the file is missing, empty, of an unknown kind, or has bad rows.
    """
    named_file = f"prompts {uri if uri.isprintable() else shown(uri)}"
    ending = uri.rpartition(".")[2].lower()
    if ending not in _READERS:
        raise PromptsError(f"{named_file}: the file's ending must be one of {_known(_READERS)}")
    try:
        data = read(uri)
    except StoreError as error:
        raise PromptsError(f"{named_file}: {error}") from error
    prompts: list[Prompt] = []
    named: list[str] = []
    bad = 0
    for line, row in _READERS[ending](data):
        try:
            if isinstance(row, str):
                raise PromptsError(row)
            prompts.append(_prompt(line, row))
        except PromptsError as error:
            bad += 1
            if bad <= NAMED_ROWS:
                named.append(f"line {line}: {error}")
    if bad:
        more = f" and {bad - NAMED_ROWS} more" if bad > NAMED_ROWS else ""
        raise PromptsError(f"{named_file}: {'; '.join(named)}{more}")
    if not prompts:
        raise PromptsError(f"{named_file}: there is no prompt in it; write one a line")
    return prompts


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")

# A row as read: its columns, or a sentence that says what is wrong with the line.
Row = dict[str, Any] | str


def _text(data: bytes) -> Iterator[tuple[int, Row]]:
    lines = (raw for piece in io.BytesIO(data) for raw in piece.splitlines())
    for line, raw in enumerate(lines, start=1):
        try:
            text = (raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw).decode().strip()
        except UnicodeDecodeError as error:
            yield line, f"not UTF-8 at byte {error.start}"
            continue
        if text:
            yield line, {"prompt": text}


def _jsonl(data: bytes) -> Iterator[tuple[int, Row]]:
    for line, raw in enumerate(io.BytesIO(data), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw, object_pairs_hook=_refuse_repetition)
        except PromptsError as error:
            yield line, str(error)
            continue
        except (ValueError, RecursionError):
            yield line, "not JSON"
            continue
        yield line, row if isinstance(row, dict) else "not a JSON object"


def _csv(data: bytes) -> Iterator[tuple[int, Row]]:
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        yield error.object.count(b"\n", 0, error.start) + 1, f"not UTF-8 at byte {error.start}"
        return
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""))
    names: list[str] = []
    while True:
        line = reader.line_num + 1  # where the row begins: a quoted field may hold more lines
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield line, f"not CSV ({error})"
            return
        if fields is None:
            return
        if not fields:
            continue
        if not names:
            names = fields
            if problem := _column_problem(names):
                yield line, problem
                return
        elif len(fields) != len(names):
            yield line, f"{len(fields)} fields where the header has {len(names)}"
        else:
            # An empty field of a CSV is a value left out.
            yield line, {name: value for name, value in zip(names, fields, strict=True) if value}


def _parquet(data: bytes) -> Iterator[tuple[int, Row]]:
    line = 0
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        if problem := _column_problem(file.schema_arrow.names):
            yield 1, problem
            return
        for batch in file.iter_batches(BATCH):
            for row in _rows(batch):
                line += 1
                yield line, row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        yield line + 1, f"not a Parquet file that can be read ({shown(str(error))})"


def _rows(batch: pa.RecordBatch) -> Iterator[Row]:
    """A batch's rows; where one cannot become Python's values, that one is named."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass
    for number in range(batch.num_rows):
        try:
            yield from batch.slice(number, 1).to_pylist()
        except UnicodeDecodeError as error:
            yield f"text that is not UTF-8, such as a lone surrogate ({error.reason})"
        except (ValueError, OverflowError) as error:
            yield f"a value that cannot be read ({shown(str(error))})"


def _column_problem(names: Sequence[str]) -> str | None:
    """What is wrong with a table's columns, or None."""
    for name in names:
        if name not in COLUMNS:
            return _unknown(name)
    return "a column is named twice" if len(set(names)) < len(names) else None


def _unknown(name: object) -> str:
    return f"unknown column {shown(name)}; known are {', '.join(COLUMNS)}"


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise PromptsError("a column is named twice")
    return row


_READERS: dict[str, Callable[[bytes], Iterator[tuple[int, Row]]]] = {
    "txt": _text,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}


def _prompt(line: int, row: Mapping[str, Any]) -> Prompt:
    """Checks one row. Raises PromptsError with the rule it breaks."""
    row = {name: value for name, value in row.items() if value is not None}
    for name in row:
        if name not in COLUMNS:
            raise PromptsError(_unknown(name))
    prompt = row.get("prompt")
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        raise PromptsError("no prompt")
    overrides = {
        name: _value(name, row[name], kind) for name, kind in OVERRIDES.items() if name in row
    }
    seed = _value("seed", row["seed"], int) if "seed" in row else None
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise PromptsError(f"seed {shown(seed)} must be between 0 and {MAX_SEED}")
    text = _value("prompt", prompt, str)
    prompt_id = row.get("prompt_id")
    if prompt_id is None:
        content = [text, seed, overrides]
        prompt_id = hashlib.sha256(canonical_json(content)).hexdigest()[:16]
    prompt_id = _value("prompt_id", prompt_id, str)
    if not 1 <= len(prompt_id) <= MAX_PROMPT_ID:
        raise PromptsError(f"prompt_id has {len(prompt_id)} characters, not 1 to {MAX_PROMPT_ID}")
    return Prompt(line, text, prompt_id, seed, overrides or NO_OVERRIDES)


def _value(name: str, value: Any, kind: type) -> Any:
    """The value as `kind`; CSV gives text for numbers, JSON may give 6 for 6.0."""
    if kind is str:
        if isinstance(value, int) and name == "prompt_id" and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise PromptsError(f"{name} must be text, not {type(value).__name__}")
        if _SURROGATE.search(value):
            raise PromptsError(f"{name} holds a lone surrogate, which is no text; remove it")
        return value
    try:
        # Python also reads 1_000, Arabic digits and bytes as numbers; a person may not.
        if isinstance(value, str):
            if not _NUMBER.fullmatch(value.strip(" ")):
                raise ValueError
        elif type(value) is not int and not (kind is float and isinstance(value, float)):
            raise ValueError
        number = kind(value)
        if number - number != 0:  # NaN or infinite
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        wanted = "a whole number" if kind is int else "a number"
        raise PromptsError(f"{name} {shown(value)} must be {wanted}") from error
    return number


def _known(readers: Mapping[str, Any]) -> str:
    return ", ".join(f".{ending}" for ending in readers)
