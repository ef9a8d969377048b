"""Reads CSV and TSV strictly, as RFC 4180 writes them, and refuses what other dialects write.

A lenient reader merges rows at a quote that is not closed and changes texts that another program
has escaped with backslashes. Here a field that begins with a quote ends with one, a quote inside it
is doubled, and no other field holds one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

COMMA, TAB = ",", "\t"
# Spark, MySQL and others write two backslashes for one, and in a TSV letters for a tab, a line
# break and a null.
_ESCAPES = {COMMA: re.compile(r"\\\\"), TAB: re.compile(r"\\[tnrN\\]")}

Fields = list[str | None]


def table_rows(
    text: str, delimiter: str, columns_problem: Callable[[Sequence[str]], str | None]
) -> Iterator[tuple[int, dict[str, str | None] | str]]:
    """The rows below the header, each with the line on which it begins.

    Args:
        text: the file.
        delimiter: COMMA or TAB.
        columns_problem: the header's names -> what is wrong with them, or None.

    Yields:
        The line and the row by column, None where an unquoted field is empty; or the line and what
        is wrong with it, after which a file that cannot be followed any further ends.
    """
    names: list[str] = []
    for line, fields in _records(text, delimiter):
        if isinstance(fields, str):
            yield line, fields
            return
        if not names:
            names = _named(fields)
            if problem := columns_problem(names):
                yield line, problem
                return
        elif len(fields) != len(names):
            yield line, f"{len(fields)} fields where the header has {len(names)}"
        else:
            yield line, dict(zip(names, fields, strict=True))


def _named(fields: Sequence[str | None]) -> list[str]:
    """The header's names; a column without one, as that of pandas' index, is named by its place."""
    return [name or f"column_{place}" for place, name in enumerate(fields, start=1)]


def _records(text: str, delimiter: str) -> Iterator[tuple[int, Fields | str]]:
    """Each record with its first line: its fields, or what is wrong with it, which ends the file.

    Lines without anything are passed over.
    """
    # A carriage return alone ends a line only where no other character does.
    line_end, counted = (r"\r\n|\n", "\n") if "\n" in text else (r"\r", "\r")
    field = re.compile(
        rf'(?:"(?P<quoted>[^"]*(?:""[^"]*)*)"|(?P<plain>[^"{delimiter}\r\n]*))'
        rf"(?P<end>{delimiter}|{line_end}|\Z)"
    )
    place, line, begun = 0, 1, 1
    fields: Fields = []
    while place < len(text) or fields:
        found = field.match(text, place)
        if found is None:
            yield begun, _problem(text, place)
            return
        quoted, plain = found["quoted"], found["plain"]
        if plain and plain.endswith("\\") and found["end"] == delimiter:
            yield begun, f"a backslash before {delimiter!r}, an escape to some programs; quote it"
            return
        if _ESCAPES[delimiter].search(found[0]):
            yield begun, "a backslash escape, which programs read in several ways; write .jsonl"
            return
        fields.append(plain or None if quoted is None else quoted.replace('""', '"'))
        line += found[0].count(counted)
        place = found.end()
        if found["end"] == delimiter:
            continue
        if fields != [None]:
            yield begun, fields
        fields, begun = [], line


def _problem(text: str, place: int) -> str:
    """Why no field can be read at a place."""
    if text[place] != '"':
        end = re.compile(r'["\r]').search(text, place)
        if end is not None and end[0] == "\r":
            return "not CSV (a carriage return in a field without quotes)"
        return "not CSV (a quote in a field that does not begin with one)"
    if re.compile(r'"[^"]*(?:""[^"]*)*"').match(text, place):
        return "not CSV (a quote in a quoted field that is not doubled)"
    return "not CSV (a quote that is never closed)"
