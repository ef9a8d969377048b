"""Reads a prompts file: .txt, .jsonl, .csv or .parquet, local or s3://.

Rows come from outside, so each is checked here and the bad ones are named with their line
numbers before any rank starts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.store import StoreError, read
from meancache.schedule import canonical_json

MAX_SEED = 2**63 - 1
MAX_PROMPT_ID = 256
NAMED_ROWS = 5

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


class PromptsError(ValueError):
    """A prompts file cannot be used; the message names the rows and the rule."""


@dataclass(frozen=True)
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
    overrides: Mapping[str, Any] = field(default_factory=dict)


def stable_seed(prompt_id: str, draw: int = 0) -> int:
    """The seed that a prompt without one gets: always the same, 0 .. 2^31 - 1.

    Args:
        prompt_id: of the prompt.
        draw: which of its several seeds, where a job takes more than one.
    """
    digest = hashlib.sha256(canonical_json(["seed", prompt_id, draw])).hexdigest()
    return int(digest[:8], 16) >> 1


def read_prompts(uri: str) -> list[Prompt]:
    """All rows of a prompts file, in its order.

    Raises:
        PromptsError: the file is missing, empty, of an unknown kind, or has bad rows.
    """
    ending = uri.rpartition(".")[2].lower()
    if ending not in _READERS:
        raise PromptsError(f"prompts {uri}: the file's ending must be one of {_known(_READERS)}")
    try:
        data = read(uri)
    except StoreError as error:
        raise PromptsError(f"prompts {uri}: {error}") from error
    prompts: list[Prompt] = []
    bad: list[str] = []
    for line, row in _READERS[ending](data):
        try:
            if isinstance(row, str):
                raise PromptsError(row)
            prompts.append(_prompt(line, row))
        except PromptsError as error:
            bad.append(f"line {line}: {error}")
    if bad:
        more = f" and {len(bad) - NAMED_ROWS} more" if len(bad) > NAMED_ROWS else ""
        raise PromptsError(f"prompts {uri}: {'; '.join(bad[:NAMED_ROWS])}{more}")
    if not prompts:
        raise PromptsError(f"prompts {uri}: there is no prompt in it; write one a line")
    return prompts


# A row as read: its columns, or a sentence that says what is wrong with the line.
Row = dict[str, Any] | str


def _text(data: bytes) -> Iterator[tuple[int, Row]]:
    for line, raw in enumerate(data.splitlines(), start=1):
        text = _decode(raw)
        if isinstance(text, str):
            yield line, text
        elif text[0].strip():
            yield line, {"prompt": text[0].strip()}


def _jsonl(data: bytes) -> Iterator[tuple[int, Row]]:
    for line, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError):
            yield line, "not JSON"
            continue
        yield line, row if isinstance(row, dict) else "not a JSON object"


def _csv(data: bytes) -> Iterator[tuple[int, Row]]:
    text = _decode(data)
    if isinstance(text, str):
        yield 1, text
        return
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text[0], newline=""))
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        yield 1, "a column is named twice"
        return
    for row in reader:
        if None in row or None in row.values():
            yield reader.line_num, "not as many fields as the header has"
            continue
        # An empty field of a CSV is a value left out.
        yield reader.line_num, {name: value for name, value in row.items() if value != ""}


def _parquet(data: bytes) -> Iterator[tuple[int, Row]]:
    try:
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    except UnicodeDecodeError as error:
        yield 1, f"text that is not UTF-8, such as a lone surrogate ({error.reason})"
        return
    except (pa.ArrowException, OSError, ValueError) as error:
        yield 1, f"not a Parquet file ({error})"
        return
    yield from enumerate(rows, start=1)


_READERS: dict[str, Callable[[bytes], Iterator[tuple[int, Row]]]] = {
    "txt": _text,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}


def _decode(raw: bytes) -> tuple[str] | str:
    try:
        return (raw.decode("utf-8-sig"),)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"


def _prompt(line: int, row: Mapping[str, Any]) -> Prompt:
    """Checks one row. Raises PromptsError with the rule it breaks."""
    row = {name: value for name, value in row.items() if value is not None}
    unknown = sorted(str(name) for name in row if name not in COLUMNS)
    if unknown:
        raise PromptsError(f"unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
    prompt = row.get("prompt")
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        raise PromptsError("no prompt")
    overrides = {
        name: _value(name, row[name], kind) for name, kind in OVERRIDES.items() if name in row
    }
    seed = _value("seed", row["seed"], int) if "seed" in row else None
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise PromptsError(f"seed {seed} must be between 0 and {MAX_SEED}")
    text = _value("prompt", prompt, str)
    prompt_id = row.get("prompt_id")
    if prompt_id is None:
        content = [text, seed, overrides]
        prompt_id = hashlib.sha256(canonical_json(content)).hexdigest()[:16]
    prompt_id = _value("prompt_id", prompt_id, str)
    if not 1 <= len(prompt_id) <= MAX_PROMPT_ID:
        raise PromptsError(f"prompt_id has {len(prompt_id)} characters, not 1 to {MAX_PROMPT_ID}")
    return Prompt(line, text, prompt_id, seed, overrides)


def _value(name: str, value: Any, kind: type) -> Any:
    """The value as `kind`; CSV gives text for numbers, JSON may give 6 for 6.0."""
    if kind is str:
        if isinstance(value, int) and name == "prompt_id" and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise PromptsError(f"{name} must be text, not {type(value).__name__}")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise PromptsError(f"{name} holds a lone surrogate, which is no text; remove it")
        return value
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        number = kind(value)
        if number - number != 0:  # NaN or infinite
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        wanted = "a whole number" if kind is int else "a number"
        raise PromptsError(f"{name} {str(value)[:40]!r} must be {wanted}") from error
    return number


def _known(readers: Mapping[str, Any]) -> str:
    return ", ".join(f".{ending}" for ending in readers)
