"""Reads prompts: a file, a folder or a glob of .txt, .jsonl, .csv, .tsv and .parquet files.

Rows come from outside, so each is checked here and the bad ones are named with their line
numbers before any rank starts.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from cluster.media.picture import Picture
from cluster.models.adapter_names import LORA
from cluster.work import adapters, csv_rows, extra, pictures, text_rows, values
from cluster.work.extra import ExtraError
from cluster.work.parquet_rows import BATCH, parquet_batches
from cluster.work.pictures import IMAGE
from cluster.work.prompt_files import PromptFile, find_files
from cluster.work.text_rows import Row
from cluster.work.values import PromptsError
from meancache.json_values import canonical_json, shown

__all__ = ["COLUMNS", "MAX_SEED", "Prompt", "Prompts", "PromptsError", "read_prompts"]

MAX_SEED = 2**63 - 1
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
PROMPT = "prompt"
COLUMNS = (PROMPT, "prompt_id", "seed", IMAGE, LORA, *OVERRIDES)
_VALUES: dict[type, Callable[[str, Any], Any]] = {
    str: values.text,
    float: values.number,
    int: values.whole,
}
# How programs spell a value left out; in a column of numbers it can be nothing else.
_NULLS = ("", "NULL", "null", "NaN", "nan", "None", "NA", "N/A", "<NA>", "\\N")
# What others call the column of prompts.
_USUAL = {"text", "caption", "captions", "prompts", "description", "long_caption", "short_caption"}
_SEPARATORS = re.compile("[;|\t,]")
_NUMBERS = {"seed", *(name for name, kind in OVERRIDES.items() if kind is not str)}
ColumnsProblem = Callable[[Sequence[str]], str | None]

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
        repetition: how many rows before it have the same content, where the row has neither an id
            nor a seed of its own: each is another video.
        image: what the row is drawn from, beside its text; None for text alone.
    """

    line: int
    prompt: str
    prompt_id: str
    seed: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=lambda: NO_OVERRIDES)
    repetition: int = 0
    image: Picture | None = None


class Prompts(list[Prompt]):
    """The rows of the prompts that a job was given, in their order.

    Attributes:
        extra: what else the rows hold, a typed column for each column that is not a prompt's, and
            as many rows as prompts where there is one.
        files: that the rows are in.
    """

    def __init__(
        self, rows: Sequence[Prompt], extra: pa.Table, files: Sequence[PromptFile] = ()
    ) -> None:
        super().__init__(rows)
        self.extra = extra
        self.files = files

    def part(self, start: int, stop: int) -> Prompts:
        """Those from `start` to before `stop`."""
        return Prompts(self[start:stop], self.extra.slice(start, stop - start))


def stable_seed(prompt_id: str, draw: int = 0) -> int:
    """The seed that a prompt without one gets: always the same, 0 .. 2^31 - 1.

    Args:
        prompt_id: of the prompt.
        draw: which of its several seeds, where a job takes more than one.
    """
    digest = hashlib.sha256(canonical_json(["seed", prompt_id, draw])).hexdigest()
    return int(digest[:8], 16) >> 1


def read_prompts(uri: str, column: str = PROMPT) -> Prompts:
    """All rows of a prompts file, or of the files of a folder or a glob, text as it is written.

    In a .txt file white space at both ends of a line is not part of the prompt.

    Args:
        uri: a path or the uri of an object; a folder's files and a glob's are read in the order
            of their names.
        column: the one that holds the prompts; a column `prompt` beside it is carried along.

    Raises:
        PromptsError: the file is missing, empty, of an unknown kind, or has bad rows.
    """
    rows: list[Prompt] = []
    others: list[extra.Batch] = []
    problems = _Problems(f"prompts {uri if uri.isprintable() else shown(uri)}")
    open_rows = bytearray()  # of each row, whether it has neither an id nor a seed of its own
    files = find_files(uri)
    for file in files:
        where = f"{file.name} " if len(files) > 1 or file.name != uri else ""
        for lines, batch, table in _batches(file, column):
            others.append(extra.Batch(f"{where}line {lines[0]}", len(lines), table))
            for line, row in zip(lines, batch, strict=True):
                try:
                    rows.append(_prompt(line, row, column, file.folder))
                    open_rows.append(not isinstance(row, str) and _is_open(row))
                except PromptsError as error:
                    problems.add(f"{where}line {line}: {error}")
    problems.refuse()
    if not rows:
        raise PromptsError(f"{problems.file}: there is no prompt in it; write one a line")
    _number_repetitions(rows, open_rows)
    try:
        return Prompts(rows, extra.joined(others), files)
    except PromptsError as error:
        raise PromptsError(f"{problems.file}: {error}") from None


class _Problems:
    """What is wrong with the rows: the first few, and how many more."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._named: list[str] = []
        self._count = 0

    def add(self, sentence: str) -> None:
        self._count += 1
        if len(self._named) < NAMED_ROWS:
            self._named.append(sentence)

    def refuse(self) -> None:
        """Raises PromptsError where anything was wrong."""
        if self._count:
            more = self._count - len(self._named)
            raise PromptsError(
                f"{self.file}: {'; '.join(self._named)}{f' and {more} more' if more else ''}"
            )


def _batches(file: PromptFile, column: str) -> Iterator[tuple[list[int], list[Row], pa.Table]]:
    """The file's rows in batches: their lines, their known columns, and a table of the others."""
    known = {column, *COLUMNS[1:]}

    def problem(names: Sequence[str]) -> str | None:
        return _columns_problem(names, column)

    if file.ending == "parquet":
        first = 1
        for rows, table in parquet_batches(file.read(), problem, known.__contains__):
            yield list(range(first, first + len(rows))), rows, table
            first += len(rows)
        return
    lines: list[int] = []
    batch: list[Row] = []
    for line, row in _text_rows(file, column, problem):
        lines.append(line)
        batch.append(row)
        if len(batch) == BATCH:
            yield lines, batch, _others(batch, known)
            lines, batch = [], []
    if batch:
        yield lines, batch, _others(batch, known)


def _text_rows(file: PromptFile, column: str, problem: ColumnsProblem) -> Iterator[tuple[int, Row]]:
    text = text_rows.decoded(file.read())
    if not isinstance(text, str):
        yield text
    elif file.ending == "txt":
        yield from text_rows.lines_of_text(text, column)
    elif file.ending == "jsonl":
        for line, row in text_rows.json_lines(text):
            wrong = None if isinstance(row, str) else _misspelt(row, column)
            yield line, wrong or row
    else:
        delimiter = csv_rows.COMMA if file.ending == "csv" else csv_rows.TAB
        for line, row in csv_rows.table_rows(text, delimiter, problem):
            yield line, row if isinstance(row, str) else _without_nulls(row)


def _others(batch: list[Row], known: Collection[str]) -> pa.Table:
    """The columns of a batch that are not a prompt's; a row that cannot be kept says so instead."""
    rows = [
        {}
        if isinstance(row, str)
        else {name: value for name, value in row.items() if name not in known}
        for row in batch
    ]
    try:
        return extra.of_values(rows)
    except ExtraError as error:
        batch[error.row] = str(error)
        return pa.table({})


def _without_nulls(row: dict[str, Any]) -> Row:
    """A row of a CSV without what can only be a value left out: no number is spelt so."""
    row = {
        name: None
        if (name in _NUMBERS and value in _NULLS) or (name == "prompt_id" and value == "")
        else value
        for name, value in row.items()
    }
    if "\\N" in row.values():
        return "a text of \\N, which is null to some programs; leave the field empty"
    return row


def _columns_problem(names: Sequence[str], column: str) -> str | None:
    """What is wrong with a table's columns, or None."""
    if len(set(names)) < len(names):
        return "a column is named twice"
    if problem := _misspelt(names, column):
        return problem
    others = [name for name in names if name != column and name not in COLUMNS[1:]]
    return extra.names_problem(others) if column in names else _missing(names, column)


def _missing(names: Sequence[str], column: str) -> str:
    """That there is no column of prompts, and which it may be."""
    some = ", ".join(map(shown, names[:NAMED_ROWS])) + ", ..." * (len(names) > NAMED_ROWS)
    sentence = f"no column {shown(column)}, but {some}"
    if len(names) == 1 and (found := _SEPARATORS.search(names[0])):
        return f"{sentence}; separate columns by commas (tabs in a .tsv), not by {found[0]!r}"
    likely = [shlex.quote(name) for name in names if name.casefold() in _USUAL]
    if likely:
        return f"{sentence}; if that holds the prompts, give --prompt-column {' or '.join(likely)}"
    return f"{sentence}; name the one that holds the prompts by --prompt-column"


def _misspelt(names: Collection[str], column: str) -> str | None:
    """The name that would be a column of a prompt in other letters: it would be left unread."""
    known = {column, *COLUMNS[1:]}
    spelt = known - {IMAGE}  # pictures that are carried along are called Image, too
    for name in names:
        if name not in known:
            meant = re.sub(r"[\s_-]+", "_", name.strip("\ufeff \t\r\n").casefold())
            if meant in spelt and meant not in names:
                return f"the column {shown(name)} is none of a prompt's: is it {meant!r}?"
    return None


def _is_open(row: Mapping[str, Any]) -> bool:
    return row.get("seed") is None and row.get("prompt_id") is None


def _number_repetitions(rows: list[Prompt], open_rows: Sequence[int]) -> None:
    """Gives each repetition of a row without id and seed an id, and so a seed, of its own."""
    ids = pa.array(row.prompt_id for row, is_open in zip(rows, open_rows, strict=True) if is_open)
    if len(ids.unique()) == len(ids):
        return
    seen: Counter[str] = Counter()
    for place, row in enumerate(rows):
        if not open_rows[place]:
            continue
        repetition = seen[row.prompt_id]
        seen[row.prompt_id] += 1
        if repetition:
            content = [row.prompt, None, dict(row.overrides), *_of_image(row.image), repetition]
            rows[place] = replace(row, prompt_id=_digest(content), repetition=repetition)


def _prompt(line: int, row: Row, column: str, folder: str) -> Prompt:
    """Checks one row of a file in a folder. Raises PromptsError with the rule it breaks."""
    if isinstance(row, str):
        raise PromptsError(row)
    prompt = row.get(column)
    if column not in row and any(name.casefold() in _USUAL for name in row):
        raise PromptsError(_missing(list(row), column))
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        raise PromptsError("no prompt")
    overrides = {
        name: _VALUES[kind](name, row[name])
        for name, kind in OVERRIDES.items()
        if row.get(name) is not None
    }
    seed, own_id = row.get("seed"), row.get("prompt_id")
    if seed is not None:
        seed = values.whole("seed", seed)
        if not 0 <= seed <= MAX_SEED:
            raise PromptsError(f"seed {shown(seed)} must be between 0 and {MAX_SEED}")
    text = values.text(column, prompt)
    own_id = None if own_id is None else values.prompt_id(own_id)
    if row.get(LORA) is not None:
        overrides[LORA] = adapters.of_value(row[LORA], folder)
    image = pictures.of_value(row.get(IMAGE), folder)
    prompt_id = own_id or _digest([text, seed, overrides, *_of_image(image)])
    return Prompt(line, text, prompt_id, seed, overrides or NO_OVERRIDES, image=image)


def _of_image(image: Picture | None) -> list[str]:
    """What tells rows apart by their images."""
    return [] if image is None else [image.sha256 or str(image.uri)]


def _digest(content: object) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()[:16]
