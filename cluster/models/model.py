"""What a model is, known from its configuration files alone, before any weight is loaded.

`tiny` (embedded), a folder in `save_pretrained` layout or a Hugging Face id. Everything that can
be refused about a model, its arguments or a gang for it is refused here, by the driver.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.models import sharing
from cluster.models.adapter_names import LORA, adapter_names
from cluster.models.cost_model import Transformer
from cluster.models.files import ModelError, ModelFiles, find_files
from cluster.models.grids import euler_config, euler_grid
from cluster.models.kinds import Kind, Size
from cluster.models.pipelines import PIPELINES
from meancache import tiny
from meancache.grid import Grid
from meancache.json_values import is_whole_number, shown
from meancache.schedule import Schedule

__all__ = ["Model", "ModelError", "find_model"]

# What a schedule is calibrated under; a difference in one of them makes it another's schedule.
CONDITIONS = ("height", "width", "num_frames", "guidance_scale", "true_cfg_scale")
# Beyond any model of today; a slip of the keyboard should not reach a GPU.
MOST = {"height": 16384, "width": 16384, "num_frames": 16385, "num_inference_steps": 1000}
DTYPES = ("float32", "bfloat16", "float16")
# Pipelines that draw from what no row of prompts has, as masks, or in a way of their own.
_FROM_PICTURES = re.compile("ImageTo|VideoTo|Img2Img|Inpaint|Control|Edit|Kontext|Fill|Layered")


@dataclass(frozen=True)
class Model:
    """A pipeline by name and content, with what is known of it without its weights.

    Attributes:
        id: 'tiny', a folder or a Hugging Face id, as the user gave it.
        source: what from_pretrained takes: an absolute folder, or the Hugging Face id.
        revision: the Hub's commit, or a fingerprint of the folder's files.
        pipeline: class name of the diffusers pipeline; `kind` is its row of the table.
        dtype: name of the torch dtype it runs in.
        fps: frames a second of its videos; 0 for a model of images.
        defaults: the call's arguments where the user gives none.
        num_heads: attention heads, which Ulysses deals out to as many ranks as divide them.
        patch: (temporal, spatial) pixels a token covers per axis.
        temporal_compression: the VAE's; frames are 1 + a multiple of it.
        tile: (frames, pixels along an axis) of the largest output that the VAE decodes as one
            tile; None where that is not known.
        scheduler: the configuration of the Euler scheduler that it runs.
        transformer: its size, where the cost model knows such transformers.
        image_size: (height, width) of an image -> those of the output that it asks for; None where
            they do not depend on it.
        hidden_frames: at the beginning of a video, that are decoded and not shown.
        shares: whether xDiT has its transformer.
    """

    id: str
    source: str
    revision: str
    pipeline: str
    dtype: str
    fps: float
    defaults: Mapping[str, Any]
    num_heads: int
    patch: tuple[int, int]
    temporal_compression: int
    tile: tuple[float, int] | None
    scheduler: Mapping[str, Any]
    transformer: Transformer | None
    image_size: Callable[[Size], Size] | None = None
    hidden_frames: int = 0
    shares: bool = True

    @property
    def kind(self) -> Kind:
        """What its pipeline class takes and makes."""
        return PIPELINES[self.pipeline]

    @property
    def key(self) -> dict[str, str]:
        """The `model` object of schedules, graphs and job specifications."""
        return {"id": self.id, "revision": self.revision, "pipeline": self.pipeline}

    @property
    def place(self) -> tuple[str, str | None]:
        """Where its files are, from this machine: what from_pretrained takes, and the revision."""
        # The embedded model lies where this machine has the package, not where the driver's has.
        source = str(tiny.WEIGHTS) if self.id == "tiny" else self.source
        return source, None if Path(source).is_absolute() else self.revision

    def conditions(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The `conditions` object of schedules and graphs for these call arguments."""
        known = (*CONDITIONS, "negative_prompt")
        given = {name: arguments[name] for name in known if arguments.get(name) is not None}
        return {**given, "dtype": self.dtype, "lora": adapter_names(arguments)}

    def calls(self, arguments: Mapping[str, Any]) -> int:
        """Forwards in a step that is computed: 2 where guidance takes a second one."""
        return self.kind.calls(arguments)

    def shape(self, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
        """(num_frames, height, width) of the call's output; a picture has one frame."""
        frames = arguments.get("num_frames", 1 + self.hidden_frames) - self.hidden_frames
        return frames, arguments["height"], arguments["width"]

    def size_for(self, width: int, height: int) -> dict[str, int]:
        """The arguments of a call that give its output the shape of such an image, where it asks.

        Raises:
            ModelError: the pipeline has no size for it.
        """
        if self.image_size is None:
            return {}
        try:
            rows, columns = self.image_size((height, width))
        except ValueError as error:
            raise ModelError(f"{self.id} cannot use an image of that size: {error}") from error
        return {"height": rows, "width": columns}

    def tokens(self, arguments: Mapping[str, Any]) -> int:
        """Tokens of the call's output in the transformer, those of the text not counted."""
        _, height, width = self.shape(arguments)
        frames = arguments.get("num_frames", 1)
        every, (temporal, spatial) = self.temporal_compression, self.patch
        latent_frames = (frames - 1) // every + 1
        return latent_frames // (temporal // every) * (height // spatial) * (width // spatial)

    def decodes_in_tiles(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the call's output is decoded in several tiles, which ranks can share."""
        if self.tile is None:
            return False
        most_frames, most_pixels = self.tile
        frames, *size = self.shape(arguments)
        return frames + self.hidden_frames > most_frames or max(size) > most_pixels

    def grid(self, num_inference_steps: int, arguments: Mapping[str, Any] | None = None) -> Grid:
        """The sigma grid that the pipeline will run `num_inference_steps` on.

        Args:
            num_inference_steps: T.
            arguments: of the call, whose size shifts the noise levels of some pipelines; None for
                the model's defaults.

        Raises:
            ModelError: the scheduler makes no falling noise levels of so many steps.
        """
        tokens = self.tokens(arguments or self.defaults) if self.kind.shifts else None
        try:
            kind = self.kind
            return euler_grid(self.scheduler, num_inference_steps, kind.spacing, tokens, kind.mu)
        except ValueError as error:
            raise ModelError(
                f"{self.id} cannot run {num_inference_steps} steps ({error}): use more"
            ) from error

    def check_arguments(self, arguments: Mapping[str, Any], gang_size: int) -> None:
        """Refuses call arguments that the pipeline or a gang of this size cannot run.

        Raises:
            ModelError: names the argument, the rule and the nearest values that keep it.
        """
        for name, value in arguments.items():
            if name == LORA and self.kind.adapters:
                continue
            if name not in self.kind.takes and value is not None:
                raise ModelError(
                    f"{self.id} is a {self.pipeline}, which takes no {name}; it takes "
                    f"{', '.join(self.kind.takes)}"
                )
        for name, most in MOST.items():
            value = arguments.get(name)
            if name not in self.kind.arguments:
                continue
            if not is_whole_number(value) or not 1 <= value <= most:  # type: ignore[operator]
                raise ModelError(f"{name} {shown(value)} must be between 1 and {most}")
        pixels = self.patch[1] * self.kind.sides
        for name in ("height", "width"):
            if arguments[name] % pixels:
                raise ModelError(f"{name} {arguments[name]} must be a multiple of {pixels}")
        frames, every = arguments.get("num_frames", 1), self.temporal_compression
        if (frames - 1) % every or frames <= self.hidden_frames:
            more = f", and more than {self.hidden_frames}" if self.hidden_frames else ""
            raise ModelError(f"num_frames {frames} must be 1 more than a multiple of {every}{more}")
        if gang_size > 1:
            sharing.check_gang(self, arguments, gang_size)

    def degrees(self, gang_size: int) -> tuple[int, int]:
        """(Ulysses, ring) of a gang: as much of Ulysses as the heads allow, as it moves less."""
        ulysses = math.gcd(gang_size, self.num_heads)
        return ulysses, gang_size // ulysses

    def takes_gang(self, arguments: Mapping[str, Any], gang_size: int) -> bool:
        """Whether a gang of this size can run these call arguments."""
        with suppress(ModelError):
            self.check_arguments(arguments, gang_size)
            return True
        return False

    def check_schedule(self, schedule: Schedule, arguments: Mapping[str, Any]) -> None:
        """Refuses a schedule that was made for another model, grid or conditions.

        What a schedule leaves open (a hand-written one may) is not compared.

        Raises:
            ModelError: names what differs, as it is in the schedule and here.
        """
        grid = self.grid(arguments["num_inference_steps"], arguments)
        if not schedule.grid.matches(grid.sigmas):
            raise ModelError(
                f"the schedule is for a grid of {schedule.grid}, but {self.id} runs {grid}: give "
                f"the schedule's --steps{' and size' if self.kind.shifts else ''}, or solve one "
                "for this grid"
            )
        here: dict[str, Any] = {
            **self.key,
            "dtype": self.dtype,
            "lora": adapter_names(arguments) or [],
        }
        here |= {name: arguments.get(name) for name in CONDITIONS}
        for name, value in {**schedule.model, **schedule.conditions}.items():
            if name in here and value is not None and here[name] != value:
                raise ModelError(
                    f"the schedule was made for {name} {shown(value)}, but this job has "
                    f"{shown(here[name])}: choose a schedule of this setting, or calibrate one"
                )
        # Only a calibration says all; what was written by hand may leave the guidance open.
        there, calls = self.calls(schedule.conditions), self.calls(arguments)
        if "graph" in schedule.calibration and there != calls:
            raise ModelError(
                f"the schedule was made for guidance in {there} forward{'s' * (there > 1)} a step, "
                f"but this job's takes {calls}: give the same negative_prompt and true_cfg_scale, "
                "or calibrate one"
            )


def find_model(model_id: str, revision: str | None = None, dtype: str | None = None) -> Model:
    """Looks a model up and reads its configuration.

    Args:
        model_id: 'tiny', a folder in `save_pretrained` layout, or a Hugging Face id.
        revision: branch, tag or commit of a Hugging Face id.
        dtype: name of a torch dtype; default float32 for `tiny`, bfloat16 otherwise.

    Raises:
        ModelError: there is no such model, or its pipeline is not one that this project runs.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"dtype {shown(dtype)} must be one of {', '.join(DTYPES)}")
    folder = tiny.WEIGHTS if model_id == "tiny" else Path(model_id)
    files = find_files(model_id, revision, folder)
    pipeline = files.config("model_index.json").get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        pictures = isinstance(pipeline, str) and _FROM_PICTURES.search(pipeline)
        raise ModelError(
            f"{model_id} is a {shown(pipeline)}"
            + (", which needs more than text and an image a row" if pictures else "")
            + f"; supported: {', '.join(PIPELINES)}"
        )
    try:
        model = _describe(model_id, files, pipeline, dtype)
        for name, number in (
            ("num_attention_heads", model.num_heads),
            ("patch", min(model.patch)),
            ("temporal_compression_ratio", model.temporal_compression),
            ("sample_size", 1 if model.tile is None else model.tile[1]),
        ):
            if not is_whole_number(number) or number < 1:
                raise ValueError(f"{name} {shown(number)}, which must be a whole number from 1")
        if files.config("model_index.json").get("sample_sigmas") is not None:
            raise ValueError("sample_sigmas of its own, whose number no job may choose")
        model.grid(model.defaults["num_inference_steps"])
    except KeyError as error:
        raise ModelError(f"model {model_id}: its configuration lacks {error}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(
            f"model {model_id}: its configuration cannot be used ({shown(str(error))})"
        ) from error
    return model


def _describe(model_id: str, files: ModelFiles, pipeline: str, dtype: str | None) -> Model:
    kind, embedded = PIPELINES[pipeline], model_id == "tiny"
    transformer = files.config("transformer/config.json")
    vae = files.config("vae/config.json")
    frames, pixels = kind.compression(vae)
    temporal, spatial = kind.patch(transformer)
    if embedded:
        defaults = dict(tiny.DEFAULTS)
    else:
        defaults = dict(kind.arguments)
        if kind.size is not None:
            defaults["height"], defaults["width"] = kind.size(transformer, pixels)
        if files.config("model_index.json").get("is_distilled") is True:
            defaults["guidance_scale"] = 1.0
        if kind.guider:
            guider = files.config("guider/guider_config.json")
            enabled = guider.get("enabled", True)
            defaults["guidance_scale"] = guider["guidance_scale"] if enabled else 1.0
    return Model(
        id=model_id,
        source=files.source,
        revision=files.revision(),
        pipeline=pipeline,
        dtype=dtype or ("float32" if embedded else "bfloat16"),
        fps=8.0 if embedded else kind.fps,
        defaults=defaults,
        num_heads=kind.heads(transformer),
        patch=(frames * temporal, pixels * spatial),
        temporal_compression=frames,
        tile=None if kind.tile is None else kind.tile(vae),
        image_size=kind.image_size and partial(kind.image_size, transformer, pixels),
        hidden_frames=kind.hidden_frames(transformer),
        shares=kind.shares(transformer),
        transformer=_cost(transformer, defaults),
        scheduler=euler_config(files.config("scheduler/scheduler_config.json")),
    )


def _cost(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Transformer | None:
    try:
        return Transformer.of(config, defaults.get("max_sequence_length", 256))
    except (KeyError, TypeError):
        return None
