"""Reads the prompts files that are text: .txt, .jsonl and .ndjson, .csv and .tsv.

Nothing is guessed: text is UTF-8, or UTF-16 that says so with a mark at its beginning.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from cluster.work.values import PromptsError

# A row as read: its columns, or a sentence that says what is wrong with the line.
Row = dict[str, Any] | str

# How ISO-2022-JP and -KR, which are ASCII to a reader of UTF-8, begin their other letters.
_ISO_2022 = re.compile(r"\x1b(\$[@AB]|\$\)C|\([BJI])")


def decoded(data: bytes) -> str | tuple[int, str]:
    """A file's text, or the line on which it is no text and what is wrong there."""
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
    alone = "\n" not in text
    for line, raw in enumerate(text.split("\r" if alone else "\n"), start=1):
        prompt = raw.strip()
        if "\r" in prompt:
            yield line, "a carriage return within a line; end every line alike"
        elif prompt:
            yield line, {column: prompt}


def json_lines(text: str) -> Iterator[tuple[int, Row]]:
    """One JSON object a line; empty lines are passed over."""
    for line, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw, object_pairs_hook=_refuse_repetition)
        except PromptsError as error:
            yield line, str(error)
        except (ValueError, RecursionError):
            yield line, "not JSON"
        else:
            yield line, row if isinstance(row, dict) else "not a JSON object"


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise PromptsError("a column is named twice")
    return row
