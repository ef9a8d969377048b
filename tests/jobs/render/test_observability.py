"""What Prometheus scrapes and logs hold of a real render, on a real cluster and a real store."""

from __future__ import annotations

import io
import json
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from cluster.fleet.gang import MAX_ATTEMPTS
from cluster.results import manifest, verification
from cluster.results.attempts import Attempts
from cluster.results.manifest import Manifest
from cluster.store import open_store
from jobs.render import workflow as render
from tests.jobs.conftest import PROMPTS
from tests.support.commands import PROJECT
from tests.support.configs import configured
from tests.support.faults import Fault, FaultProxy

STEPS = 4
STAGES = ("text", "denoise", "decode", "gang", "render", "encode", "upload")
Samples = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Rendered:
    """What a render on S3 left: its rows, what was scraped, the leader's log, requests refused."""

    root: str
    rows: list[dict[str, Any]]
    samples: Samples
    lines: list[dict[str, Any]]
    refused: int


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, new_s3_root, s3_endpoint) -> Rendered:
    """Four prompts: one whose attempts are used up, one that failed once, two others."""
    root = new_s3_root()
    prompts = tmp_path_factory.mktemp("observed") / "prompts.txt"
    prompts.write_text("\n".join([*PROMPTS, "a white circle moving up on a dark background"]))
    command = [
        *("--model", "tiny", "--prompts", str(prompts), "--steps", str(STEPS)),
        *("--gangs", "1", "--output", root),
    ]
    refused = set()

    def refuse_each_video_once(request):
        if request.method != "PUT" or "/videos/" not in request.key or request.key in refused:
            return None
        refused.add(request.key)
        return Fault("503")

    with (
        FaultProxy(s3_endpoint, refuse_each_video_once) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)  # workers have the cluster's environment
        ray.shutdown()
        cluster = ray.init(
            "local",
            num_cpus=2,
            log_to_driver=False,
            _system_config={"metrics_report_interval_ms": 200},
        )
        try:
            config = configured("render", command)
            prepared = render.prepare(config)
            job = Manifest(prepared.store)
            for _ in range(MAX_ATTEMPTS):
                Attempts(job.store).record(prepared.items[0], "rank 0 died")
            Attempts(job.store).record(prepared.items[1], "rank 0 died")
            assert render.run(config).failed == 1
            rows = [job.receipt(item) for item in prepared.items]
            samples = scraped(expected(rows))
            lines = leader_lines(Path(cluster.address_info["session_dir"]))
        finally:
            ray.shutdown()
    return Rendered(root, rows, samples, lines, proxy.counts["503"])


def expected(rows: list[dict[str, Any]]) -> Samples:
    """What the counters should come to, by the rows; a leader's reports come one by one."""
    ok = sum(row["status"] == manifest.OK for row in rows)
    return {
        ("items_total", "ok"): ok,
        ("items_total", "failed"): len(rows) - ok,
        # One was given up after three attempts, of which two were retries, and one did with two.
        ("retries_total", ""): 3,
        ("forwards_total", ""): ok * STEPS,
        ("store_retries_total", ""): ok,
        **{("stage_seconds_total", stage): seconds(rows, stage) for stage in STAGES},
        ("goodput", ""): seconds(rows, "ideal") / seconds(rows, "gang"),
    }


def scraped(wanted: Samples, patience_s: float = 60) -> Samples:
    """This project's metrics at the cluster's one node: once they are as wanted, or at last."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + patience_s
    while True:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        found: Samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                label = sample.labels.get("status") or sample.labels.get("stage") or ""
                if sample.name.startswith("ray_meancache_"):
                    found[sample.name.removeprefix("ray_meancache_"), label] = sample.value
        complete = all(found.get(name) == pytest.approx(wanted[name]) for name in wanted)
        if complete or time.monotonic() > deadline:
            return found


def leader_lines(session: Path) -> list[dict[str, Any]]:
    text = "".join(path.read_text() for path in (session / "logs").glob("worker-*.err"))
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_root_on_s3_holds_the_dataset_whole(rendered):
    store = open_store(rendered.root)
    part = pq.read_table(io.BytesIO(store.get(Manifest(store).part_key(0)))).to_pylist()
    assert [row["item_id"] for row in part] == [row["item_id"] for row in ok_rows(rendered)]
    assert all(row["uri"] == f"{rendered.root}/{row['key']}" for row in part)
    findings = verification.verify(store)
    assert [problem for found in findings for _, problem in found if problem] == []


def ok_rows(rendered: Rendered) -> list[dict[str, Any]]:
    return [row for row in rendered.rows if row["status"] == manifest.OK]


def seconds(rows: list[dict[str, Any]], stage: str) -> float:
    """Of a stage, by the rows that know it: a column's or one of their metrics."""
    return sum({**row, **row["metrics"]}.get(f"{stage}_s") or 0.0 for row in rows)


def test_items_are_counted_by_status(rendered):
    assert rendered.samples["items_total", "ok"] == len(ok_rows(rendered)) == 3
    assert rendered.samples["items_total", "failed"] == 1


def test_retries_and_forwards_are_those_of_the_rows(rendered):
    assert rendered.samples["retries_total", ""] == 2 + 1
    assert rendered.samples["forwards_total", ""] == 3 * STEPS


def test_seconds_of_each_stage_are_those_of_the_rows(rendered):
    stages = {stage for name, stage in rendered.samples if name == "stage_seconds_total"}
    assert stages >= set(STAGES)
    for stage in stages:
        counted = rendered.samples["stage_seconds_total", stage]
        assert counted == pytest.approx(seconds(rendered.rows, stage))
        assert counted > 0


def test_goodput_is_the_share_of_the_gangs_time_that_forwards_take_at_their_fastest(rendered):
    ideal, denoising, gang = (
        seconds(rendered.rows, stage) for stage in ("ideal", "denoise", "gang")
    )
    assert 0 < ideal < denoising
    assert rendered.samples["goodput", ""] == pytest.approx(ideal / gang)
    assert 0 < rendered.samples["goodput", ""] < 1


def test_repeated_requests_to_the_store_are_counted(rendered):
    assert rendered.refused == 3
    assert rendered.samples["store_retries_total", ""] == rendered.refused


def test_the_page_names_every_metric_that_there_is(rendered):
    page = (PROJECT / "docs/deployment.md").read_text(encoding="utf-8")
    for name in {name for name, _ in rendered.samples}:
        assert f"`ray_meancache_{name}" in page, name


def test_the_log_has_one_line_for_each_item(rendered):
    items = [line for line in rendered.lines if line["message"] == "item committed"]
    assert {line["item_id"] for line in items} == {row["item_id"] for row in rendered.rows}
    assert len(items) == len(rendered.rows)
    for line in items:
        row = next(row for row in rendered.rows if row["item_id"] == line["item_id"])
        assert (line["level"], line["logger"]) == ("INFO", "cluster.fleet.logs")
        for name in ("status", "attempts", "shard", "world_size"):
            assert line[name] == row[name]
        assert ("denoise_s" in line) == (row["status"] == manifest.OK)


def test_the_log_tells_of_the_stores_troubles_and_never_a_prompt(rendered):
    repeated = [line for line in rendered.lines if line["logger"] == "cluster.store.remote"]
    assert len(repeated) == rendered.refused
    text = json.dumps(rendered.lines)
    for row in rendered.rows:
        assert row["prompt"] not in text
    assert "rank 0 died" not in text  # errors may quote prompts
