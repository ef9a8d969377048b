"""What fits a GPU and what does not, on the real HunyuanVideo's configuration."""

import json
import shutil
from dataclasses import replace

import pytest

from cluster.models.cost_model import GIB
from cluster.models.memory_plan import Demand, MemoryPlanError
from cluster.models.model import find_model
from cluster.ranks.memory import component_bytes
from cluster.ranks.random_weights import FULL
from meancache import tiny

FULL_SIZE = {"height": 720, "width": 1280, "num_frames": 129}


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory) -> Demand:
    """A staged gang's demand at 1280x720x129 on one GPU, of configurations alone."""
    folder = tmp_path_factory.mktemp("models") / "hunyuan"
    shutil.copytree(tiny.WEIGHTS, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, sizes in FULL.items():
        path = folder / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **sizes}))
    model = find_model(str(folder))
    return Demand(model, component_bytes(model), {**model.defaults, **FULL_SIZE}, 1, 1)


def gib(parts) -> float:
    return sum(parts.values()) / GIB


def test_weights_and_activations_of_the_real_model_are_counted_once_each(hunyuan):
    parts = {name: round(size / GIB, 1) for name, size in hunyuan.parts(rank=0).items()}
    assert parts == {
        "transformer": 23.9,
        "vae": 0.5,
        "activations": 12.3,
        "velocities": 0.1,
        "process": 1.0,
        "encoders' text_encoder": 14.0,
        "encoders' text_encoder_2": 0.2,
        "encoders' vae": 0.5,
        "encoders' decoding": 15.8,
        "encoders' process": 1.0,
    }


def test_ranks_share_activations_and_rank_0_has_the_encoders_beside_it(hunyuan):
    pair = replace(hunyuan, gang_size=2)
    alone, shared = hunyuan.parts(1), pair.parts(1)
    assert shared["activations"] == pytest.approx(alone["activations"] / 2, rel=0.01)
    assert {**shared, "activations": 0} == {**alone, "activations": 0}
    assert not any("encoders" in name for name in shared)
    assert shared.items() < pair.parts(0).items()


def test_a_ring_holds_keys_and_values_beside_a_shares_activations(hunyuan):
    # 6 divides the 24 heads, 5 and 7 do not.
    activations = {n: replace(hunyuan, gang_size=n).parts(0)["activations"] for n in (5, 6, 7)}
    assert activations[5] > activations[7] > 1.2 * activations[6]


def test_encoders_of_several_ranks_have_a_vae_each_and_the_text_encoders_on_rank_0(
    hunyuan,
):
    pair = replace(hunyuan, gang_size=2, encoders_size=2)
    assert pair.parts(0) == replace(pair, encoders_size=1).parts(0)
    beside = {name for name in pair.parts(1) if name.startswith("encoders")}
    assert beside == {"encoders' vae", "encoders' decoding", "encoders' process"}


@pytest.mark.parametrize(
    ("gang_size", "memory_gib", "offloaded"),
    [(1, 80, False), (1, 62, True), (2, 64, False), (2, 54, True), (8, 60, False)],
)
def test_encoders_leave_the_gpu_only_where_they_do_not_fit_beside_the_gang(
    hunyuan, gang_size, memory_gib, offloaded
):
    demand = replace(hunyuan, gang_size=gang_size)
    assert demand.offloads(memory_gib * GIB, rank=0) is offloaded
    assert demand.offloads(memory_gib * GIB, rank=gang_size - 1) in (offloaded, False)


def test_offloaded_encoders_take_no_more_than_their_largest_stage(hunyuan):
    resident, one_by_one = hunyuan.parts(0), hunyuan.parts(0, offloaded=True)
    assert set(resident) - set(one_by_one) == {
        "encoders' text_encoder",
        "encoders' text_encoder_2",
    }
    assert one_by_one.items() < resident.items()


def test_ranks_that_hold_the_whole_pipeline_do_one_thing_after_the_other(hunyuan):
    whole = replace(hunyuan, encoders_size=0)
    assert "activations" not in whole.parts(0)  # which take less than decoding, at another time
    longer = replace(whole, arguments={**whole.arguments, "num_frames": 253})
    assert "decoding" not in longer.parts(0)
    assert whole.parts(0) == whole.parts(1) == whole.parts(0, offloaded=True)
    assert gib(whole.parts(0)) < gib(hunyuan.parts(0))


def test_what_cannot_be_is_refused_with_the_numbers_the_rule_and_the_fix(hunyuan):
    with pytest.raises(MemoryPlanError) as refused:
        hunyuan.offloads(49 * GIB, rank=0)
    sentence = str(refused.value)
    assert "at 1280x720x129 needs 55.0 GiB on the GPU of rank 0, which has 49.0" in sentence
    assert "6.0 are missing (transformer 23.9, vae 0.5, activations 12.3" in sentence
    assert "every rank holds all weights" in sentence
    assert sentence.endswith("Use --gang-size 2 or a smaller video or picture")


def test_a_gang_is_advised_only_of_a_size_that_is_possible_and_fits(hunyuan):
    with pytest.raises(MemoryPlanError, match=r"Use --gang-size 4 or a smaller video or picture$"):
        hunyuan.offloads(46.3 * GIB, rank=0)  # 3 divides the heads and the tokens, and is too small
    odd = replace(hunyuan, arguments={**hunyuan.arguments, "num_frames": 1, "height": 5040})
    with pytest.raises(MemoryPlanError, match=r"Use a smaller video or picture$"):
        odd.offloads(40.5 * GIB, rank=0)


def test_where_weights_alone_are_too_large_no_shape_and_no_gang_is_advised(hunyuan):
    with pytest.raises(MemoryPlanError, match="no shape and no gang size would fit"):
        hunyuan.offloads(24 * GIB, rank=0)
    with pytest.raises(MemoryPlanError, match="no shape and no gang size would fit"):
        replace(hunyuan, gang_size=2).offloads(24 * GIB, rank=1)


def test_a_wider_dtype_takes_as_much_more(hunyuan):
    wide = replace(hunyuan, model=replace(hunyuan.model, dtype="float32"))
    for name in ("activations", "encoders' decoding"):
        assert wide.parts(0)[name] == 2 * hunyuan.parts(0)[name]


def test_of_a_transformer_that_is_not_known_only_weights_are_counted(hunyuan):
    unknown = replace(hunyuan, model=replace(hunyuan.model, transformer=None))
    assert unknown.parts(1).keys() == {"transformer", "vae", "process"}
