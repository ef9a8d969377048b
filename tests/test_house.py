"""The rooms stay small and keep to one word a thing."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.commands import PROJECT

MOST_ENTRIES = {"cluster": 9, "jobs": 13}
MOST_MODULE_LINES = 350
MOST_FUNCTION_LINES = 60

RETIRED = (
    *("studio", "codec", "contest", "contender", "entrant", "rival", "standing", "verdict"),
    *("night", "bury", "buried", "healing", "peer"),
)
# What keeps such a name for good: formats, flags, and words of others.
KEPT = re.compile(
    r"""nights/ | "nights" | --night\b | "night" | \bnightly\b | \bnight[:=] | \.night\b
    | `night` | closed\ by\ peer | --peers | "contenders" | codec_name | codec_context
    | \bcodecs\b""",
    re.VERBOSE,
)
VIDEO_CODECS = ("cluster/media/", "tests/cluster/media/")
KINDS = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".css", ".js", ".json", ".sh"}


def modules(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((PROJECT / room).rglob("*.py"))]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def tracked() -> list[str]:
    """Text files of the project, but the changelog and this page, which names the words."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("needs a git checkout")
    named = {"CHANGELOG.md", "tests/test_house.py"}
    names = [name for name in done.stdout.splitlines() if name not in named]
    return [name for name in names if Path(name).suffix in KINDS and (PROJECT / name).exists()]


@pytest.mark.parametrize("room", MOST_ENTRIES)
def test_a_room_has_few_entries(room):
    entries = [path.name for path in (PROJECT / room).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES[room], sorted(entries)


def test_a_module_of_cluster_or_jobs_fits_in_one_reading():
    lines = {path: len(path.read_text().splitlines()) for path in modules("cluster", "jobs")}
    assert not {
        str(path.relative_to(PROJECT)): count
        for path, count in lines.items()
        if count > MOST_MODULE_LINES
    }


def test_a_function_fits_on_a_screen():
    assert not [
        f"{path.relative_to(PROJECT)}:{node.lineno} {node.name}"
        for path in modules("meancache", "cluster", "jobs")
        for node in functions(path)
        if node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES
    ]


@cache
def texts() -> dict[str, str]:
    """What is searched, by file, in lower case and without what is kept."""
    contents = {name: (PROJECT / name).read_text(encoding="utf-8") for name in tracked()}
    return {name: KEPT.sub("", text).lower() for name, text in contents.items()}


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_found_nowhere(word):
    pattern = re.compile(rf"(?<![a-z]){word}s?(?![a-z])")
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts().items()
        if word in text and not (word == "codec" and name.startswith(VIDEO_CODECS))
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)
