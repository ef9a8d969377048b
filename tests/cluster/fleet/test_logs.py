"""A leader's log: a JSON object a line, with the item's id and without what it says."""

import io
import json
import logging
import sys

import pytest

from cluster.fleet import logs
from cluster.results.manifest import Manifest, stage_seconds
from cluster.store import open_store
from tests.support.manifest_rows import row_of


@pytest.fixture
def leader_log(monkeypatch):
    """What this process logs, its loggers set as a leader's for a while."""
    ours = logging.getLogger("cluster")
    before = ours.handlers, ours.level, ours.propagate
    written = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", written)
        logs.to_stderr()
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    ours.handlers, ours.level, ours.propagate = before


@pytest.fixture
def row(items, tmp_path):
    job = Manifest(open_store(str(tmp_path)))
    return row_of(items[0], job, render_s=1.23456, metrics={"psnr": 31.5, "denoise_s": 1.0})


def test_an_item_is_one_line_of_json(leader_log, row):
    logs.item(row)
    (line,) = leader_log()
    assert (line["level"], line["logger"]) == ("INFO", "cluster.fleet.logs")
    assert (line["item_id"], line["status"]) == (row["item_id"], "ok")
    assert (line["render_s"], line["denoise_s"]) == (1.235, 1.0)
    assert row["prompt"] not in json.dumps(line)


def test_a_record_of_many_lines_is_one_line_too(leader_log):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("cluster.fleet.gang").exception("it\nfailed")
    (line,) = leader_log()
    assert line["message"] == "it\nfailed"
    assert "ValueError: two\nlines" in line["exception"]


def test_what_is_below_info_is_not_written(leader_log):
    logging.getLogger("cluster.store.s3").debug("detail")
    assert leader_log() == []


def test_seconds_of_stages_are_what_a_row_knows_of_them(row):
    assert stage_seconds(row) == {"render": 1.23456, "denoise": 1.0}
