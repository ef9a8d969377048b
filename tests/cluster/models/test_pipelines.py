"""Every pipeline of the table, whole and small: what the driver knows of it is what it does."""

import dataclasses
import inspect
import json
import shutil
import typing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from cluster.fleet.gang import Gang
from cluster.models.compiling import ALWAYS
from cluster.models.kinds import DENOISERS, TEXT
from cluster.models.model import Model, ModelError, find_model
from cluster.models.pipelines import PIPELINES
from cluster.models.sizes import component_bytes
from cluster.ranks import (
    RankBuilder,
    RenderRequest,
    denoise_batch,
    denoise_item,
    encode_for_batch,
    encoded,
    render_item,
)
from cluster.ranks.loading import load_pipeline
from cluster.ranks.renderer import Renderer
from cluster.ranks.split_call import over_white, unpack
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from meancache import Schedule
from meancache.hooks.pipelines import grid_of
from tests.support import ranks, saved_pipelines, several_renderers

STEPS = 6
SKIPS = [(0, 1, 1), (1, 2, 1), (2, 4, 2), (4, 6, 1)]
PROMPT = "a red circle on a dark background"
CPU = torch.device("cpu")
# Of latents of about 1, in float32: sums of several pictures round in another order.
TOLERANCE = 1e-4
# Pipelines whose texts are as long as their prompts; the others pad them.
CUT_TO_THEIR_TOKENS = ("QwenImagePipeline", "QwenImage21Pipeline", "ZImagePipeline")
RINGS = ["FLUX.1", "Qwen-Image", "Wan 2.1", "Wan 2.2", "HunyuanVideo-1.5"]
# Their attention is that of the others, and goes in the same rings.
LIKE_THEM = ["FLUX.2", "FLUX.2 Klein", "LTX-2", "Wan VACE"]
PARALLEL = RINGS + LIKE_THEM


@dataclasses.dataclass(frozen=True)
class Small:
    """A small model of a folder, and the size it is drawn in."""

    model: Model
    arguments: dict[str, Any]

    def request(self, prompt: str = PROMPT, schedule: Schedule | None = None, **changes: Any):
        arguments = {**self.arguments, **changes}
        self.model.check_arguments(arguments, 1)
        item = plan_items([Prompt(1, prompt, "p", 3)], self.model, arguments)[0]
        return RenderRequest(item, schedule)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Finds a small model by its name in FOLDERS; saves it first, where that is to be done."""
    known: dict[str, Small] = {}

    def find(name: str) -> Small:
        if name not in known:
            folder = saved_pipelines.save(
                name, tmp_path_factory.mktemp("models") / name.replace(" ", "-")
            )
            model = find_model(str(folder), dtype="float32")
            size = {"height": 64, "width": 96, "num_inference_steps": STEPS}
            every = model.temporal_compression
            frames = {} if model.kind.is_image else {"num_frames": 1 + every * max(1, 8 // every)}
            text = saved_pipelines.short_texts(model)
            known[name] = Small(model, {**model.defaults, **size, **frames, **text})
        return known[name]

    return find


@pytest.fixture(scope="module", params=saved_pipelines.FOLDERS)
def small(request, saved) -> Small:
    return saved(request.param)


@pytest.fixture(scope="module")
def alone(small) -> Renderer:
    return Renderer(small.model, 0, 1, "")


def test_the_driver_knows_size_noise_levels_and_forwards_of_a_run(small, alone):
    defaults = small.model.defaults
    own = {name: defaults[name] for name in saved_pipelines.short_texts(small.model)}
    asked = small.request(**own)
    rendering = render_item(alone, asked)
    assert rendering.frames.shape == (*small.model.shape(asked.item.arguments), 3)
    assert rendering.nfe == STEPS * small.model.calls(asked.item.arguments)
    assert small.model.grid(STEPS, small.arguments).matches(grid_of(alone.pipeline).sigmas)
    assert 0 < rendering.loop_s < rendering.seconds
    kind = small.model.kind
    magic = b"\x89PNG" if kind.is_image else b"ftyp"
    assert magic in encoded(small.model, rendering.frames)[:12]
    assert (small.model.fps == 0) == kind.is_image
    # Of what its memory is planned by: all that has weights, such as LTX-2's own parts.
    parts = alone.pipeline.components.items()
    modules = {name for name, part in parts if isinstance(part, torch.nn.Module)}
    assert set(component_bytes(small.model) or {}) == modules


def test_its_stages_in_processes_of_their_own_draw_what_the_pipeline_draws(small, alone):
    kind, arguments = small.model.kind, dict(small.arguments)
    if "true_cfg_scale" in kind.takes:
        arguments |= {"negative_prompt": "noise", "true_cfg_scale": 3.0}
    denoiser = Renderer(small.model, 0, 1, "", without=TEXT)
    encoders = Renderer(small.model, 0, 1, "", without=DENOISERS)
    texts = encoders.encode_prompt(PROMPT, arguments)
    assert encoders.encode_prompt(PROMPT, arguments) is texts
    denoised = denoiser.denoise(PROMPT, 3, arguments, texts=texts)
    frames = encoders.decode(denoised.latents, arguments)
    own = dict(arguments)
    if kind.guider:  # whose guidance is no argument
        del own["guidance_scale"]
    plain = alone.pipeline(
        prompt=PROMPT, generator=torch.Generator().manual_seed(3), output_type="np", **own
    )[0]
    expected = over_white(plain) if kind.is_image else plain[0]
    assert np.array_equal(frames, np.rint(expected * 255).astype(np.uint8))


def test_several_in_a_forward_are_the_pictures_that_they_are_alone(small, alone):
    if not small.model.kind.is_image:
        pytest.skip("a video goes alone")
    arguments = dict(small.arguments)
    if "true_cfg_scale" in small.model.kind.takes:
        arguments |= {"negative_prompt": "noise", "true_cfg_scale": 3.0}
    grid = small.model.grid(STEPS, arguments)
    schedule = Schedule.from_edges(grid.sigmas, [{"start": 0, "stop": STEPS, "span": 1}])
    prompts = [PROMPT, PROMPT.replace("red", "blue"), PROMPT.replace("circle", "square")]
    items = [
        replace(small.request().item, prompt=prompt, seed=seed, arguments=arguments)
        for seed, prompt in enumerate(prompts)
    ]
    for chosen in (None, schedule):
        given = [encode_for_batch(alone, item)[:2] for item in items]
        assert len({form for _, form in given}) == 1
        requests = [RenderRequest(i, chosen, t) for i, (t, _) in zip(items, given, strict=True)]
        together = denoise_batch(alone, requests)
        assert [(one.place, one.batch) for one in together] == [(0, 3), (1, 3), (2, 3)]
        for one, request in zip(together, requests, strict=True):
            own = denoise_item(alone, request)
            assert one.nfe == own.nfe
            pair = [unpack(each.latents, CPU)[0][0] for each in (one, own)]
            torch.testing.assert_close(*pair, atol=TOLERANCE, rtol=TOLERANCE)
            frames = [alone.decode(each.latents, arguments).astype(int) for each in (one, own)]
            assert np.abs(frames[0] - frames[1]).max() <= 1
    longer = replace(items[0], prompt=f"{PROMPT} light")
    lengths = {encode_for_batch(alone, item)[1] for item in (items[0], longer)}
    assert len(lengths) == 1 + (small.model.pipeline in CUT_TO_THEIR_TOKENS)


@pytest.mark.parametrize("name", PIPELINES)
def test_defaults_are_those_of_the_pipelines_call(name):
    kind = PIPELINES[name]
    parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
    for argument, default in kind.arguments.items():
        if argument in parameters:  # the guidance of one with a guider is not
            # LTX-2's num_frames is left open: where no other part knows it, it is this.
            assert parameters[argument].default in (default, None)


@pytest.mark.parametrize("pixels", [8, 16])
@pytest.mark.parametrize("target", [64, 240, 480, 640, 720, 960])
def test_the_default_size_of_hunyuan_video_15_is_its_image_processors(target, pixels):
    from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor

    processor = HunyuanVideo15ImageProcessor(vae_scale_factor=pixels)
    expected = processor.calculate_default_height_width(9, 16, target)
    size = PIPELINES["HunyuanVideo15Pipeline"].size
    assert size({"target_size": target}, pixels) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("FLUX.1", "HunyuanVideo", "HunyuanVideo-1.5", "SD3", "Z-Image"),
        *("Qwen-Image", "Wan 2.1", "Wan 2.2"),
    ],
)
def test_the_driver_knows_what_is_decoded_in_tiles(saved, name):
    """By the VAE itself, with the tile sizes that it has after loading."""
    model = saved(name).model
    vae = load_pipeline(model, torch.device("cpu")).vae.to("meta")
    decoded = []
    vae.decoder.register_forward_pre_hook(lambda *_: decoded.append(1))
    frames, pixels = model.temporal_compression, vae.config.get("spatial_compression_ratio", 8)
    most, by_frames = model.tile[1], model.kind.by_frames
    channels = vae.config.z_dim if by_frames else vae.config.latent_channels
    for height, width, num_frames in [
        (most, most, 1),
        (most, most + 2 * pixels, 1),
        (most + 2 * pixels, most, 1),
        *([] if model.kind.is_image else [(most, most, 1 + 3 * frames), (most, most, 37)]),
    ]:
        latent_frames = (num_frames - 1) // frames + 1
        latents = [latent_frames] * (by_frames or not model.kind.is_image)
        shape = (1, channels, *latents, height // pixels, width // pixels)
        vae.decode(torch.empty(shape, device="meta"))
        tiles = len(decoded) // (latent_frames if by_frames else 1)
        size = {"height": height, "width": width, "num_frames": num_frames}
        assert model.decodes_in_tiles(size) == (tiles > 1), size
        decoded.clear()


def test_a_run_depends_on_prompt_and_seed_alone(small, alone):
    first = alone.latents(PROMPT, 3, small.arguments)
    assert not torch.equal(alone.latents("a blue square", 3, small.arguments), first)
    assert not torch.equal(alone.latents(PROMPT, 4, small.arguments), first)
    assert torch.equal(alone.latents(PROMPT, 3, small.arguments), first)


def test_guidance_and_a_schedule_run_the_forwards_that_the_driver_counts(small, alone):
    kind = small.model.kind
    guidance = {"negative_prompt": "noise"} if "negative_prompt" in kind.takes else {}
    if "true_cfg_scale" in kind.takes:
        guidance |= {"true_cfg_scale": 3.0}
    edges = [{"start": start, "stop": stop, "span": span} for start, stop, span in SKIPS]
    sigmas = small.model.grid(STEPS, small.arguments).sigmas
    schedule = Schedule.from_edges(sigmas, edges, "fine-step")
    asked = small.request(schedule=schedule, **guidance)
    small.model.check_schedule(schedule, asked.item.arguments)
    assert render_item(alone, asked).nfe == len(SKIPS) * small.model.calls(asked.item.arguments)
    plain = {name: value for name, value in small.arguments.items() if name != "guidance_scale"}
    if "guidance_scale" in kind.arguments:
        off = {**plain, "guidance_scale": 1.0}
        assert small.model.calls(off) == (3 if small.model.pipeline == "LTX2Pipeline" else 1)
        assert alone.render(PROMPT, 3, off).nfe == STEPS * small.model.calls(off)


def gang_of(size, saved):
    models = {name: saved(name).model for name in PARALLEL}
    return Gang(partial(several_renderers.build, models), size)


@pytest.fixture(scope="module")
def pair(saved):
    with gang_of(2, saved) as ranks_:
        yield ranks_


@pytest.fixture(scope="module")
def two_rings(saved):  # their heads are 2
    with gang_of(4, saved) as ranks_:
        yield ranks_


def compare(saved, gang, name, texts):
    """A gang's latents and frames with those of one rank; negative prompts go with the first."""
    small = saved(name)
    one = Renderer(small.model, 0, 1, "")
    small.model.check_arguments(small.arguments, gang.world_size)
    takes = small.model.kind.takes
    guidance = {"negative_prompt": "noise a b"} if "negative_prompt" in takes else {}
    if "true_cfg_scale" in takes:
        guidance |= {"true_cfg_scale": 3.0}
    for prompt in texts:
        asked = small.request(prompt, **guidance)
        shared = gang.run(several_renderers.drawn, (name, asked))
        alone = several_renderers.draw(one, asked)
        several_renderers.check_alike(shared, alone)
        assert (shared.frames != alone.frames).mean() < 0.01
        guidance = {}


@pytest.mark.parametrize("name", PARALLEL)
def test_two_ranks_draw_what_one_draws(saved, pair, name):
    # Of their texts' lengths one is odd.
    compare(saved, pair, name, ["a blue square", PROMPT.removeprefix("a "), PROMPT])


@pytest.mark.parametrize(
    "name", [*RINGS, *(pytest.param(name, marks=pytest.mark.slow) for name in LIKE_THEM)]
)
def test_two_rings_draw_what_one_rank_draws(saved, two_rings, name):
    compare(saved, two_rings, name, ["a blue square", PROMPT.removeprefix("a ")])


@pytest.mark.slow
@pytest.mark.parametrize("name", PARALLEL)
def test_two_compiled_ranks_draw_what_an_eager_one_draws(saved, name):
    small = saved(name)
    one = Renderer(small.model, 0, 1, "")
    with Gang(RankBuilder(small.model, compiling=ALWAYS), 2) as gang:
        for prompt in (PROMPT, PROMPT.removeprefix("a ")):  # one's text is not shared out
            asked = small.request(prompt)
            compiled = gang.run(ranks.latents, asked)
            torch.testing.assert_close(compiled, ranks.latents(one, asked), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name",
    ["SD3", "Z-Image", "LTX-Video", "CogView4", "Kandinsky 5", "Mochi", "Qwen-Image-2.1"],
)
def test_a_gang_is_refused_where_there_is_no_way_to_share(saved, name):
    small = saved(name)
    with pytest.raises(ModelError, match=r"cannot share a \w+ here; use --gang-size 1, or one of"):
        small.model.check_arguments(small.arguments, 2)


def test_every_row_of_the_table_for_text_is_tried_here(saved):
    from_text = {name for name, kind in PIPELINES.items() if not kind.takes_image}
    assert {saved(name).model.pipeline for name in saved_pipelines.FOLDERS} == from_text


@pytest.mark.parametrize(
    ("name", "changes", "gang_size", "sentence"),
    [
        ("FLUX.1", {"num_frames": 9}, 1, "is a FluxPipeline, which takes no num_frames; it takes"),
        ("Wan 2.1", {"true_cfg_scale": 2.0}, 1, "which takes no true_cfg_scale"),
        ("FLUX.1", {"height": 40}, 1, "height 40 must be a multiple of 16"),
        ("FLUX.1", {"height": "64"}, 1, "height '64' must be between"),
        ("LTX-Video", {"num_frames": 10}, 1, "num_frames 10 must be 1 more than a multiple of 8"),
        ("FLUX.1", {"max_sequence_length": 77}, 2, "does not divide the 77 tokens that .* pads"),
        (
            "Qwen-Image",
            {"height": 48, "width": 48},
            2,
            "the 9 tokens of 48x48; use 1, 3, 9, or another size",
        ),
    ],
)
def test_arguments_that_a_pipeline_cannot_run_are_refused(
    saved, name, changes, gang_size, sentence
):
    small = saved(name)
    with pytest.raises(ModelError, match=sentence):
        small.model.check_arguments({**small.arguments, **changes}, gang_size)


@pytest.mark.parametrize("name", ["FLUX.1", "Qwen-Image", "LTX-Video"])
def test_a_schedule_of_another_image_size_is_refused_by_its_noise_levels(saved, name):
    small = saved(name)
    grid = small.model.grid(STEPS, {**small.arguments, "height": 1024, "width": 1024})
    schedule = Schedule.from_edges(grid.sigmas, [{"start": 0, "stop": STEPS, "span": 1}])
    with pytest.raises(ModelError, match="give the schedule's --steps and size"):
        small.model.check_schedule(schedule, small.arguments)


def test_a_schedule_calibrated_without_guidance_is_refused_under_it(saved):
    small = saved("FLUX.1")
    edges = [{"start": 0, "stop": STEPS, "span": 1}]
    grid = small.model.grid(STEPS, small.arguments)
    bare = Schedule.from_edges(grid.sigmas, edges)
    guided = {**small.arguments, "true_cfg_scale": 2.0, "negative_prompt": "noise"}
    small.model.check_schedule(bare, guided)  # by hand: it says nothing of guidance
    calibrated = dataclasses.replace(
        bare,
        model=small.model.key,
        conditions=small.model.conditions(small.arguments),
        calibration={"graph": "0" * 64, "trajectories": 1},
    )
    small.model.check_schedule(calibrated, small.arguments)
    with pytest.raises(ModelError, match="guidance in 1 forward a step, but this job's takes 2"):
        small.model.check_schedule(calibrated, guided)
    other = dataclasses.replace(calibrated, conditions=small.model.conditions(guided))
    with pytest.raises(ModelError, match=r"true_cfg_scale 2\.0, but this job has None"):
        small.model.check_schedule(other, small.arguments)


def test_the_size_that_a_call_leaves_open_is_its_pipelines_own(saved):
    assert [saved("FLUX.1").model.defaults[name] for name in ("height", "width")] == [1024, 1024]
    wide = saved("HunyuanVideo-1.5").model.defaults
    assert wide["width"] > wide["height"]


def test_wans_multistep_sampler_gives_way_to_euler_steps_of_its_shift(saved):
    model = saved("Wan 2.1").model
    config = json.loads((Path(model.source) / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "UniPCMultistepScheduler"
    scheduler = load_pipeline(model, torch.device("cpu")).scheduler
    assert type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert scheduler.config.shift == config["flow_shift"] == 3.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_class_name": "DDIMScheduler"}, "'DDIMScheduler' does not follow a flow"),
        ({"_class_name": ["x"]}, "does not follow a flow"),
        ({"base_shift": "x"}, "cannot be used"),
        ({"max_image_seq_len": 256}, "cannot be used"),
    ],
)
def test_a_scheduler_that_cannot_be_used_is_refused(saved, tmp_path, change, sentence):
    folder = tmp_path / "model"
    shutil.copytree(
        saved("FLUX.1").model.source, folder, ignore=shutil.ignore_patterns("*.safetensors")
    )
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=sentence):
        find_model(str(folder))


@pytest.mark.parametrize("name", ["WanVideoToVideoPipeline", "QwenImageEditInpaintPipeline"])
def test_a_pipeline_that_draws_from_more_than_rows_hold_is_refused_with_the_reason(tmp_path, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ModelError, match="needs more than text and an image a row"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_table_knows_whose_blocks_diffusers_can_compile(pipeline):
    transformer = typing.get_type_hints(getattr(diffusers, pipeline).__init__)["transformer"]
    kinds = [
        kind for kind in typing.get_args(transformer) or [transformer] if kind is not type(None)
    ]
    assert [bool(kind._repeated_blocks) for kind in kinds] == [PIPELINES[pipeline].compiles] * len(
        kinds
    )
