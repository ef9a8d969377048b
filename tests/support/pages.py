"""The fenced blocks of the project's pages, and the commands that they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import PROJECT, simple_commands

README = PROJECT / "README.md"
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "schedules").rglob("*.md")),
]
TYPED = ("console", "sh")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, where it runs ('' for here) and its text."""

    page: Path
    line: int
    language: str
    runs: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*) ?(.*)\n([\s\S]*?)^```$", text, re.MULTILINE):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2], found[3])


def commands(block: Block) -> list[str]:
    """What is typed: all lines of a script, those behind a prompt where output follows them."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        return [line for line in text.splitlines() if simple_commands(line)]
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def readme(runs: str) -> list[str]:
    """The README's commands whose fence says that they run there."""
    typed = (block for block in blocks(README) if block.language in TYPED and block.runs == runs)
    return [command for block in typed for command in commands(block)]
