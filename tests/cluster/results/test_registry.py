"""The registry: one schedule is current, whatever dies and whoever comes at the same time."""

import json
import multiprocessing
import os
import signal
import threading
from itertools import count

import pytest

from cluster.results.registry import (
    PromotedMeanwhileError,
    Promotion,
    RegistryError,
    Succession,
    find_current,
    key_of,
    setting_of,
)
from cluster.store import MissingKey, Store, open_store
from meancache import Schedule
from meancache.json_values import canonical_json

STEPS = 8
METRICS = {"psnr": 40.5}


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Store:
    s3 = request.param == "s3"
    return open_store(request.getfixturevalue("s3_root") if s3 else str(tmp_path / "root"))


@pytest.fixture
def setting(model) -> dict:
    return setting_of(model, {**model.defaults, "num_inference_steps": STEPS})


@pytest.fixture
def succession(store, setting) -> Succession:
    return Succession(store, {**setting, "budget": 2})


@pytest.fixture
def schedules(model) -> list[Schedule]:
    """Three of two forwards: the second at another step in each."""
    return [
        Schedule.from_edges(
            model.grid(STEPS).sigmas,
            [{"start": 0, "stop": step, "span": 1}, {"start": step, "stop": STEPS, "span": 1}],
        )
        for step in (3, 4, 5)
    ]


def published(succession: Succession) -> dict:
    """`current.json`, as a reader from outside has it."""
    return json.loads(succession.store.get(f"{succession.folder}current.json"))


def test_what_is_promoted_is_current_for_readers_in_and_outside(succession, setting, schedules):
    first, second, _ = schedules
    one = succession.promote(first, METRICS, None)
    two = succession.promote(second, METRICS, one)
    assert succession.current() == two
    assert succession.history() == [one, two]
    assert find_current(succession.store, setting) == second
    said = published(succession)
    assert (said["schedule_id"], said["previous"]) == (second.id, first.id)
    assert said["metrics"] == METRICS
    assert said["promoted_at"] == two.promoted_at
    lying = succession.store.get(f"{succession.folder}{first.id}.json")
    assert Schedule.loads(lying) == first


def test_rollbacks_go_back_one_by_one_and_leave_a_history(succession, schedules):
    last = None
    for schedule in schedules:
        last = succession.promote(schedule, METRICS, last)
    first, second, third = (schedule.id for schedule in schedules)
    assert succession.rollback().schedule_id == second == published(succession)["schedule_id"]
    assert succession.rollback().schedule_id == first == published(succession)["schedule_id"]
    with pytest.raises(RegistryError, match=r"nothing to roll back to .* is the first"):
        succession.rollback()
    history = [promotion.schedule_id for promotion in succession.history()]
    assert history == [first, second, third, second, first]
    # What comes after a rollback replaces what that restored.
    again = succession.promote(schedules[2], METRICS, succession.current())
    assert (again.schedule_id, again.previous) == (third, first)


def killed_at(write: int, succession: Succession, action) -> bool:
    """Runs `action` in a process that is killed before its n-th write; whether it was."""

    def die() -> None:
        store, writes = succession.store, count()
        for name in ("put_new", "put"):
            method = getattr(store, name)

            def deadly(*arguments, method=method):
                if next(writes) == write:
                    os.kill(os.getpid(), signal.SIGKILL)
                return method(*arguments)

            setattr(store, name, deadly)
        action(succession)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("what", ["first promotion", "promotion", "rollback"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_the_same_again_completes_it(
    store, setting, schedules, what
):
    old, new, _ = schedules

    def begun(take: int) -> Succession:
        found = Succession(store, {**setting, "budget": 2, "take": take})
        before = None if what == "first promotion" else found.promote(old, METRICS, None)
        if what == "rollback":
            found.promote(new, METRICS, before)
        return found

    def act(succession: Succession) -> None:
        if what == "rollback":
            succession.rollback()
        else:
            first = None if what == "first promotion" else succession.promotion(1)
            succession.promote(new, METRICS, first)

    # `before` is what a reader may find until the act is done, `after` what it then finds.
    before = {"first promotion": None, "promotion": old.id, "rollback": new.id}[what]
    after = old.id if what == "rollback" else new.id
    writes = 0
    while killed_at(writes, succession := begun(writes), act):
        last = succession.current()
        assert (last and last.schedule_id) in (before, after)
        if before is not None:
            assert published(succession)["schedule_id"] in (before, after)
        if last is not None:
            succession.schedule(last.schedule_id)
        history = len(succession.history())
        act(succession)
        assert succession.current().schedule_id == after == published(succession)["schedule_id"]
        assert len(succession.history()) <= history + 1
        writes += 1
    assert writes == (2 if what == "rollback" else 4)


def test_of_many_promotions_at_once_one_counts_and_the_others_learn_of_it(succession, model):
    schedules = [
        Schedule.from_edges(
            model.grid(STEPS).sigmas, [{"start": 0, "stop": STEPS, "weights": {0: 1.0 + 0.01 * n}}]
        )
        for n in range(6)
    ]
    ready, told = threading.Barrier(len(schedules)), []

    def promote(schedule: Schedule) -> None:
        ready.wait()
        try:
            succession.promote(schedule, METRICS, None)
        except PromotedMeanwhileError as error:
            told.append(str(error))

    threads = [threading.Thread(target=promote, args=(schedule,)) for schedule in schedules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = succession.history()
    assert len(told) == len(schedules) - 1
    assert all(winner.schedule_id[:16] in sentence for sentence in told)
    assert published(succession)["schedule_id"] == winner.schedule_id


def test_whoever_publishes_last_the_last_promotion_is_published(succession, schedules):
    one = succession.promote(schedules[0], METRICS, None)
    stale = succession.store.get(f"{succession.folder}current.json")
    real = succession.store.put

    def overtaken(key: str, data: bytes) -> None:
        """Between the look at the history and the writing, another promotes and publishes."""
        succession.store.put = real
        Succession(open_store(root), succession.setting).promote(schedules[1], METRICS, one)
        real(key, data)

    root = succession.store.uri("x").removesuffix("/x")
    succession.store.delete(f"{succession.folder}current.json")
    succession.store.put = overtaken
    succession.publish()
    assert published(succession)["schedule_id"] == schedules[1].id
    assert succession.store.get(f"{succession.folder}current.json") != stale


class TestFinding:
    """What `render --schedule current` asks."""

    @pytest.fixture
    def store(self, tmp_path) -> Store:
        return open_store(str(tmp_path / "root"))

    def test_an_empty_registry_says_where_schedules_come_from(self, store, setting):
        with pytest.raises(RegistryError, match=r"no current schedule in .* jobs\.refresh"):
            find_current(store, setting)

    def test_the_nearest_setting_is_named_with_what_differs(self, store, setting, schedules):
        far = {**setting, "height": 128, "width": 128, "budget": 2}
        near = {**setting, "revision": "0" * 40, "budget": 2}
        for one in (far, near):
            Succession(store, one).promote(schedules[0], METRICS, None)
        with pytest.raises(RegistryError) as refusal:
            find_current(store, setting)
        said = str(refusal.value)
        assert f"the nearest, {key_of(near)}, differs: revision is '000" in said
        assert repr(setting["revision"]) in said
        assert "height" not in said

    def test_of_several_budgets_one_has_to_be_chosen(self, store, setting, schedules):
        for budget, schedule in zip((2, 4), schedules, strict=False):
            Succession(store, {**setting, "budget": budget}).promote(schedule, METRICS, None)
        with pytest.raises(RegistryError, match=r"of 2, 4 forwards .* choose one with --budget"):
            find_current(store, setting)
        assert find_current(store, setting, 4) == schedules[1]
        with pytest.raises(RegistryError, match=r"budget is [24] there and 3 here"):
            find_current(store, setting, 3)

    def test_a_promotion_that_was_killed_before_it_counted_is_none(self, store, setting):
        folder = Succession(store, {**setting, "budget": 2}).folder
        store.put_new(f"{folder}setting.json", canonical_json({**setting, "budget": 2}))
        with pytest.raises(RegistryError, match="there is no current schedule"):
            find_current(store, setting)

    def test_settings_that_differ_in_anything_have_keys_of_their_own(self, setting):
        others = [{**setting, name: "another"} for name in setting]
        assert len({key_of(one) for one in [setting, *others]}) == 1 + len(setting)
        assert {"revision", "pipeline", "num_inference_steps", "shift", "height", "width",
                "num_frames", "guidance_scale", "dtype", "lora"} < set(setting)  # fmt: skip

    @pytest.mark.parametrize(
        "damage", [b"", b"[]", b'{"number": 1}', b'{"schedule_id": "../../job"}']
    )
    def test_a_damaged_promotion_is_refused(self, store, setting, schedules, damage):
        succession = Succession(store, {**setting, "budget": 2})
        succession.promote(schedules[0], METRICS, None)
        key = f"{succession.folder}promotions/000001.json"
        if damage.startswith(b'{"schedule_id'):
            whole = json.loads(store.get(key))
            damage = canonical_json({**whole, "schedule_id": "../../job"})
        store.put(key, damage)
        with pytest.raises(RegistryError, match=r"000001\.json is damaged"):
            find_current(store, setting)

    def test_another_schedule_in_the_place_of_the_current_one_is_refused(
        self, store, setting, schedules
    ):
        succession = Succession(store, {**setting, "budget": 2})
        succession.promote(schedules[0], METRICS, None)
        key = f"{succession.folder}{schedules[0].id}.json"
        store.put(key, schedules[1].dumps().encode())
        with pytest.raises(RegistryError, match="put the right one there, or roll back"):
            find_current(store, setting)
        store.delete(key)
        with pytest.raises(MissingKey):
            find_current(store, setting)


def test_a_promotion_is_read_as_it_was_written():
    one = Promotion(3, "a" * 64, None, "2026-11-21T03:00:00+00:00", {"psnr": 40.0}, rollback=True)
    assert Promotion.from_json(one.to_json()) == one
