"""README and docs: what can be copied from them works, and what they point to exists.

What the fence of a block of commands says besides their language is where they run:

    ```sh            in tests/jobs/demo/test_workflow.py, one after the other after the demo
    ```sh few        in tests/test_readme.py, with a few of the prompts that they write into a file
    ```sh checkout   in a checkout of the project: by .ci/run, the demo itself or another test
    ```sh cluster    on a cluster, or with tools that are not there in tests

Every command is parsed by what it is for, wherever it runs; those of scripts in docs, too.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.support.commands import PROJECT, CommandError, check
from tests.support.pages import PAGES, README, TYPED, Block, blocks, commands

ELSEWHERE = ("checkout", "cluster")
# Python of pages is run, by tests of their own.
PARSED = {"python": ast.parse, "yaml": yaml.safe_load, "json": json.loads}
SHOWN = ("mermaid", "text")


def script(path: Path) -> Block:
    """A shell script, as if it were one block of commands."""
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(("#", "set "))]
    return Block(path, 1, "sh", "long", "\n".join(lines))


BLOCKS = [block for page in PAGES for block in blocks(page)]
SCRIPTS = [script(path) for path in sorted((PROJECT / "docs").rglob("*.sh"))]
COMMANDS = [
    pytest.param(command, id=f"{block} {command[:60]}")
    for block in (*BLOCKS, *SCRIPTS)
    if block.language in TYPED
    for command in commands(block)
]


def test_every_fenced_block_is_of_a_kind_that_is_checked_here():
    assert not [str(block) for block in BLOCKS if block.language not in {*TYPED, *PARSED, *SHOWN}]
    silent = [str(block) for block in BLOCKS if block.language in TYPED and not commands(block)]
    assert not silent, "a block of commands has none; call it text"
    known = {"", "few", *ELSEWHERE}
    assert not [str(block) for block in BLOCKS if block.runs not in known]


def test_only_the_readme_has_commands_that_run_here():
    typed = [block for block in BLOCKS if block.language in TYPED and block.page != README]
    assert not [str(block) for block in typed if block.runs not in ELSEWHERE]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted_by_what_it_is_for(command):
    check(command)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in PARSED], ids=str)
def test_code_and_data_parse(block):
    assert PARSED[block.language](block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)
    for path, anchor in links:
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", line).replace(" ", "-").lower() for line in headings}
            assert anchor in anchors
    for path in re.findall(r"`((?:meancache|cluster|jobs|tests|docs)/[\w./-]+)`", text):
        assert (PROJECT / path).exists(), path


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("python -m jobs.render --model tiny --promts p.txt --output out", "promts"),
        ("python -m jobs.render --model tiny --output out", "--prompts"),
        ("python -m jobs.nothing", "no such module"),
        ("python -m meancache.tiny.captions everything", "everything"),
        ("ray job submit --workdir . -- python -m jobs.demo --output out", "--workdir"),
        ("ray job submit -- python -m jobs.demo", "--output"),
        ("ray jobs list", "no such command"),
        ('pip install -e ".[tests]"', "extras"),
        ("pytest -m sluggish", "marks"),
        ("pytest tests/test_docs.py::test_nothing", "has no"),
        ("kubectl apply --filename cluster/deploy/nothing.yaml", "has no"),
        ("cd out && rm -r *", "program"),
    ],
)
def test_a_command_that_would_be_refused_is_found_out(command, reason):
    with pytest.raises(CommandError, match=reason):
        check(command)
