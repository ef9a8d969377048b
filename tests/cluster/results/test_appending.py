"""Rows appended to a finished root: each once, nothing rewritten, after any kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest

from cluster.models.model import Model, find_model
from cluster.results import garbage, manifest, rounds, verification
from cluster.results.appending import appended, share, shared
from cluster.results.manifest import Manifest
from cluster.store import Store, StoreError, open_store
from cluster.work import plan
from cluster.work.plan import SHARD_SIZE, SpecError
from cluster.work.prompts import Prompts, PromptsError, read_prompts
from cluster.work.rows import RowPlan, plan_rows
from cluster.work.schedule_table import schedule_of
from jobs.render.workflow import prepare
from tests.support.configs import configured
from tests.support.manifest_rows import row_of

FIRST = [
    {"prompt": "a", "prompt_id": "x", "rank": 1},
    {"prompt": "b", "seed": 3, "rank": 2},
    {"prompt": "a", "prompt_id": "x", "rank": 3},
]
MORE = [
    {"prompt": "b", "seed": 3, "prompt_id": "again", "rank": 4},
    {"prompt": "c", "prompt_id": "c", "rank": 5},
]


class KilledError(Exception):
    """Stands for the end of a driver's process."""


def read(folder: Path, rows: list[dict]) -> Prompts:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_prompts(str(path))


def drive(
    store: Store, planned: RowPlan, failed=(), kill_after: int = 10**9, schedules=None
) -> None:
    """What a driver and its leaders do, up to the first `kill_after` of their writings."""
    left = iter(range(kill_after))

    def step(write, *arguments, **more):
        if next(left, None) is None:
            raise KilledError
        return write(*arguments, **more)

    done = manifest.finished(store)
    last, before = done if done is not None else (None, None)
    if last is not None and planned.round <= last.retry_round:
        return
    here = Manifest(store, planned.round)
    missing = here.open_shards(planned.items)
    todo = [item for members in missing.values() for item in members]
    held = shared(store, before, todo) if before else {}
    if planned.round:
        step(rounds.begin, store, planned.round, planned.spec)
    else:
        step(plan.freeze, store, planned.spec)
    for item in todo:
        if item.id in held:
            step(share, here, item, held[item.id])
        else:
            status = "failed" if item.prompt in failed else "ok"
            chosen = schedule_of((schedules or {}).get(item.id), item.arguments)
            of = {"schedule_id": chosen.id} if chosen else {}
            step(here.commit, row_of(item, here, status, data=item.id.encode(), **of))
    shards = manifest.by_shard(planned.items)
    for shard in missing:
        step(here.close_shard, shard, shards[shard], planned.beside, first=planned.first)
    step(here.finish, shards, before)


def begin(folder: Path, store: Store, rows: list[dict], model: Model, **more) -> None:
    drive(store, plan_rows(read(folder, rows), model, model.defaults), **more)


def append(folder: Path, store: Store, rows: list[dict], model: Model, **more) -> RowPlan:
    planned = appended(store, read(folder, rows), model, model.defaults)
    drive(store, planned, **more)
    return planned


def found(store: Store) -> pa.Table:
    return pyarrow.dataset.dataset(store.uri("manifest/parts")).to_table().sort_by("index")


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list()}


def problems(store: Store) -> list[str]:
    return [problem for some in verification.verify(store) for _, problem in some if problem]


@pytest.fixture
def store(tmp_path, model) -> Store:
    """A finished root of three rows and two videos."""
    store = open_store(str(tmp_path / "out"))
    begin(tmp_path, store, FIRST, model)
    return store


@pytest.mark.parametrize("before", [FIRST, []], ids=["an enlarged file", "a second file"])
def test_rows_are_added_behind_and_share_what_is_there(tmp_path, model, store, before):
    was = contents(store)
    planned = append(tmp_path, store, [*before, *MORE], model)
    assert (planned.first, planned.passed, planned.rows) == (3, len(before), 2)
    table = found(store)
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["extra.rank"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["prompt_id"].to_pylist()[3:] == ["again", "c"]
    assert table["shard"].to_pylist() == [0, 0, 0, 1, 1]
    keys = table["key"].to_pylist()
    assert keys[1] == keys[3]
    assert len(set(keys)) == 3 == len(list(store.list("videos/")))
    now = contents(store)
    assert {**now, **was} == now
    assert problems(store) == []
    assert rounds.complete(store)[1].rows == 5
    # The same command again adds nothing, by either file.
    for same in ([*FIRST, *MORE], MORE):
        append(tmp_path, store, same, model)
        assert contents(store) == now


def test_appends_follow_each_other_and_each_is_found_again(tmp_path, model, store):
    append(tmp_path, store, MORE, model)
    third = [{"prompt": "c", "prompt_id": "c", "rank": 6}, {"prompt": "d", "rank": 7}]
    append(tmp_path, store, [*FIRST, *MORE, *third], model)
    last = [{"prompt": f"e{n}", "rank": n} for n in range(SHARD_SIZE + 1)]
    append(tmp_path, store, [*FIRST, *last], model)
    for file, number in (
        (MORE, 1),
        ([*FIRST, *MORE, *third], 2),
        (third, 2),
        (last, 3),
        (FIRST, 0),
    ):
        assert appended(store, read(tmp_path, file), model, model.defaults).round == number
    table = found(store)
    assert table["index"].to_pylist() == list(range(3 + 2 + 2 + SHARD_SIZE + 1))
    assert sorted(set(table["shard"].to_pylist())) == [0, 1, 2, 3, 4]
    assert problems(store) == []


def test_an_append_that_is_killed_anywhere_is_finished_by_the_same_command(tmp_path, model):
    many = [*MORE, *({"prompt": f"d{n}", "rank": n} for n in range(3))]
    for kill_after in range(8):  # each of its writings
        store = open_store(str(tmp_path / f"out{kill_after}"))
        begin(tmp_path, store, FIRST, model)
        with pytest.raises(KilledError):
            append(tmp_path, store, many, model, kill_after=kill_after)
        if kill_after:  # it has begun
            assert rounds.complete(store) is None
            assert any("the job has not finished" in one for one in problems(store))
            with pytest.raises(SpecError, match=r"an append to .* is not finished"):
                append(tmp_path, store, [{"prompt": "other"}], model)
            assert list(garbage.collect(store, grace_s=-60)) == []
        append(tmp_path, store, many, model)
        assert found(store)["index"].to_pylist() == list(range(8))
        assert len(list(store.list("videos/"))) == 6
        assert problems(store) == []


def test_two_drivers_append_once(tmp_path, model, store):
    prompts = tmp_path / "more.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"p{n}", "rank": n}) for n in range(400)))
    root = str(tmp_path / "out")
    command = [sys.executable, "-m", "tests.cluster.results.test_appending", root, str(prompts)]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for driver in drivers:
        driver.stdout.readline()  # it has planned, and begins
    assert [driver.wait() for driver in drivers] == [0, 0]
    assert found(store)["index"].to_pylist() == list(range(403))
    assert len(list(store.list("receipts/"))) == 402
    assert problems(store) == []


def test_two_different_appends_at_once_are_told_apart(tmp_path, model, store):
    one, other = (
        appended(store, read(tmp_path, [{"prompt": text}]), model, model.defaults)
        for text in ("one", "other")
    )
    drive(store, one)
    with pytest.raises(SpecError, match="another append, or a retry"):
        rounds.begin(store, other.round, other.spec)


def test_what_failed_before_stays_failed_and_what_was_given_up_is_rendered(tmp_path, model):
    store = open_store(str(tmp_path / "out"))
    begin(tmp_path, store, FIRST, model, failed=["b"])
    append(tmp_path, store, MORE, model, failed=["c"])
    done, success = rounds.complete(store)
    assert (success.rows, success.failed) == (3, 2)
    assert manifest.failed_items(store, success) == {
        (item.shard, item.id)
        for item in (
            plan_rows(read(tmp_path, FIRST), model, model.defaults).items[1],
            appended(store, read(tmp_path, MORE), model, model.defaults).items[1],
        )
    }
    assert problems(store) == []
    # A retry of the appended rows leaves the others as they are.
    again = appended(store, read(tmp_path, MORE), model, model.defaults)
    here = Manifest(store, done.retry_round + 1)
    rounds.begin(store, here.retry_round, rounds.retry(again.round))
    here.commit(row_of(again.items[1], here))
    here.close_shard(1, again.items[1:], again.beside, first=again.first)
    success = here.finish([1], success)
    assert (success.rows, success.failed) == (4, 1)
    assert problems(store) == []
    assert found(store)["index"].to_pylist() == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([FIRST[1], FIRST[0], FIRST[2], *MORE], "not at its beginning"),
        ([{**FIRST[0], "rank": 9}, *FIRST[1:], *MORE], "not at its beginning"),
        ([{"prompt": "c", "other": 1}], "have no column 'other'"),
        ([{"prompt": "c", "rank": "text"}], "'rank' is int64 in the root"),
        ([{"prompt": "c", "rank": 1.5}], "'rank' is int64 in the root"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, model, store, rows, said):
    was = contents(store)
    with pytest.raises((SpecError, PromptsError), match=said):
        append(tmp_path, store, rows, model)
    assert contents(store) == was


def test_columns_that_are_left_out_are_null_and_whole_numbers_fit(tmp_path, model, store):
    append(tmp_path, store, [{"prompt": "c"}, {"prompt": "d", "rank": 7.0}], model)
    assert found(store)["extra.rank"].to_pylist() == [1, 2, 3, None, 7]


def test_roots_that_take_no_rows_say_why(tmp_path, model):
    prompts = read(tmp_path, MORE)
    unused = open_store(str(tmp_path / "unused"))
    with pytest.raises(SpecError, match="nothing to append to"):
        appended(unused, prompts, model, model.defaults)
    begun = open_store(str(tmp_path / "begun"))
    with pytest.raises(KilledError):
        begin(tmp_path, begun, FIRST, model, kill_after=2)
    with pytest.raises(SpecError, match="is not finished: run the command that began it"):
        append(tmp_path, begun, MORE, model)
    assert appended(begun, read(tmp_path, FIRST), model, model.defaults).round == 0
    earlier = open_store(str(tmp_path / "earlier"))
    plan.freeze(earlier, plan.specification("render", [], model, model.defaults))
    with pytest.raises(SpecError, match="not a render's of this version"):
        append(tmp_path, earlier, MORE, model)


def test_settings_are_the_roots(tmp_path, model, store):
    other = {**model.defaults, "height": 80}
    with pytest.raises(SpecError, match="--height is 64 there and 80 here"):
        appended(store, read(tmp_path, MORE), model, other)


def test_a_file_with_all_rows_in_another_order_is_refused_after_other_appends_too(
    tmp_path, model, store
):
    append(tmp_path, store, MORE, model)
    with pytest.raises(SpecError, match="not at its beginning"):
        append(tmp_path, store, [*FIRST[::-1], {"prompt": "d", "rank": 1}], model)


def test_a_new_setting_gets_a_schedule_of_its_own_and_a_known_one_no_other(tmp_path, model):
    def planned(rows: list[dict], budget: str, *more: str) -> RowPlan:
        file, root = tmp_path / "rows.jsonl", str(tmp_path / "out")
        file.write_text("\n".join(map(json.dumps, rows)))
        flags = ["--model", "tiny", "--prompts", str(file), "--output", root, "--budget", budget]
        prepared = prepare(configured("render", [*flags, *more]))
        schedules.update({item.id: prepared.schedule for item in prepared.items})
        return prepared.plan

    store, schedules = open_store(str(tmp_path / "out")), {}
    drive(store, planned([{"prompt": "a"}], "10"), schedules=schedules)
    drive(store, planned([{"prompt": "b", "height": 96}], "10", "--append"), schedules=schedules)
    spec = rounds.specification(store)
    assert spec["schedule"] is None
    assert len(spec["schedules"]) == 2
    assert problems(store) == []
    for rows, budget in (([{"prompt": "c"}], "12"), ([{"prompt": "c", "width": 96}], "8")):
        with pytest.raises(SpecError, match=f"of 10 forwards there and .* of {budget} forwards"):
            planned(rows, budget, "--append")


def test_a_round_that_was_removed_or_damaged_is_found(tmp_path, model, store):
    append(tmp_path, store, MORE, model)
    described = store.get(rounds.key_of(1))
    store.delete(rounds.key_of(1))
    assert any("say 3 rows, the manifest 5" in one for one in problems(store))
    store.put(rounds.key_of(1), described[:-20])
    assert any("is damaged" in one for one in problems(store))
    with pytest.raises(StoreError, match="is damaged"):
        append(tmp_path, store, MORE, model)


def test_rows_are_appended_without_the_flag_nowhere(tmp_path, model, store):
    enlarged = plan_rows(read(tmp_path, [*FIRST, *MORE]), model, model.defaults)
    with pytest.raises(SpecError, match="add rows to it with --append"):
        plan.check_spec(store, enlarged.spec)


if __name__ == "__main__":
    root, file = sys.argv[1:]
    model_, store_ = find_model("tiny"), open_store(root)
    planned_ = appended(store_, read_prompts(file), model_, model_.defaults)
    print("ready", flush=True)
    drive(store_, planned_)
