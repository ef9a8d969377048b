"""A plan is a pure function of the command; a root belongs to one plan."""

import dataclasses

import pytest

from cluster.models.pipelines import PIPELINES
from cluster.store import open_store
from cluster.work.plan import SHARD_SIZE, SpecError, check_spec, freeze, plan_items, specification
from cluster.work.prompts import Prompt, stable_seed
from meancache import Schedule


def prompts(count: int, **row) -> list[Prompt]:
    return [Prompt(line, f"prompt {line}", f"id-{line}", **row) for line in range(count)]


def test_the_same_command_makes_the_same_plan(model):
    assert plan_items(prompts(5), model, model.defaults) == plan_items(
        prompts(5), model, model.defaults
    )


def test_where_tiles_meet_is_part_of_an_id_where_there_are_several(model):
    kind = dataclasses.replace(model.kind, tiling={"tile_sample_min_width": 256})
    for frames, differs in [(9, False), (37, True)]:
        ids = []
        for of in (model.kind, kind):
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(PIPELINES, model.pipeline, of)
                arguments = {**model.defaults, "num_frames": frames}
                ids.append(plan_items(prompts(1), model, arguments)[0].id)
        assert (ids[0] != ids[1]) == differs


def test_shards_are_runs_of_the_plan(model):
    items = plan_items(prompts(2 * SHARD_SIZE + 1), model, model.defaults)
    assert [item.index for item in items] == list(range(2 * SHARD_SIZE + 1))
    assert [items[n].shard for n in (0, SHARD_SIZE - 1, SHARD_SIZE, -1)] == [0, 0, 1, 2]


def test_identical_rows_are_one_item(model):
    twice = [*prompts(3, seed=1), *prompts(3, seed=1)]
    assert len(plan_items(twice, model, model.defaults)) == 3


def test_an_id_is_all_that_decides_the_pixels_and_nothing_else(model):
    grid = model.grid(50)
    schedule = Schedule.from_edges(grid.sigmas, [{"start": 0, "stop": 50, "span": 1}])
    row = Prompt(1, "a", "x", 1)

    def identity(row=row, model=model, schedule=None, **changes):
        return plan_items([row], model, {**model.defaults, **changes}, schedule)[0].id

    different = [
        identity(),
        identity(dataclasses.replace(row, prompt="b")),
        identity(dataclasses.replace(row, seed=2)),
        identity(dataclasses.replace(row, overrides={"guidance_scale": 5.0})),
        identity(model=dataclasses.replace(model, revision="other")),
        identity(model=dataclasses.replace(model, dtype="bfloat16")),
        identity(schedule=schedule),
        identity(height=80),
    ]
    assert len(set(different)) == len(different)
    assert identity(dataclasses.replace(row, prompt_id="y", line=9)) == identity()
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in different)


def test_a_row_without_a_seed_gets_its_ids_and_several_seeds_differ(model):
    items = plan_items(prompts(1), model, model.defaults, seeds=3)
    assert [item.seed for item in items] == [stable_seed("id-0", draw) for draw in range(3)]
    items = plan_items(prompts(1, seed=40), model, model.defaults, seeds=3)
    assert [item.seed for item in items] == [40, 41, 42]


def test_a_root_keeps_its_job_and_names_what_differs(tmp_path, model):
    store = open_store(str(tmp_path))
    items = plan_items(prompts(3), model, model.defaults)
    spec = specification("render", items, model, model.defaults)
    check_spec(store, spec)
    freeze(store, spec)
    freeze(store, spec)  # the same command again
    check_spec(store, spec)
    other = specification("render", items[:2], model, {**model.defaults, "guidance_scale": 5.0})
    with pytest.raises(SpecError) as refusal:
        freeze(store, other)
    assert "--guidance-scale is 6.0 there and 5.0 here" in str(refusal.value)
    assert "items is 3 there and 2 here" in str(refusal.value)
    assert "another --output" in str(refusal.value)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (None, "the schedule is none (every step) there and 'paper' of 4 forwards here"),
        ({"method": "paper", "budget": 8}, "is 'paper' of 8 forwards there and 'paper' of 4 forw"),
        ({"method": "paper", "budget": 4, "id": "x"}, "4 forwards, id 'x' there and 'paper' of 4"),
        ("a text", "the schedule is 'a text' there and 'paper' of 4 forwards here"),
    ],
)
def test_another_schedule_is_said_in_a_persons_words(tmp_path, there, said):
    store = open_store(str(tmp_path))
    freeze(store, {"schema": 1, "schedule": there})
    with pytest.raises(SpecError) as refusal:
        check_spec(
            store, {"schema": 1, "schedule": {"method": "paper", "budget": 4, "edges": [1, 2]}}
        )
    assert said in str(refusal.value)
    assert "edges" not in str(refusal.value)


def test_a_root_with_something_else_for_a_job_is_refused(tmp_path, model):
    (tmp_path / "job.json").write_text("[]")
    with pytest.raises(SpecError, match="not a job's JSON"):
        check_spec(open_store(str(tmp_path)), {"schema": 1})
