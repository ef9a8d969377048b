"""What a model is, known from its configuration files alone, before any weight is loaded.

`tiny` (embedded), a folder in `save_pretrained` layout or a Hugging Face id. Everything that can
be refused about a model, its arguments or a gang for it is refused here, by the driver.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from meancache import tiny
from meancache.grid import Grid, is_whole_number, shown
from meancache.schedule import Schedule

PIPELINES = ("HunyuanVideoPipeline",)
ARGUMENTS = (
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "max_sequence_length",
)
# What a schedule is calibrated under; a difference in one of them makes it another's schedule.
CONDITIONS = ("height", "width", "num_frames", "guidance_scale")
# Beyond any model of today; a slip of the keyboard should not reach a GPU.
MOST = {"height": 16384, "width": 16384, "num_frames": 16385, "num_inference_steps": 1000}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class ModelError(ValueError):
    """A model, its arguments or a gang for it cannot be; the message says why and the fix."""


@dataclass(frozen=True)
class Model:
    """A pipeline by name and content, with what is known of it without its weights.

    Attributes:
        id: 'tiny', a folder or a Hugging Face id, as the user gave it.
        source: what from_pretrained takes: an absolute folder, or the Hugging Face id.
        revision: the Hub's commit, or a fingerprint of the folder's files.
        pipeline: class name of the diffusers pipeline.
        dtype: name of the torch dtype it runs in.
        fps: frames a second of its videos.
        defaults: the call's arguments where the user gives none.
        num_heads: attention heads, which Ulysses deals out to the ranks.
        patch: (temporal, spatial) pixels a token covers per axis.
        temporal_compression: the VAE's; frames are 1 + a multiple of it.
        scheduler: the scheduler's configuration.
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
    scheduler: Mapping[str, Any]

    @property
    def key(self) -> dict[str, str]:
        """The `model` object of schedules, graphs and job specifications."""
        return {"id": self.id, "revision": self.revision, "pipeline": self.pipeline}

    def conditions(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The `conditions` object of schedules and graphs for these call arguments."""
        return {
            **{name: arguments[name] for name in CONDITIONS},
            "dtype": self.dtype,
            "lora": None,
        }

    def grid(self, num_inference_steps: int) -> Grid:
        """The sigma grid that the pipeline will run `num_inference_steps` on."""
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(self.scheduler))
        # HunyuanVideoPipeline.__call__ hands these to the scheduler, which shifts them.
        sigmas = np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=sigmas)
        return Grid.from_scheduler(scheduler)

    def load(self, device: torch.device) -> Any:
        """The pipeline on `device`, without progress bars."""
        # The embedded model lies where this machine has the package, not where the driver's has.
        source = str(tiny.WEIGHTS) if self.id == "tiny" else self.source
        pipeline = getattr(diffusers, self.pipeline).from_pretrained(
            source,
            revision=None if Path(source).is_absolute() else self.revision,
            torch_dtype=getattr(torch, self.dtype),
            use_safetensors=True,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def check_arguments(self, arguments: Mapping[str, Any], gang_size: int) -> None:
        """Refuses call arguments that the pipeline or a gang of this size cannot run.

        Raises:
            ModelError: names the argument, the rule and the nearest values that keep it.
        """
        for name, most in MOST.items():
            if not 1 <= arguments[name] <= most:
                raise ModelError(f"{name} {arguments[name]} must be between 1 and {most}")
        pixels = self.patch[1]
        for name in ("height", "width"):
            if arguments[name] % pixels:
                raise ModelError(f"{name} {arguments[name]} must be a multiple of {pixels}")
        every = self.temporal_compression
        if (arguments["num_frames"] - 1) % every:
            raise ModelError(
                f"num_frames {arguments['num_frames']} must be 1 more than a multiple of {every}"
            )
        latent_frames = (arguments["num_frames"] - 1) // every + 1
        tokens = (
            latent_frames // (self.patch[0] // every)
            * (arguments["height"] // pixels)
            * (arguments["width"] // pixels)
        )  # fmt: skip
        if self.num_heads % gang_size:
            raise ModelError(
                f"gang size {gang_size} does not divide the {self.num_heads} attention heads of "
                f"{self.id}; use one of {_divisors(self.num_heads)}"
            )
        if tokens % gang_size:
            raise ModelError(
                f"gang size {gang_size} does not divide the {tokens} tokens of "
                f"{arguments['width']}x{arguments['height']}x{arguments['num_frames']}; use "
                f"another size or a gang size that does"
            )

    def check_schedule(self, schedule: Schedule, arguments: Mapping[str, Any]) -> None:
        """Refuses a schedule that was made for another model, grid or conditions.

        What a schedule leaves open (a hand-written one may) is not compared.

        Raises:
            ModelError: names what differs, as it is in the schedule and here.
        """
        grid = self.grid(arguments["num_inference_steps"])
        if not schedule.grid.matches(grid.sigmas):
            raise ModelError(
                f"the schedule is for a grid of {schedule.grid}, but {self.id} runs {grid}: give "
                "the schedule's --steps, or solve one for this grid"
            )
        here = {**self.key, **self.conditions(arguments)}
        for name, value in {**schedule.model, **schedule.conditions}.items():
            if name in here and value is not None and here[name] != value:
                raise ModelError(
                    f"the schedule was made for {name} {value!r}, but this job has "
                    f"{here[name]!r}: choose a schedule of this setting, or calibrate one"
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
    folder = tiny.WEIGHTS if model_id == "tiny" else Path(model_id)
    files: _Folder | _HubRepository
    if folder.is_dir():
        files = _Folder(folder)
    elif _HUB_ID.fullmatch(model_id):
        files = _HubRepository(model_id, revision)
    else:
        raise ModelError(
            f"unknown model {model_id!r}: give 'tiny', a folder in save_pretrained layout or a "
            "Hugging Face id such as hunyuanvideo-community/HunyuanVideo"
        )
    pipeline = files.config("model_index.json").get("_class_name")
    if pipeline not in PIPELINES:
        raise ModelError(f"{model_id} is a {shown(pipeline)}; supported: {', '.join(PIPELINES)}")
    try:
        model = _describe(model_id, files, pipeline, dtype)
        model.grid(1)
    except KeyError as error:
        raise ModelError(f"model {model_id}: its configuration lacks {error}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(
            f"model {model_id}: its configuration cannot be used ({shown(str(error))})"
        ) from error
    for name, number in (
        ("num_attention_heads", model.num_heads),
        ("patch", min(model.patch)),
        ("temporal_compression_ratio", model.temporal_compression),
    ):
        if not is_whole_number(number) or number < 1:
            raise ModelError(
                f"model {model_id}: its configuration has {name} {shown(number)}, which must be "
                "a whole number from 1"
            )
    return model


def _describe(
    model_id: str, files: _Folder | _HubRepository, pipeline: str, dtype: str | None
) -> Model:
    transformer = files.config("transformer/config.json")
    vae = files.config("vae/config.json")
    temporal, spatial = vae["temporal_compression_ratio"], vae["spatial_compression_ratio"]
    return Model(
        id=model_id,
        source=files.source,
        revision=files.revision(),
        pipeline=pipeline,
        dtype=dtype or ("float32" if model_id == "tiny" else "bfloat16"),
        fps=8.0 if model_id == "tiny" else 24.0,
        defaults=dict(tiny.DEFAULTS) if model_id == "tiny" else _call_defaults(pipeline),
        num_heads=transformer["num_attention_heads"],
        patch=(temporal * transformer["patch_size_t"], spatial * transformer["patch_size"]),
        temporal_compression=temporal,
        scheduler=files.config("scheduler/scheduler_config.json"),
    )


class _Folder:
    """A pipeline's files in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = str(folder.absolute())

    def config(self, name: str) -> dict[str, Any]:
        try:
            return _json_object((self.folder / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"model {self.folder}: {name} is missing or not JSON; give a folder that "
                "save_pretrained wrote"
            ) from error

    def revision(self) -> str:
        """A fingerprint: names, sizes and both ends of every file, as whole weights are slow."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix not in (".json", ".safetensors", ".txt", ".model"):
                continue
            size = path.stat().st_size
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0{size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(0, size - 2**20))
                digest.update(file.read())
        return digest.hexdigest()[:40]


class _HubRepository:
    """A pipeline's files on the Hugging Face Hub, or in its local cache."""

    def __init__(self, model_id: str, revision: str | None) -> None:
        self.model_id = model_id
        self.source = model_id
        self.wanted = revision

    def config(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            return _json_object(path.read_bytes())
        except ValueError as error:
            raise ModelError(f"model {self.model_id}: {name} is not a JSON object") from error

    def revision(self) -> str:
        # The cache keeps each commit's files in a folder named by the commit.
        return self._path("model_index.json").parent.name

    def _path(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        try:
            return Path(hf_hub_download(self.model_id, name, revision=self.wanted))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ModelError(
                f"unknown model {self.model_id!r} (revision {self.wanted or 'main'}): its {name} "
                f"is neither on the Hugging Face Hub nor in the local cache "
                f"({type(error).__name__}); check the id, the network and HF_TOKEN"
            ) from error


def _json_object(data: bytes) -> dict[str, Any]:
    """Parses a configuration file. Raises ValueError where it is not a JSON object."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _call_defaults(pipeline: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    return {name: parameters[name].default for name in ARGUMENTS}


def _divisors(number: int) -> str:
    return ", ".join(str(size) for size in range(1, number + 1) if number % size == 0)
