"""python -m jobs.verify: what it says, what it removes, and its exit code."""

import os
from pathlib import Path

import pytest

from cluster.results.manifest import Manifest
from cluster.store import open_store
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from jobs.verify import __main__ as verify
from tests.support.manifest_rows import finish


@pytest.fixture
def root(tmp_path, model) -> str:
    """A finished root of ten rows."""
    prompts = [Prompt(line, f"prompt {line}", f"id-{line}") for line in range(1, 11)]
    finish(Manifest(open_store(str(tmp_path))), plan_items(prompts, model, model.defaults))
    return str(tmp_path)


def abandoned(root: str) -> str:
    """A video two days old that a killed attempt left behind."""
    store = open_store(root)
    named = next(store.list("videos/"))
    key = named.replace(named.split(".")[1], "0" * 16)
    store.put_new(key, b"abandoned")
    os.utime(store.uri(key), (0, 0))
    return store.uri(key)


def test_a_whole_root_is_said_to_be_whole(root, capsys):
    assert verify.main([root]) == 0
    said = capsys.readouterr()
    assert "22 objects checked, 0 of them missing or damaged" in said.out
    assert "files: 2/2" in said.err


def test_a_sample_reads_less(root, capsys):
    assert verify.main([root, "--sample", "0.000001"]) == 0
    assert "2 objects checked" in capsys.readouterr().out


def test_garbage_is_removed_on_demand_alone(root, capsys):
    path = abandoned(root)
    assert verify.main([root]) == 0
    assert os.path.exists(path)
    assert verify.main([root, "--gc", "--grace", "1000000"]) == 0
    assert os.path.exists(path)
    assert verify.main([root, "--gc"]) == 0
    assert not os.path.exists(path)
    assert "1 video that nothing names removed" in capsys.readouterr().out
    assert verify.main([root]) == 0


def test_what_a_killed_driver_left_is_removed_with_the_garbage(root, capsys):
    """Its proof that the nodes share the output, which only a driver that runs needs."""
    left = Path(root) / f".shared-{'0' * 16}"
    left.write_bytes(b"0" * 16)
    assert verify.main([root, "--gc"]) == 0
    assert left.exists()
    assert verify.main([root, "--gc", "--grace", "-1"]) == 0
    assert not left.exists()
    assert "1 proof of the shared output removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sample", "0"], "0 must be above 0 and at most 1"),
        (["--sample", "1.5"], "1.5 must be above 0 and at most 1"),
        (["--grace", "nan"], "nan must be a finite number"),
    ],
)
def test_what_cannot_be_asked(root, capsys, arguments, sentence):
    with pytest.raises(SystemExit, match="2"):
        verify.main([root, *arguments])
    assert sentence in capsys.readouterr().err


def test_a_root_that_is_not_finished_says_so(tmp_path, capsys):
    (tmp_path / "job.json").write_text("{}")
    assert verify.main([str(tmp_path)]) == 1
    assert "_SUCCESS is missing; the job has not finished, run it again" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["absent", ""])
def test_where_there_is_no_render_nothing_is_checked(tmp_path, capsys, name):
    assert verify.main([str(tmp_path / name)]) == 2
    assert f"there is no render at {tmp_path / name}" in capsys.readouterr().err
