"""What several jobs are configured with: a model and its call, and the gangs that run it.

Plain fields, with the values of the flags of the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.fleet.gang import BuildRank
from cluster.fleet.gangs import Gangs, parse_count
from cluster.models.model import Model, find_model


@dataclass(frozen=True)
class ModelConfig:
    """Which model runs, and the arguments of its pipeline's call; None for the model's own.

    Attributes:
        model: 'tiny', a Hugging Face id or a folder.
        revision: branch, tag or commit of a Hugging Face id.
        dtype: 'float32', 'bfloat16', ...
        height: pixels.
        width: pixels.
        num_frames: of a video.
        guidance_scale: of the pipeline's usual guidance.
        negative_prompt: what not to show.
        true_cfg_scale: of guidance in two forwards, where `guidance_scale` is embedded.
        steps: denoising steps (num_inference_steps).
        lora: adapters, each 'PATH_OR_ID' or 'PATH_OR_ID:SCALE'.
    """

    model: str
    revision: str | None = None
    dtype: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    steps: int | None = None
    lora: tuple[str, ...] = ()

    def find(self) -> tuple[Model, dict[str, Any]]:
        """The model, and the complete arguments of its call. Raises ModelError."""
        model = find_model(self.model, self.revision, self.dtype)
        given = {
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "guidance_scale": self.guidance_scale,
            "true_cfg_scale": self.true_cfg_scale,
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.steps,
        }
        wanted = {name: value for name, value in given.items() if value is not None}
        return model, {**model.defaults, **wanted}


@dataclass(frozen=True)
class FleetConfig:
    """How many gangs there are, and of how many ranks.

    Attributes:
        gang_size: ranks that share a video.
        gangs: 'A', or 'A:B' to grow from A to B; None for the job's own default.
        wait: minutes to wait for room on the cluster while no gang works; None for ever.
        device: 'gpu' or 'cpu'; None for GPUs where the cluster has, or starts, any.
        batch: images that go into one forward, at most.
    """

    gang_size: int = 1
    gangs: str | None = None
    wait: float | None = None
    device: str | None = None
    batch: int = 1

    def recruit(
        self,
        build_rank: BuildRank,
        build_encoders: BuildRank | None = None,
        encoders_size: int = 1,
    ) -> Gangs:
        """The gangs as the fleet takes them. Raises FleetError."""
        least, most = (None, None) if self.gangs is None else parse_count(self.gangs)
        return Gangs(
            build_rank,
            self.gang_size,
            least,
            most,
            build_encoders,
            encoders_size,
            self.batch,
            wait_s=None if self.wait is None else 60 * self.wait,
            on_gpus=None if self.device is None else self.device == "gpu",
        )


DEFAULT_FLEET = FleetConfig()
