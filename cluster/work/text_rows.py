"""Reads the prompts files that are text: .txt, .jsonl and .ndjson, .csv and .tsv.

Nothing is guessed: text is UTF-8, or UTF-16 that says so with a mark at its beginning.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from cluster.work.values import PromptsError
from meancache.json_values import shown

# A row as read: its columns, or a sentence that says what is wrong with the line.
Row = dict[str, Any] | str

# How ISO-2022-JP and -KR, which are ASCII to a reader of UTF-8, begin their other letters.
_ISO_2022 = re.compile(r"\x1b(\$[@AB]|\$\)C|\([BJI])")


# How files of other kinds begin, and what they are called where they are read.
_OTHERS = {
    b"\x1f\x8b": ("a gzip file", ".gz at its end"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", ".zst at its end"),
    b"PAR1": ("a Parquet file", ".parquet at its end"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", None),
    b"BZh": ("a bzip2 file", None),
    b"\xfd7zXZ": ("an xz file", None),
}


def decoded(data: bytes) -> str | tuple[int, str]:
    """A file's text, or the line on which it is no text and what is wrong there."""
    for magic, (kind, ending) in _OTHERS.items():
        beginning = data[:1000]
        words = magic.isalnum() and beginning.isascii() and b"\0" not in beginning
        if data.startswith(magic) and not words:
            fix = f"give it a name with {ending}" if ending else "unpack it and save it as UTF-8"
            return 1, f"not text, but {kind}; {fix}"
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return 1, "UTF-32, which few programs read; save the file as UTF-8"
    encoding, name = "utf-8-sig", "UTF-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = name = "UTF-16"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return line, f"not {name} at byte {error.start}; save the file as UTF-8"
    if (nul := text.find("\0")) >= 0:
        return _line(text, nul), "a NUL character, as in UTF-16 without a mark; save it as UTF-8"
    if escape := _ISO_2022.search(text):
        return _line(text, escape.start()), "an escape sequence of ISO-2022; save it as UTF-8"
    return text


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def lines_of_text(text: str, column: str) -> Iterator[tuple[int, Row]]:
    """One prompt a line, without the white space around it; empty lines are passed over.

    Args:
        text: the file.
        column: what the rows call the prompt.
    """
    if kind := _misnamed(text):
        yield 1, f"looks like {kind}, not like prompts line by line; give the file that ending"
        return
    alone = "\n" not in text
    for line, raw in enumerate(text.split("\r" if alone else "\n"), start=1):
        prompt = raw.strip()
        if "\r" in prompt:
            yield line, "a carriage return within a line; end every line alike"
        elif prompt:
            yield line, {column: prompt}


def _misnamed(text: str) -> str | None:
    """The ending that a .txt should have whose first line is one of JSON, or a table's header."""
    first = text[:10_000].lstrip().partition("\n")[0].strip()
    if re.match(r'\{\s*"', first) and re.search(r'"prompt"\s*:', first):
        return ".jsonl"
    for mark, ending in ((",", ".csv"), ("\t", ".tsv")):
        names = [name.strip('"') for name in first.split(mark)]
        if len(names) > 1 and "prompt" in names and all(map(str.isidentifier, names)):
            return ending
    return None


def json_lines(text: str) -> Iterator[tuple[int, Row]]:
    """One JSON object a line; empty lines are passed over."""
    for line, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw, object_pairs_hook=_refuse_repetition, parse_float=_float)
        except PromptsError as error:
            yield line, str(error)
        except json.JSONDecodeError:
            yield line, "not JSON"
        except ValueError:
            yield line, "a number of more digits than can be read"
        except RecursionError:
            yield line, "nested too deep"
        else:
            yield line, row if isinstance(row, dict) else "not a JSON object"


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise PromptsError(f"the number {shown(digits)} is too large for a float; write it as text")
    return value


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise PromptsError("a column is named twice")
    return row
