"""An item is delivered once: its video, then its receipt, whatever happens to the ranks."""

import hashlib
import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cluster.fleet.delivery import Delivery
from cluster.fleet.gang import Gang, GangStartError, TryAgainError
from cluster.fleet.staged_gang import StagedGang
from cluster.media import video
from cluster.models.model import find_model
from cluster.ranks import RenderRequest, rank_builder, render_item
from cluster.results.attempts import Attempts
from cluster.results.manifest import Manifest
from cluster.results.parts import RECEIPT
from cluster.store import open_store
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from meancache import Schedule, tiny
from meancache.quality import psnr, ssim
from tests.support import ranks, saved_pipelines
from tests.support.processes import gone


def planned(model):
    arguments = {**tiny.DEFAULTS, "num_inference_steps": 4}
    prompt = Prompt(1, "a red circle moving left on a dark background", "one", 3)
    return plan_items([prompt], model, arguments)[0]


def delivered(delivery: Delivery, gang: StagedGang, item) -> dict:
    """The item's row, tried in the one gang until it is done or given up."""
    while True:
        with suppress(TryAgainError):
            return delivery(gang, item)


@pytest.fixture
def item(model):
    return planned(model)


@pytest.fixture
def job(tmp_path):
    return Manifest(open_store(str(tmp_path / "out")))


def test_a_delivered_item_has_its_video_and_a_receipt_that_describes_it(
    job, model, item, gang_of_one, gang_of_two
):
    row = Delivery(job, model, None)(StagedGang(gang_of_two, gang_of_one), item)
    assert row == job.receipt(item)
    data = job.store.get(row["key"])
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert row["key"] == f"videos/{item.id[:2]}/{item.id}.{row['sha256'][:16]}.mp4"
    assert video.decode(data).shape == (9, 64, 64, 3)
    expected = {
        "item_id": item.id, "prompt_id": "one", "status": "ok", "bytes": len(data), "nfe": 4,
        "num_inference_steps": 4, "num_frames": 9, "width": 64, "height": 64, "seed": 3,
        "world_size": 2, "attempts": 1, "schedule_id": None, "error": None, "model": "tiny",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    seconds = row["metrics"]
    assert set(seconds) == {"text_s", "denoise_s", "decode_s", "gang_s", "ideal_s"}
    assert row["render_s"] == seconds["text_s"] + seconds["denoise_s"] + seconds["decode_s"]
    assert 0 < seconds["ideal_s"] < seconds["denoise_s"] < seconds["gang_s"]
    assert set(row) == {*RECEIPT, "arguments", "attention", "adapter_swaps"}
    assert row["attention"] == "sdpa"  # of two ranks on a CPU
    assert row["arguments"] == item.arguments  # for replays: no column says what a row overrides


@pytest.fixture
def schedule(model) -> Schedule:
    """One forward of four."""
    return Schedule.from_edges(model.grid(4).sigmas, [{"start": 0, "stop": 4, "span": 1}])


def test_an_audited_item_tells_how_close_it_is_to_its_full_run(
    job, model, item, schedule, gang_of_one
):
    row = Delivery(job, model, schedule, audit_share=1.0)(
        StagedGang(gang_of_one, gang_of_one), item
    )
    fast, full = (
        gang_of_one.run(render_item, RenderRequest(item, one), 60.0).frames
        for one in (schedule, None)
    )
    assert row["metrics"]["psnr"] == pytest.approx(psnr(fast, full), abs=0.01)
    assert row["metrics"]["ssim"] == pytest.approx(ssim(fast, full), abs=1e-4)
    assert 5 < row["metrics"]["psnr"] < 40
    assert (row["nfe"], row["attempts"]) == (1, 1)
    assert video.decode(job.store.get(row["key"])).shape == fast.shape


def test_what_failed_before_is_not_audited_so_an_audit_never_costs_a_row(
    job, model, item, schedule, gang_of_one
):
    Attempts(job.store).record(item, "rank 0 ran out of memory in the full run")
    row = Delivery(job, model, schedule, audit_share=1.0)(
        StagedGang(gang_of_one, gang_of_one), item
    )
    assert (row["status"], row["attempts"]) == ("ok", 2)
    assert "psnr" not in row["metrics"]


def test_an_item_outside_of_the_audited_share_is_drawn_once(
    job, model, item, schedule, gang_of_one
):
    delivery = Delivery(job, model, schedule, audit_share=16**-8)
    assert "psnr" not in delivery(StagedGang(gang_of_one, gang_of_one), item)["metrics"]


def test_a_rank_that_died_between_two_items_costs_neither_an_attempt(job, model, item, gang_of_one):
    with Gang(rank_builder(model), 1) as gang:
        os.kill(gang.pids[0], signal.SIGKILL)
        assert gone(gang.pids[0])
        row = delivered(Delivery(job, model, None), StagedGang(gang, gang_of_one), item)
    assert (row["status"], row["attempts"]) == ("ok", 1)
    assert Attempts(job.store).failures(item) == []


@dataclass(frozen=True)
class KillingOnce(Schedule):
    """A schedule that kills the rank which reads it, the first time."""

    mark: Path = Path()

    def __getattribute__(self, name):
        mark = object.__getattribute__(self, "mark")
        if name == "computed_steps" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return object.__getattribute__(self, name)


def test_a_rank_killed_during_an_item_costs_one_attempt_and_no_row(
    job, model, item, tmp_path, gang_of_one
):
    grid = model.grid(4)
    plain = Schedule.from_edges(grid.sigmas, [{"start": 0, "stop": 4, "span": 1}])
    fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    schedule = KillingOnce(**fields, mark=tmp_path / "killed")
    with Gang(rank_builder(model), 1) as gang:
        row = delivered(Delivery(job, model, schedule), StagedGang(gang, gang_of_one), item)
    assert (row["status"], row["attempts"], row["nfe"]) == ("ok", 2, 1)
    assert len(list(job.store.list("receipts/"))) == len(list(job.store.list("videos/"))) == 1
    assert Attempts(job.store).failures(item) == ["rank 0 died with exit code -9"]


def test_an_item_that_fails_three_times_is_committed_as_failed_with_the_reason(job, model, item):
    with Gang(ranks.build, 1) as gang:  # ranks that have no pipeline to render with
        row = delivered(Delivery(job, model, None), StagedGang(gang, gang), item)
    assert (row["status"], row["attempts"], row["key"]) == ("failed", 3, None)
    assert "rank 0 failed: AttributeError" in row["error"]
    receipt = job.store.get(job.receipt_key(0, item.id))
    assert json.loads(receipt)["status"] == "failed"
    assert not list(job.store.list("videos/"))


def test_an_item_that_has_failed_elsewhere_has_only_the_attempts_left_over(job, model, item):
    delivery = Delivery(job, model, None)
    delivery.lost(item, "the gang's leader died: killed")
    Attempts(job.store).record(item, "rank 0 did not answer within 60 s")
    with Gang(ranks.build, 1) as gang:
        row = delivered(delivery, StagedGang(gang, gang), item)
    assert row["attempts"] == 3
    assert "AttributeError" in row["error"]


def test_an_item_that_killed_its_leader_every_time_is_given_up_without_a_rank(job, model, item):
    delivery = Delivery(job, model, None)
    for _ in range(3):
        delivery.lost(item, "the gang's leader died: killed")
    nobody = StagedGang(*[Gang(ranks.build_fails, 1)] * 2)  # would fail, were it asked
    row = delivery(nobody, item)
    assert (row["status"], row["attempts"]) == ("failed", 3)
    assert row["error"] == "the gang's leader died: killed"


def test_a_failed_attempt_is_handed_back_so_that_another_gang_may_try(job, model, item):
    delivery = Delivery(job, model, None)
    with Gang(ranks.build, 1) as broken, pytest.raises(TryAgainError, match="AttributeError"):
        delivery(StagedGang(broken, broken), item)
    with Gang(rank_builder(model), 1) as whole:
        row = delivery(StagedGang(whole, whole), item)
    assert (row["status"], row["attempts"]) == ("ok", 2)


def test_a_new_gang_learns_nothing_from_gangs_of_another_size(
    job, model, item, gang_of_one, gang_of_two
):
    delivery = Delivery(job, model, None)
    delivery(StagedGang(gang_of_two, gang_of_one), item)
    lone = StagedGang(Gang(ranks.build, 1), Gang(ranks.build, 1))
    delivery._learn_pace(lone, item)
    assert not lone.gang.pace.known


@pytest.fixture
def spoiled_model(tmp_path):
    """A real pipeline in a folder, one of whose weights was set to a value of the test's."""

    def spoil(part: str, weight: str, value: float):
        folder = tmp_path / "spoiled"
        shutil.copytree(tiny.WEIGHTS, folder)
        (file,) = (folder / part).glob("*.safetensors")
        weights = load_file(file)
        for name in weights:
            if weight in name:
                weights[name] = weights[name] * 0 + value
        save_file(weights, file, metadata={"format": "pt"})
        return find_model(str(folder), dtype="float32")

    return spoil


@pytest.mark.parametrize(
    ("part", "weight", "value", "sentence"),
    [
        ("transformer", "proj_out.bias", float("nan"), "latents are NaN or infinite in 100.00%"),
        pytest.param(
            *("vae", "decoder.conv_out", float("inf"), "frames are NaN or infinite"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("vae", "decoder.conv_out", 0.0, "frames are 0.5 everywhere"), marks=pytest.mark.slow
        ),
    ],
)
def test_what_a_broken_model_draws_becomes_a_failed_row(
    job, spoiled_model, part, weight, value, sentence
):
    model = spoiled_model(part, weight, value)
    item = planned(model)
    delivery = Delivery(job, model, None)
    for _ in range(2):  # each attempt takes a gang of its own: spare all but the last
        delivery.lost(item, "earlier")
    with Gang(rank_builder(model), 1) as gang:
        row = delivered(delivery, StagedGang(gang, gang), item)
    assert (row["status"], row["attempts"]) == ("failed", 3)
    assert sentence in row["error"]
    assert not list(job.store.list("videos/"))


def test_a_picture_that_fails_leaves_the_others_of_its_batch_their_first_attempt(job, tmp_path):
    model = find_model(str(saved_pipelines.save("FLUX.1", tmp_path / "flux")), dtype="float32")
    arguments = {**model.defaults, "height": 32, "width": 32, "num_inference_steps": 2}
    prompts = [Prompt(n, f"a red circle {n}", str(n), n) for n in range(4)]
    items = plan_items(prompts, model, arguments)
    items[2] = replace(items[2], seed=2**70)  # which torch takes from nobody
    delivery, everyone = Delivery(job, model, None), threading.Barrier(4)
    with (
        StagedGang(*[Gang(rank_builder(model), 1) for _ in range(2)], batch=4) as staged,
        ThreadPoolExecutor(4) as threads,
    ):

        def deliver(item):
            everyone.wait()
            return delivered(delivery, staged, item)

        rows = list(threads.map(deliver, items))
        assert staged.batches.most == 4
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok"]
    assert [row["attempts"] for row in rows] == [1, 1, 3, 1]
    assert "rank 0 failed" in rows[2]["error"]
    assert not any("batch" in row for row in rows)  # each went alone in the end
    assert len(list(job.store.list("receipts/"))) == 4


def test_ranks_that_do_not_start_use_up_no_item(job, model, item):
    with pytest.raises(GangStartError, match="no weights here"):
        Delivery(job, model, None)(StagedGang(*[Gang(ranks.build_fails, 1)] * 2), item)
    assert job.open_shards([item]) == {item.shard: [item]}
    assert Attempts(job.store).failures(item) == []


def test_an_item_that_is_committed_is_not_paid_for_again(job, model, item, gang_of_one):
    first = Delivery(job, model, None)(StagedGang(gang_of_one, gang_of_one), item)
    nobody = StagedGang(*[Gang(ranks.build_fails, 1)] * 2)  # would fail, were it asked
    assert Delivery(job, model, None)(nobody, item) == first


def test_a_new_gang_learns_from_receipts_how_long_a_video_takes(job, model, gang_of_one):
    delivery = Delivery(job, model, None)
    arguments = {**model.defaults, "num_inference_steps": 4}
    prompts = [Prompt(line, f"prompt {line}", str(line)) for line in (1, 2)]
    first, second = plan_items(prompts, model, arguments)
    row = delivery(StagedGang(gang_of_one, gang_of_one), first)
    new = StagedGang(Gang(ranks.build, 1), Gang(ranks.build, 1))
    delivery._learn_pace(new, second)
    pixels = 9 * 64 * 64
    assert list(new.gang.pace._known) == [(pixels * 4, row["metrics"]["denoise_s"])]
    assert list(new.encoders.pace._known) == [(pixels, row["metrics"]["decode_s"])]
