"""The page on files: its code runs as it is printed, and its tables name what there is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cluster.models.model import find_model
from cluster.results.manifest import SCHEMA, Manifest
from cluster.store import open_store
from cluster.work import pictures
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from jobs.evaluate.table import TINY_SCHEMA
from meancache import Schedule
from meancache.calibration_file import MULTIGRAPH_SCHEMA, STATISTICS_SCHEMA
from tests.support.commands import PROJECT
from tests.support.manifest_rows import finish

PAGE = (PROJECT / "docs/formats.md").read_text(encoding="utf-8")
CODE = {
    found[1]: found[2]
    for found in re.finditer(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL)
}


def section(heading: str) -> str:
    return PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_the_page_has_the_code_that_is_tried_here():
    assert set(CODE) == {"read_manifest", "read_video", "read_schedule", "read_graph"}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder that the page's code runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def root(here) -> None:
    """A finished render root: a shard with two rows given up, and one of a single such row."""
    model = find_model("tiny")
    prompts = [Prompt(line, f"prompt {line}", f"id-{line}") for line in range(1, 252)]
    items = plan_items(prompts, model, model.defaults)
    finish(Manifest(open_store(str(here / "out"))), items, failed={0, 7, 250})


def test_a_manifest_is_read_with_duckdb(root):
    pytest.importorskip("duckdb")
    names: dict = {}
    exec(CODE["read_manifest"], names)
    prompts = names["rows"].column("prompt").to_pylist()
    assert prompts == [f"prompt {line}" for line in range(1, 251) if line not in (1, 8)]


def test_videos_are_read_and_checked_with_pyarrow(root):
    names: dict = {}
    exec(CODE["read_video"], names)
    assert names["table"].num_rows == 248
    assert names["row"]["metrics.psnr"] == 31.5
    Path("out", names["row"]["key"]).write_bytes(b"damaged")
    with pytest.raises(AssertionError):
        exec(CODE["read_video"], {})


def test_a_schedules_id_is_computed_as_the_page_says(here):
    path = Path("schedules/tiny/fitted-b10.json")
    path.parent.mkdir(parents=True)
    shutil.copy(PROJECT / path, path)
    names: dict = {}
    exec(CODE["read_schedule"], names)
    assert tuple(names["computed"]) == Schedule.load(path).computed_steps


def test_a_graph_is_read_with_duckdb(here, graph):
    pytest.importorskip("duckdb")
    Path("out/graph").mkdir(parents=True)
    Path("out/graph/multigraph.parquet").write_bytes(graph.multigraph_parquet())
    names: dict = {}
    exec(CODE["read_graph"], names)
    assert len(names["cheapest"]) == 10
    assert all(stop - start >= 5 for start, stop, _, _ in names["cheapest"])


def test_every_column_of_a_part_is_explained():
    rows = re.findall(r"^\| (`.*?) \|", section("A render root"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w.]+)`", row)} == {
        *SCHEMA.names,
        *pictures.COLUMNS,
        "extra.NAME",
    }


def test_every_key_of_a_schedule_is_explained():
    rows = re.findall(r"^\| `(\w+)` \|", section("A schedule"), re.MULTILINE)
    files = [*(PROJECT / "schedules/tiny").glob("*.json")]
    assert set(rows) == {key for path in files for key in Schedule.load(path).to_json()}


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("A graph", [*STATISTICS_SCHEMA.names, *MULTIGRAPH_SCHEMA.names]),
        ("An evaluation", TINY_SCHEMA.names),
    ],
)
def test_every_column_of_the_other_tables_is_explained(heading, columns):
    for name in columns:
        assert f"`{name}`" in section(heading), name
