"""Refreshes on a real cluster and a real S3 server: what is promoted, kept, refused and restored.

Three dates of one root, a fixture each. `first`: nothing is current for one of the budgets and a
poor schedule for the other, and two refreshes run at once. `second`: the model is the same.
`third`: the checkpoint is another one, and audits are falling.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.models.model import find_model
from cluster.results.manifest import Manifest
from cluster.results.registry import Promotion, Succession, differences, setting_of
from cluster.store import Store, open_store
from cluster.work import plan
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from jobs.calibrate import workflow as calibrate
from jobs.evaluate.table import from_parquet
from jobs.evaluate.workflow import TABLE_KEY
from jobs.refresh import __main__ as refresh
from jobs.refresh.history import OUTCOME_KEY, Runs
from jobs.refresh.workflow import MERGED_KEY
from jobs.render import __main__ as render
from meancache import Schedule, tiny
from meancache.calibration import Calibration
from tests.support.browser import needs_browser, views
from tests.support.manifest_rows import row_of

STEPS = 10
CREATED, REPLACED = 4, 5  # budgets: of the second a poor schedule is current before
ARGUMENTS = {"height": 64, "width": 64, "num_frames": 9, "guidance_scale": 6.0}
COLOURS = ("red", "green", "blue", "yellow", "white", "purple")

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.timeout(900),
    pytest.mark.slow,  # twelve gangs, one run after the other
]


@dataclass(frozen=True)
class History:
    """What is run.

    Attributes:
        root: on S3.
        folder: for copies of the root.
        prompts: two files of other prompts.
        poor: the schedule that is current before the first date.
    """

    root: str
    folder: Path
    prompts: tuple[Path, Path]
    poor: Schedule

    @property
    def link(self) -> Path:
        """The model's folder, which leads to `original` or to `swapped`."""
        return self.folder / "model"

    @property
    def original(self) -> Path:
        return self.folder / "original"

    @property
    def swapped(self) -> Path:
        return self.folder / "swapped"

    def registry(self) -> Succession:
        """That of the original model, and of the budget that had a schedule before."""
        return succession(self.root, self, self.original, REPLACED)

    def copy(self, name: str) -> Path:
        """Everything under the root as it is now, as files."""
        copied(open_store(self.root), self.folder / name)
        return self.folder / name

    def use(self, folder: Path) -> None:
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(folder)

    def model_flags(self) -> list[str]:
        return [
            *("--model", str(self.link), "--dtype", "float32", "--steps", str(STEPS)),
            *("--height", "64", "--width", "64", "--num-frames", "9", "--guidance-scale", "6"),
        ]

    def command(self, root: object, date: int, prompts: int = 0) -> list[str]:
        return [
            *self.model_flags(),
            *("--prompts", str(self.prompts[prompts]), "--budgets", f"{CREATED},{REPLACED}"),
            *("--output", str(root), "--night", f"2026-01-{date:02d}", "--gangs", "1"),
        ]


@pytest.fixture(scope="module")
def history(tmp_path_factory, new_s3_root) -> History:
    """Before the first date: two checkpoints, prompts, and a poor schedule of one budget."""
    folder = tmp_path_factory.mktemp("history")
    made = History(
        root=new_s3_root(),
        folder=folder,
        prompts=(
            written(folder / "circles.txt", "circle moving left"),
            written(folder / "squares.txt", "square moving up"),
        ),
        poor=Schedule.from_edges(
            find_model("tiny").grid(STEPS).sigmas,
            [{"start": 0, "stop": STEPS, "weights": {0: 1.0}}],
        ),
    )
    shutil.copytree(tiny.WEIGHTS, made.original)
    perturbed(Path(shutil.copytree(tiny.WEIGHTS, made.swapped)))
    made.registry().promote(made.poor, {"psnr": 5.0}, None)
    return made


@pytest.fixture(scope="module")
def first(history) -> Path:
    """The root after the first date, of two refreshes at once."""
    history.use(history.original)
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.refresh", *history.command(history.root, 1, prompts=1)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as other:
        assert refresh.main(history.command(history.root, 1)) == 0
        _, said = other.communicate()
    assert other.returncode == 0, said
    return history.copy("first")


@pytest.fixture(scope="module")
def second(history, first) -> Path:
    """The root after the second date."""
    history.use(history.original)
    assert refresh.main(history.command(history.root, 2)) == 0
    return history.copy("second")


@pytest.fixture(scope="module")
def third(history, first) -> Path:
    """The root after the third date."""
    audits = open_store(str(history.folder / "videos"))
    audited = falling_audits(audits, history.registry().history()[0])
    history.use(history.swapped)
    assert refresh.main([*history.command(history.root, 3), "--audits", audited]) == 0
    return history.copy("third")


def written(path: Path, what: str) -> Path:
    """Six captions: two of them are held out, four calibrated on."""
    path.write_text("".join(f"a {colour} {what} on a dark background\n" for colour in COLOURS))
    return path


def perturbed(folder: Path) -> Path:
    """A checkpoint of the same shapes that renders otherwise."""
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if weight.ndim == 2:
            noise = torch.randn(weight.shape, generator=generator)
            weights[name] = weight + 0.5 * weight.std() * noise
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def falling_audits(store: Store, promotion: Promotion) -> str:
    """A render root with audited rows, the later ones 6 dB below the earlier."""
    model = find_model("tiny")
    prompts = [Prompt(line, f"prompt {line}", f"id-{line}") for line in range(16)]
    items = plan_items(prompts, model, model.defaults)
    plan.freeze(store, plan.specification("render", items, model, model.defaults))
    job = Manifest(store)
    for item in items:
        decibels = (40.0 if item.index < 8 else 34.0) + item.index % 2
        metrics = {"psnr": decibels, "ssim": 0.9}
        job.commit(row_of(item, job, schedule_id=promotion.schedule_id, metrics=metrics))
    job.close_shard(0, items)
    return store.uri("x").removesuffix("/x")


def copied(store: Store, folder: Path) -> None:
    """Everything under a root, as files."""
    for key in store.list():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(key))


def succession(root: object, history: History, folder: Path, budget: int) -> Succession:
    """That of a checkpoint and a budget."""
    history.use(folder)
    model = find_model(str(history.link), dtype="float32")
    setting = setting_of(model, {**ARGUMENTS, "num_inference_steps": STEPS})
    return Succession(open_store(str(root)), {**setting, "budget": budget})


def outcomes(root: Path, date: int) -> list[dict]:
    files = root.glob(f"nights/*/2026-01-{date:02d}-*/{OUTCOME_KEY}")
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def last_run(history, third, root) -> Path:
    """A root with the last run alone."""
    for run in third.glob("nights/*/2026-01-03-*"):
        shutil.copytree(run, root / run.relative_to(third))
        setting = run.parent / "setting.json"
        shutil.copy(setting, root / setting.relative_to(third))
    for budget in (CREATED, REPLACED):
        folder = succession(root, history, history.swapped, budget).folder
        shutil.copytree(third / folder, root / folder)
    shutil.copy(third / "report.html", root)
    return root


@pytest.fixture
def no_ranks(monkeypatch) -> None:
    monkeypatch.setattr(
        "cluster.fleet.connection.connect", lambda *_: pytest.fail("a rank was asked for")
    )


def test_a_first_run_creates_a_schedule_and_promotes_it(history, first):
    line = succession(first, history, history.original, CREATED)
    promotion = line.history()[0]
    assert promotion.previous is None
    assert promotion.metrics["pairs"] == 2
    current = json.loads((first / line.folder / "current.json").read_text())
    schedule = Schedule.load(first / line.folder / f"{current['schedule_id']}.json")
    assert (schedule.id, schedule.nfe) == (current["schedule_id"], CREATED)
    model = find_model(str(history.link), dtype="float32")
    model.check_schedule(schedule, {**ARGUMENTS, "num_inference_steps": STEPS})


def test_no_prompt_is_calibrated_on_that_is_judged_by(second, third):
    for room in (third / "nights").glob("*/2026-*"):
        merged = Calibration.from_parquet((room / MERGED_KEY).read_bytes())
        calibrated = {one.prompt for one in merged.trajectories.values()}
        rows = from_parquet((room / "held-out" / TABLE_KEY).read_bytes())
        assert len(set(rows["prompt"].to_pylist())) == 2
        assert not calibrated & set(rows["prompt"].to_pylist())


def test_only_what_is_ahead_by_more_than_the_standard_error_is_promoted(history, first):
    for outcome in outcomes(first, 1):
        for one in outcome["decisions"]:
            metrics = one["metrics"]
            ahead = metrics.get("gain", 1.0) > metrics.get("gain_standard_error", 0.0)
            assert one["promoted"] == ahead or "promoted meanwhile" in one["reason"]
    line = succession(first, history, history.original, REPLACED)
    poor, better, *_ = line.history()
    assert (poor.schedule_id, better.previous) == (history.poor.id, history.poor.id)
    assert better.metrics["gain"] > 3.0


def test_two_refreshes_at_once_leave_one_current_and_the_statistics_of_both_once(history, first):
    assert len(outcomes(first, 1)) == 2
    for budget in (CREATED, REPLACED):
        line = succession(first, history, history.original, budget)
        promotions = line.history()
        assert [promotion.number for promotion in promotions] == [*range(1, len(promotions) + 1)]
        published = (first / line.folder / "current.json").read_bytes()
        assert published == promotions[-1].to_json()
        for before, after in itertools.pairwise(promotions):
            assert after.previous == before.schedule_id
    setting = json.loads(next(first.glob("nights/*/setting.json")).read_text())
    runs = Runs(open_store(str(first)), setting)
    both = [runs.graph(name) for name in runs.window("2026-01-02-" + 12 * "0", 2)[:-1]]
    assert [len(graph.trajectories) for graph in both] == [4, 4]
    one, other = both
    assert len(one.merge(other).merge(one).trajectories) == 8


def test_the_next_run_keeps_what_is_current_or_improves_on_it(history, first, second):
    (outcome,) = outcomes(second, 2)
    for one in outcome["decisions"]:
        before, after = (
            succession(root, history, history.original, one["budget"]).history()
            for root in (first, second)
        )
        assert after[: len(before)] == before
        metrics = one["metrics"]
        if one["promoted"]:
            assert len(after) == len(before) + 1
            assert metrics["gain"] > metrics["gain_standard_error"]
            assert after[-1].previous == before[-1].schedule_id
        else:
            assert after == before
            assert metrics["gain"] <= metrics["gain_standard_error"]
    graphs = [
        len(Calibration.from_parquet(file.read_bytes()).trajectories)
        for file in (second / "nights").glob(f"*/2026-01-02-*/{MERGED_KEY}")
    ]
    assert graphs == [12]  # four of this run, and four of each of the two before


def test_another_checkpoint_is_refused_the_old_schedule_with_the_reason(
    history, first, tmp_path, capsys, no_ranks
):
    history.use(history.swapped)
    command = ["--prompts", str(history.prompts[0]), "--output", str(tmp_path / "out")]
    asked = ["--schedule", "current", "--registry", str(first), "--budget", str(CREATED)]
    assert render.main([*history.model_flags(), *command, *asked]) == 2
    said = capsys.readouterr().err
    assert "differs: revision is '" in said
    assert f"there and '{find_model(str(history.link)).revision}' here" in said
    assert not (tmp_path / "out").exists()


def test_another_checkpoint_is_drift_and_gets_a_schedule_of_its_own(history, first, third):
    (outcome,) = outcomes(third, 3)
    assert [one["promoted"] for one in outcome["decisions"]] == [True, True]
    assert outcome["drift"]["steps"]
    assert "of another setting (revision is '" in outcome["drift"]["says"]
    new, old = (
        succession(third, history, folder, CREATED)
        for folder in (history.swapped, history.original)
    )
    assert [said.split()[0] for said in differences(old.setting, new.setting)] == ["revision"]
    # And the old checkpoint keeps its own, should it come back.
    before = succession(first, history, history.original, CREATED).current()
    assert old.current() == before


def test_a_falling_audit_is_reported(third):
    (outcome,) = outcomes(third, 3)
    (said,) = outcome["audits"]
    assert "16 rows: falling: 34.5 ± 0.2 dB lately, 40.5 ± 0.2 dB before" in said
    assert "falling: 34.5" in (third / "report.html").read_text()


def test_rollback_restores_what_the_current_one_has_replaced(
    history, first, root, capsys, no_ranks
):
    shutil.copytree(first, root)
    line = succession(root, history, history.original, REPLACED)
    before = line.current()
    command = [*history.model_flags(), "--rollback", "--budgets", str(REPLACED)]
    assert refresh.main([*command, "--output", str(root), "--dry-run"]) == 0
    assert f"would restore {before.previous}" in capsys.readouterr().out
    assert line.current() == before
    assert refresh.main([*command, "--output", str(root)]) == 0
    assert line.current().schedule_id == before.previous
    published = json.loads((root / line.folder / "current.json").read_text())
    assert published["schedule_id"] == before.previous


def test_the_same_command_again_says_that_the_run_is_over(history, last_run, capsys, no_ranks):
    history.use(history.swapped)
    files = {path: path.read_bytes() for path in last_run.rglob("*") if path.is_file()}
    assert refresh.main(history.command(last_run, 3)) == 0
    assert "the run of 2026-01-03 is over" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in last_run.rglob("*") if path.is_file()} == files


# What a driver that was killed has not written yet, from its last file back.
SCHEDULE = "?" * 64 + ".json"
LEFT_OUT = {
    "outcome": [OUTCOME_KEY],
    "current.json": [OUTCOME_KEY, "report.html", "current.json"],
    "promotion": [OUTCOME_KEY, "report.html", "current.json", "000001.json"],
    "evaluation": [
        *(OUTCOME_KEY, "report.html", "current.json", "000001.json", SCHEDULE, "setting.json"),
        *("opponents.json", "evaluation.parquet"),
    ],
}


@pytest.mark.parametrize("lost", LEFT_OUT)
def test_a_run_that_was_killed_before_its_end_is_resumed_without_a_rank(
    history, last_run, lost, no_ranks
):
    there = {path for path in last_run.rglob("*") if path.is_file()}
    line = succession(last_run, history, history.swapped, CREATED)
    current = line.current()
    for pattern in LEFT_OUT[lost]:
        for path in last_run.rglob(pattern):
            path.unlink()
    assert refresh.main(history.command(last_run, 3)) == 0
    assert {path for path in last_run.rglob("*") if path.is_file()} == there
    again = line.current()
    assert (again.schedule_id, again.number) == (current.schedule_id, 1)
    assert again.metrics == current.metrics


def test_without_a_date_a_stopped_run_is_resumed_and_a_finished_one_is_not(
    history, last_run, capsys, no_ranks
):
    history.use(history.swapped)
    command = history.command(last_run, 3)
    date = command.index("--night")
    del command[date : date + 2]
    assert refresh.main([*command, "--dry-run"]) == 0
    assert "4 trajectories to run, 0 already done" in capsys.readouterr().out
    next(last_run.rglob(OUTCOME_KEY)).unlink()
    assert refresh.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "the run of 2026-01-03: 0 trajectories to run, 4 already done" in said
    assert "0 held-out pairs to render, 2 already done" in said


def test_half_a_calibration_counts_in_no_other_run(history, first, root):
    shutil.copytree(first, root)
    setting = json.loads(next(root.glob("nights/*/setting.json")).read_text())
    runs = Runs(open_store(str(root)), setting)
    name = "2026-01-02-" + 12 * "0"
    whole = runs.window(name, 2)
    assert len(whole) == 3
    (root / runs.folder / whole[0] / calibrate.STATISTICS_KEY).unlink()
    assert runs.window(name, 2) == whole[1:]
    assert runs.window(name, 1) == [name]


@needs_browser
def test_the_report_shows_decisions_drift_and_history_in_a_real_browser(history, third):
    file = third / "report.html"
    text = file.read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert f"--schedule current --registry {history.root} " in text
    for page in views(file.as_uri()):
        assert page.locator("h1").inner_text() == "Promoted: 4, 5 forwards of 10"
        assert page.locator(".warning", has_text="drift: ").count() == 1
        assert page.locator(".cells").count() == 2
        box = page.locator("figure svg").bounding_box()
        assert box is not None
        assert box["height"] > 100
