"""Bulk rendering on a real Ray cluster: each row once, the same command resumes."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.media import video
from cluster.results import verification
from cluster.results.attempts import Attempts
from cluster.store import open_store
from cluster.work.plan import WorkItem
from jobs.export import __main__ as export
from jobs.render import __main__ as render
from jobs.render.workflow import prepare
from tests.jobs.conftest import PROMPTS, QUICK
from tests.support.configs import configured

pytestmark = pytest.mark.usefixtures("shared_cluster")


@pytest.fixture
def command(tmp_path, prompts) -> list[str]:
    root = str(tmp_path / "out")
    what = ["--model", "tiny", "--prompts", prompts, *QUICK]
    return [*what, "--gangs", "1", "--output", root]


@dataclass(frozen=True)
class Rendered:
    """A finished render: its root, and the packages that its driver and its leader imported."""

    root: Path
    driver: list[str]
    leader: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_module) -> Rendered:
    """A render by a gang of two ranks, its driver a process of its own."""
    folder = tmp_path_factory.mktemp("rendered")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    prompts, root = str(folder / "prompts.txt"), str(folder / "out")
    command = ["--model", "tiny", "--prompts", prompts, *QUICK, "--output", root]
    done = run_module("tests.support.imported", *command, "--gang-size", "2")
    assert done.returncode == 0, done.stderr
    return Rendered(folder / "out", **json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def rendered(finished) -> Path:
    """The root of that render."""
    return finished.root


@pytest.fixture
def root(tmp_path, rendered) -> Path:
    """A copy of the finished root where `command` finds it."""
    return Path(shutil.copytree(rendered, tmp_path / "out"))


def rows(root: Path) -> list[dict]:
    files = sorted((root / "manifest" / "parts").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def problems(root: str) -> list[str]:
    findings = verification.verify(open_store(root))
    return [problem for found in findings for _, problem in found if problem]


def contents(root: Path) -> dict[Path, bytes]:
    """All files of a root but its page, which is derived from them and may be replaced."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "report.html")
    return {path: path.read_bytes() for path in files}


def test_a_render_leaves_a_dataset_that_anyone_may_read(rendered):
    found = rows(rendered)
    assert [row["prompt"] for row in found] == PROMPTS
    assert [row["index"] for row in found] == [0, 1, 2]
    for row in found:
        assert (row["status"], row["world_size"], row["nfe"]) == ("ok", 2, 4)
        assert video.decode((rendered / row["key"]).read_bytes()).shape == (9, 32, 32, 3)
    assert (rendered / "manifest" / "_SUCCESS").exists()


def test_neither_the_driver_nor_a_leader_imports_torch(finished):
    for imported in (finished.driver, finished.leader):
        assert "ray" in imported
        assert not {"torch", "diffusers", "xfuser", "transformers", "accelerate"} & set(imported)


def test_the_same_command_again_renders_nothing(root, command, capsys):
    before = contents(root)
    assert render.main(command) == 0
    assert "0 videos to do (0 forwards), 3 already done" in capsys.readouterr().out
    assert contents(root) == before


def test_a_finished_job_has_a_page_and_writes_it_again_only_where_it_is_gone(
    root, rendered, command
):
    page = root / "report.html"
    written = page.read_bytes().replace(str(rendered).encode(), str(root).encode())
    assert written.count(b"<figure") == len(PROMPTS)
    page.write_bytes(b"the reader's own")
    assert render.main(command) == 0
    assert page.read_bytes() == b"the reader's own"
    page.unlink()
    assert render.main([*command, "--dry-run"]) == 0
    assert not page.exists()
    assert render.main(command) == 0
    assert page.read_bytes() == written


@pytest.mark.parametrize("lost", ["_SUCCESS", "part-*.parquet"])
def test_a_driver_killed_between_commits_is_completed_without_a_rank(root, command, lost):
    before = contents(root)
    for pattern in {"_SUCCESS", lost}:
        for path in (root / "manifest").rglob(pattern):
            path.unlink()
    assert render.main(command) == 0
    assert contents(root) == before


def test_what_a_killed_driver_left_out_and_what_was_damaged_is_rendered_and_nothing_else(
    root, command, capsys
):
    before = contents(root)
    damaged, killed, whole = rows(root)
    for path in [*(root / "manifest").rglob("*.*"), root / "manifest" / "_SUCCESS"]:
        path.unlink()
    # As the documentation says to do with a video that `verify` has found damaged.
    (root / damaged["key"]).unlink()
    for row in (damaged, killed):
        (root / "receipts" / "000000" / f"{row['item_id']}.json").unlink()
    assert render.main(command) == 0
    said = capsys.readouterr()
    assert "render: 2 videos to do (8 forwards), 1 already done" in said.out
    assert "videos: 2/2" in said.err
    after = contents(root)
    for row in (killed, whole):
        assert after[root / row["key"]] == before[root / row["key"]]
    assert [row["index"] for row in rows(root)] == [0, 1, 2]
    assert problems(str(root)) == []


def fail(root: str, item: WorkItem) -> None:
    """Leaves the item as three leaders that it killed would."""
    for _ in range(3):
        Attempts(open_store(root)).record(item, "the gang's leader died: killed")


def planned(command: list[str]) -> list[WorkItem]:
    return prepare(configured("render", command)).items


def test_compiled_blocks_make_no_other_job(command):
    eager, compiled = (
        prepare(configured("render", [*command, *more]))
        for more in (["--compile", "never"], ["--compile"])
    )
    assert (compiled.spec, compiled.items) == (eager.spec, eager.items)
    assert compiled.gangs.build_rank.compiling == "always"
    assert eager.gangs.build_rank.compiling == "never"


def test_by_itself_a_job_is_compiled_where_it_is_long_enough(command):
    build = prepare(configured("render", command)).gangs.build_rank
    assert build.compiling == "never"  # seven videos of the embedded model


def test_ranks_are_built_for_the_largest_row(tmp_path, command):
    rows = tmp_path / "rows.jsonl"
    sizes = ({}, {"width": 128}, {"num_frames": 5})
    rows.write_text("\n".join(json.dumps({"prompt": "a", **size}) for size in sizes))
    command[command.index("--prompts") + 1] = str(rows)
    gangs = prepare(configured("render", [*command, "--gang-size", "2"])).gangs
    assert gangs.build_rank.largest == gangs.build_encoders.largest
    assert gangs.build_encoders.largest["width"] == 128
    assert gangs.build_encoders.gang_size == 2


def test_what_has_failed_is_said_and_retried_on_demand_and_nothing_is_rewritten(
    tmp_path, command, capsys
):
    root = tmp_path / "out"
    fail(str(root), planned(command)[1])
    assert render.main(command) == 3
    said = capsys.readouterr()
    assert "2 videos, 1 failed" in said.out
    assert "--retry-failed renders those rows again" in said.out
    assert "the gang's leader died: killed" in said.err
    assert [row["index"] for row in rows(root)] == [0, 2]
    assert "the gang&#39;s leader died: killed" in (root / "report.html").read_text()
    before = contents(root)

    assert render.main(command) == 3
    assert render.main([*command, "--max-failures", "1"]) == 0
    assert contents(root) == before
    assert render.main([*command, "--retry-failed", "--dry-run"]) == 0
    assert "1 video to do (4 forwards)" in capsys.readouterr().out
    assert contents(root) == before

    assert render.main([*command, "--retry-failed"]) == 0
    assert "3 videos, 0 failed" in capsys.readouterr().out
    assert "failed</span>" not in (root / "report.html").read_text()
    after = contents(root)
    assert {**after, **before} == after
    assert sorted(row["index"] for row in rows(root)) == [0, 1, 2]
    assert (root / "manifest" / "_SUCCESS.r1").exists()
    assert problems(str(root)) == []

    assert render.main([*command, "--retry-failed"]) == 0
    assert render.main(command) == 0
    assert contents(root) == after


def test_a_finished_job_needs_neither_a_cluster_nor_its_videos(root, command, monkeypatch):
    monkeypatch.setattr(
        "cluster.fleet.connection.connect", lambda *_: pytest.fail("a rank was asked for")
    )
    shutil.rmtree(root / "videos")
    shutil.rmtree(root / "receipts")
    assert render.main(command) == 0


def test_a_driver_that_is_terminated_says_how_to_resume_and_the_same_command_does(
    tmp_path, command, run_job
):
    many = tmp_path / "many.txt"
    many.write_text("\n".join(f"{prompt}, {take}" for take in range(20) for prompt in PROMPTS))
    command[command.index("--prompts") + 1] = str(many)
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.render", *command],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAY_JOB_STOP_WAIT_TIME_S": "100",
        },
    ) as driver:
        said = []
        for line in driver.stderr:
            said.append(line)
            if line.startswith("videos: 1/"):
                driver.terminate()
    assert driver.returncode == 143, "".join(said)
    there = list((tmp_path / "out" / "receipts").rglob("*.json"))
    assert said[-1] == f"stopped: {len(there)} of 60 videos done; the same command resumes\n"
    assert 1 <= len(there) < 60
    assert len(there) == len(list((tmp_path / "out" / "videos").rglob("*.mp4")))
    dry = run_job("render", *command, "--dry-run")
    assert f"{60 - len(there)} videos to do" in dry.stdout


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, command, capsys):
    assert render.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 videos to do (12 forwards), 0 already done" in said
    assert "time: unknown until a first video" in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_encoders_have_the_gangs_ranks_only_where_there_are_tiles_to_share(command):
    sizes = []
    for frames in ("9", "37"):
        config = configured("render", [*command, "--gang-size", "2", "--num-frames", frames])
        sizes.append(prepare(config).gangs.encoders_size)
    assert sizes == [1, 2]


def test_ids_that_several_rows_have_are_named_before_anything_is_rendered(tmp_path, capsys):
    rows = [{"prompt": f"a {n}", "prompt_id": f"id-{n // 2}"} for n in range(5)]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = ["--model", "tiny", "--prompts", str(tmp_path / "p.jsonl"), "--dry-run"]
    assert render.main([*asked, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "2 rows with the prompt_id of an earlier row: 'id-0', 'id-1'; in the manifest" in said


def test_a_dry_run_of_a_model_for_gpus_estimates_and_recommends_a_gang(command, capsys):
    size = ["--height", "64", "--width", "64"]  # enough tokens for gangs of eight
    assert render.main([*command, *size, "--dtype", "bfloat16", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "estimated for H100s, denoising alone, with compiled blocks" in said
    assert "GPU-hours a video" in said
    assert [f"--gang-size {size}: " in said for size in (1, 2, 4, 8)] == [True] * 4
    assert "for bulk work use --gang-size 1, the smallest that fits 80 GiB" in said
    days = [float(one) for one in re.findall(r"([\d.]+) videos a GPU and day,", said)]
    assert days[0] >= 0.95 * max(days)


def test_it_estimates_no_gang_that_would_be_refused(command, capsys):
    odd = ["--height", "48", "--width", "48"]  # 27 tokens, and 4 heads
    assert render.main([*command, *odd, "--dtype", "bfloat16", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert [f"--gang-size {size}: " in said for size in (1, 2, 4, 8)] == [True] * 3 + [False]


def test_a_dry_run_of_a_started_job_knows_its_rate(root, command, capsys):
    receipts = sorted((root / "receipts").rglob("*.json"))
    manifest = root / "manifest"
    for path in [receipts[0], *(manifest / "parts").iterdir(), manifest / "_SUCCESS"]:
        path.unlink()
    assert render.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1 video to do (4 forwards), 2 already done" in said
    assert "of gang time at the last known rate of" in said


def test_every_row_is_a_row_of_the_manifest_and_the_same_pixels_are_rendered_once(
    tmp_path, command, capsys
):
    asked = [
        {"prompt_id": "a", "prompt": "a red circle", "seed": 42, "note": "first", "rank": 1},
        {"prompt_id": "b", "prompt": "a red circle", "seed": 42, "rank": None},
        {"prompt_id": "a", "prompt": "a red circle", "seed": 42},
        {"prompt": "a blue square " * 9},
        {"prompt": "a blue square " * 9},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, asked)))
    command[command.index("--prompts") + 1] = str(file)
    assert render.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 videos to do" in said
    assert "2 rows asking for the same pixels as another row" in said
    assert "2 prompts longer than what tiny reads" in said
    assert said.count("16 of 27 tokens are read") == 2
    assert "other columns, carried along: 'note', 'rank'" in said
    assert render.main([*command, "--max-prompt-tokens", "refuse"]) == 2
    assert "2 prompts are longer than what tiny reads" in capsys.readouterr().err
    assert render.main(command) == 0
    found = rows(tmp_path / "out")
    assert [row["index"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["prompt_id"] for row in found[:3]] == ["a", "b", "a"]
    assert [row["extra.note"] for row in found] == ["first", *[None] * 4]
    assert [row["extra.rank"] for row in found] == [1, *[None] * 4]
    assert len({row["key"] for row in found}) == len({row["seed"] for row in found}) == 3
    assert [row["prompt_tokens"] for row in found] == [3, 3, 3, 27, 27]
    assert [row["prompt_tokens_used"] for row in found] == [3, 3, 3, 16, 16]
    assert len(list((tmp_path / "out" / "receipts").rglob("*.json"))) == 3
    assert problems(str(tmp_path / "out")) == []
    asked[1]["prompt_id"] = "c"
    file.write_text("\n".join(map(json.dumps, asked)))
    assert render.main(command) == 2
    assert "their order or their other columns" in capsys.readouterr().err


def test_rows_are_appended_to_a_finished_job_and_all_jobs_know_them(
    tmp_path, root, command, capsys
):
    before = contents(root)
    enlarged = tmp_path / "enlarged.jsonl"
    asked = [*({"prompt": prompt} for prompt in PROMPTS), {"prompt": "a white dot", "seed": 1}]
    shares = {"prompt": PROMPTS[0], "seed": rows(root)[0]["seed"], "prompt_id": "shares"}
    enlarged.write_text("\n".join(json.dumps(row) for row in [*asked, shares]))
    command[command.index("--prompts") + 1] = str(enlarged)
    assert render.main(command) == 2
    assert "add rows to it with --append" in capsys.readouterr().err
    assert render.main([*command, "--append", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "append: 2 rows, all but the first 3 of --prompts, behind the 3 of the root" in said
    assert "1 video of them shared with rows that are there" in said
    assert "1 video to do (4 forwards)" in said
    assert contents(root) == before

    assert render.main([*command, "--append"]) == 0
    assert "5 rows, 0 failed" in capsys.readouterr().out
    after = contents(root)
    assert {**after, **before} == after
    found = rows(root)
    assert [row["index"] for row in found] == [0, 1, 2, 3, 4]
    assert found[4]["key"] == found[0]["key"]
    assert problems(str(root)) == []
    assert (root / "report.html").read_text().count("<figure") == 5
    assert render.main([*command, "--append"]) == 0
    assert contents(root) == after
    assert export.main([str(root), "--format", "parquet", "--output", str(tmp_path / "rows")]) == 0
    assert "5 rows: " in capsys.readouterr().out

    (root / "manifest" / "_SUCCESS.r1").unlink()  # as if its driver had been killed
    assert export.main([str(root), "--format", "parquet", "--output", str(tmp_path / "no")]) == 2
    assert "rows are being appended to" in capsys.readouterr().err
    assert any("has not finished" in problem for problem in problems(str(root)))
    assert render.main([*command, "--append", "--retry-failed"]) == 2
    assert "run its command again, without --retry-failed" in capsys.readouterr().err
    assert render.main([*command, "--append"]) == 0
    assert contents(root) == after


def test_there_is_nothing_to_append_to_in_an_unused_root(tmp_path, command, capsys):
    assert render.main([*command, "--append"]) == 2
    assert "there is nothing to append to" in capsys.readouterr().err
