"""Every pipeline of the table that draws from an image, whole and small."""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from cluster.fleet.gang import Gang
from cluster.media.picture import Picture, opened
from cluster.models.kinds import DENOISERS, TEXT
from cluster.models.model import Model, ModelError, find_model
from cluster.models.pipelines import PIPELINES
from cluster.models.sharing import check_image
from cluster.ranks import RenderRequest, render_item
from cluster.ranks.renderer import Renderer
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from meancache import Schedule
from meancache.hooks.pipelines import grid_of
from tests.support import saved_pipelines, several_renderers
from tests.support.image_pipelines import given, picture

STEPS = 4
SKIPS = [(0, 1, 1), (1, 2, 1), (2, 4, 2)]
PROMPT = "a red circle on a dark background"
WIDTH, HEIGHT = 120, 80
VIDEOS = ["HunyuanVideo I2V", "Wan 2.1 I2V", "Wan 2.2 I2V", "HunyuanVideo-1.5 I2V"]
EDITS = ["FLUX.1 Kontext", "Qwen-Image-Edit", "Qwen-Image-Edit-Plus"]


@dataclasses.dataclass(frozen=True)
class Small:
    """A small model of a folder, the size it is drawn in, and what it is drawn from."""

    model: Model
    arguments: dict[str, Any]
    image: Picture

    @property
    def call(self) -> dict[str, Any]:
        return {**self.arguments, "image": self.image}

    def request(self, schedule: Schedule | None = None, **changes: Any) -> RenderRequest:
        row = Prompt(1, PROMPT, "p", 3, image=self.image)
        arguments = {**self.arguments, **changes}
        return RenderRequest(plan_items([row], self.model, arguments)[0], schedule)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Finds a small model by its name in WITH_IMAGES; saves it first, where that is to be done."""
    known: dict[str, Small] = {}

    def find(name: str) -> Small:
        if name not in known:
            folder = saved_pipelines.save(name, tmp_path_factory.mktemp("models") / "model")
            model = find_model(str(folder), dtype="float32")
            size = {"height": 64, "width": 96}
            if not model.kind.sized:
                size = model.size_for(WIDTH, HEIGHT)
            frames = {} if model.kind.is_image else {"num_frames": 9}
            others = {**saved_pipelines.short_texts(model), "num_inference_steps": STEPS}
            arguments = {**model.defaults, **size, **frames, **others}
            known[name] = Small(model, arguments, given(picture(WIDTH, HEIGHT)))
        return known[name]

    return find


def plain(pipeline: Any, small: Small) -> np.ndarray:
    """What diffusers draws by itself from the same image."""
    own = dict(small.arguments)
    if small.model.kind.guider:
        del own["guidance_scale"]
    size = own["width"], own["height"]
    if not small.model.kind.sized:
        del own["width"], own["height"]
    drawn = pipeline(
        image=opened(small.image, None if small.model.image_size else size),
        prompt=PROMPT,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        **own,
        **small.model.kind.derived(small.arguments),
    )[0]
    return np.rint((drawn if small.model.kind.is_image else drawn[0]) * 255).astype(np.uint8)


@pytest.fixture
def small_edits(monkeypatch):
    """Editing pipelines resize images to a megapixel, which is nothing but time here."""
    from diffusers.pipelines.flux import pipeline_flux_kontext
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus

    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(96, 64)])
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: (96, 64, None))
    monkeypatch.setattr(edit_plus, "calculate_dimensions", lambda area, ratio: (96, 64))


@pytest.mark.parametrize("name", saved_pipelines.WITH_IMAGES)
@pytest.mark.usefixtures("small_edits")
def test_it_draws_from_the_image_what_the_pipeline_draws_in_one_process_and_in_three(saved, name):
    small = saved(name)
    model, arguments = small.model, small.arguments
    model.check_arguments(arguments, 1)
    denoiser = Renderer(model, 0, 1, "", without=TEXT)
    encoders = Renderer(model, 0, 1, "", without=DENOISERS)
    texts = encoders.encode_prompt(PROMPT, small.call)
    denoised = denoiser.denoise(PROMPT, 3, small.call, texts=texts)
    frames = encoders.decode(denoised.latents, arguments)
    assert frames.shape == (*model.shape(arguments), 3)
    assert denoised.nfe == STEPS * model.calls(arguments)
    assert model.grid(STEPS, arguments).matches(grid_of(denoiser.pipeline).sigmas)
    alone = Renderer(model, 0, 1, "")
    difference = np.abs(frames.astype(int) - plain(alone.pipeline, small))
    # HunyuanVideo-1.5's embeddings lie elsewhere in memory, where sums round in another way.
    assert difference.max() <= (1 if name == "HunyuanVideo-1.5 I2V" else 0)
    assert difference.mean() < 0.01
    other = {**arguments, "image": given(picture(WIDTH, HEIGHT, seed=1))}
    assert encoders.encode_prompt(PROMPT, other) is not texts
    own = alone.latents(PROMPT, 3, small.call)
    assert not torch.equal(alone.latents(PROMPT, 3, other), own)
    edges = [{"start": start, "stop": stop, "span": span} for start, stop, span in SKIPS]
    schedule = Schedule.from_edges(model.grid(STEPS, arguments).sigmas, edges, "fine-step")
    asked = small.request(schedule)
    model.check_schedule(schedule, asked.item.arguments)
    assert render_item(alone, asked).nfe == len(SKIPS) * model.calls(arguments)


@pytest.fixture(scope="module")
def gang(saved):
    models = {name: saved(name).model for name in [*VIDEOS, *EDITS]}
    with Gang(partial(several_renderers.build, models), 2) as ranks_:
        yield ranks_


@pytest.mark.parametrize(
    "name", [*VIDEOS, *(pytest.param(name, marks=pytest.mark.slow) for name in EDITS)]
)
def test_two_ranks_draw_from_an_image_what_one_draws(saved, gang, name):
    small = saved(name)
    small.model.check_arguments(small.arguments, 2)
    check_image(small.model, WIDTH, HEIGHT, 2)
    asked = small.request()
    shared = gang.run(several_renderers.drawn, (name, asked))
    alone = several_renderers.draw(Renderer(small.model, 0, 1, ""), asked)
    several_renderers.check_alike(shared, alone)


def test_a_gang_is_refused_where_xdit_does_not_know_how_the_image_is_taken(saved):
    small = saved("HunyuanVideo I2V, token replace")
    with pytest.raises(ModelError, match="the ranks of a gang cannot share"):
        small.model.check_arguments(small.arguments, 2)


def test_every_row_of_the_table_for_images_is_tried_here(saved):
    from_image = {name for name, kind in PIPELINES.items() if kind.takes_image}
    assert {saved(name).model.pipeline for name in saved_pipelines.WITH_IMAGES} == from_image


@pytest.mark.parametrize(("width", "height"), [(16, 9), (9, 16), (1, 1), (100, 33), (300, 1000)])
def test_sizes_that_follow_an_image_are_those_of_diffusers(width, height):
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
    from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    from cluster.models.configured import KONTEXT_SIZES

    own = HunyuanVideo15ImageProcessor(vae_scale_factor=16)
    ours = PIPELINES["HunyuanVideo15ImageToVideoPipeline"].image_size
    expected = own.calculate_default_height_width(height, width, 640)
    assert ours({"target_size": 640}, 16, (height, width)) == expected
    across, down, _ = calculate_dimensions(1024 * 1024, width / height)
    assert PIPELINES["QwenImageEditPipeline"].image_size({}, 8, (height, width)) == (down, across)
    assert list(KONTEXT_SIZES) == PREFERRED_KONTEXT_RESOLUTIONS
