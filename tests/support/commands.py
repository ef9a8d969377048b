"""Commands that people copy: parsed by the very parsers that would run them, or run.

    check("python -m jobs.render --model tiny --prompts prompts.txt --output out")
    run("python -m jobs.render --model tiny --prompts prompts.txt --output out", folder)

A command of jobs, Ray, torchrun or a module of the project is parsed in full; of other programs
only the names are known here, and the files of the project that they are given.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import click
import configargparse
from ray.scripts.scripts import cli as ray_cli

PROJECT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {path.name for path in PROJECT.iterdir() if path.is_dir()} - {"out"}
# Of programs that are not there to be asked.
KNOWN = {"docker", "echo", "git", "head", "helm", "kubectl", "lint-imports", "mypy", "ruff"}
KNOWN |= {"python3", "."}  # which make and enter a virtual environment


class CommandError(AssertionError):
    """A command that would be refused; says by whom and why."""


class _Parsed(BaseException):
    """A module's `main` has parsed its arguments, and goes no further."""


def check(line: str) -> None:
    """Parses a line of shell, each command of its pipes and lists.

    Raises:
        CommandError: one of them is unknown, would be refused, or names a file that is not there.
    """
    for words in simple_commands(line):
        _check_words(words)


def run(line: str, folder: Path) -> str:
    """Runs a line of shell in a folder, with the programs of this environment; what it printed.

    Raises:
        CommandError: it ended with another exit code than 0.
    """
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(PROJECT),
    }
    program = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=folder,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if program.returncode != 0:
        raise CommandError(f"{line}\n{program.stdout}\n{program.stderr}")
    return program.stdout


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command in a line, without the files that it is redirected to."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in ("|", "||", "&&", ";"):
            commands.append([])
        elif word in (">", ">>", "<"):
            next(words)
        else:
            commands[-1].append(word)
    return [words for words in commands if words]


def _check_words(words: list[str]) -> None:
    name, *rest = words
    for word in rest:
        if word.split("/")[0] in FOLDERS and not (PROJECT / word.split("::")[0]).exists():
            raise CommandError(f"{shlex.join(words)}: the project has no {word}")
    check_one = CHECKS.get(name)
    if check_one is not None:
        check_one(rest)
    elif name not in KNOWN:
        raise CommandError(f"{shlex.join(words)}: nobody here knows the program {name!r}")


def _python(words: list[str]) -> None:
    if len(words) < 2 or words[0] != "-m":
        raise CommandError(f"python {shlex.join(words)}: give -m MODULE")
    _module(words[1], words[2:])


def _module(name: str, arguments: list[str]) -> None:
    found = importlib.util.find_spec(name)
    if found is not None and found.submodule_search_locations:
        name = f"{name}.__main__"
        found = importlib.util.find_spec(name)
    if found is None:
        raise CommandError(f"python -m {name}: there is no such module")
    if name.startswith("jobs.") or arguments:
        main = importlib.import_module(name).main
        _parse(lambda: _until_parsed(main, arguments), [name, *arguments])


def _until_parsed(main: Callable[[], object], arguments: list[str]) -> None:
    """Runs a `main` with these arguments up to where its own parser has accepted them."""

    def stopping(parse_args: Callable[..., object]) -> Callable[..., object]:
        def parse(*given: Any, **named: Any) -> None:
            parse_args(*given, **named)
            raise _Parsed

        return parse

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["", *arguments]))
        for parser in (argparse.ArgumentParser, configargparse.ArgumentParser):
            replaced = mock.patch.object(parser, "parse_args", stopping(parser.parse_args))
            stack.enter_context(replaced)
        try:
            main()
        except _Parsed:
            return
    raise CommandError(f"{main.__module__}: its main asks no parser")


def _torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    options = _parse(lambda: get_args_parser().parse_args(words), ["torchrun", *words])
    if not options.module:
        raise CommandError(f"torchrun {shlex.join(words)}: give -m MODULE")
    _module(options.training_script, options.training_script_args)


def _ray(words: list[str]) -> None:
    command: click.Command = ray_cli
    said, left = ["ray"], list(words)
    while isinstance(command, click.Group):
        if not left or left[0] not in command.commands:
            raise CommandError(f"ray {shlex.join(words)}: Ray has no such command")
        said.append(left.pop(0))
        command = command.commands[said[-1]]
    try:
        context = command.make_context(" ".join(said), left)
    except click.ClickException as error:
        raise CommandError(f"ray {shlex.join(words)}: {error.format_message()}") from error
    if said[1:] == ["job", "submit"]:
        _check_words(list(context.params["entrypoint"]))


def _pip(words: list[str]) -> None:
    extras = SETTINGS["project"]["optional-dependencies"]
    for word in words:
        if (found := re.fullmatch(r"\.\[(.+)\]", word)) and not set(found[1].split(",")) <= {
            *extras
        }:
            raise CommandError(f"pip {shlex.join(words)}: the extras are {sorted(extras)}")


def _pytest(words: list[str]) -> None:
    declared = SETTINGS["tool"]["pytest"]["ini_options"]["markers"]
    marks = {marker.split(":")[0] for marker in declared}
    for option, value in pairwise(words):
        if option == "-m" and value not in marks:
            raise CommandError(f"pytest {shlex.join(words)}: the marks are {sorted(marks)}")
    for word in words:
        path, _, test = word.partition("::")
        if test and f"def {test}(" not in (PROJECT / path).read_text(encoding="utf-8"):
            raise CommandError(f"pytest {shlex.join(words)}: {path} has no {test}")


def _export(words: list[str]) -> None:
    for word in words:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*=.+", word):
            raise CommandError(f"export {word}: give NAME=value")


def _parse(parse: Callable[[], object], words: list[str]) -> object:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as error:
        reason = said.getvalue().strip().splitlines()[-1:]
        raise CommandError(f"{shlex.join(words)}: {''.join(reason)}") from error


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "python": _python,
    "torchrun": _torchrun,
    "ray": _ray,
    "pip": _pip,
    "pytest": _pytest,
    "export": _export,
}
