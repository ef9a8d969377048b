"""One rank's work: pipeline + schedule -> frames of a video, or the one frame of a picture.

No Ray in here; it runs under torchrun too:

    torchrun --nproc-per-node 2 -m cluster.ranks.command --model tiny \
        --prompt "a red circle moving left on a dark background" --output clip.mp4
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cluster.media import video
from cluster.models.model import Model
from cluster.ranks import sequence_parallel as xdit
from cluster.ranks.adapters import RankAdapters
from cluster.ranks.attention import choose_attention
from cluster.ranks.calls import call_pipeline
from cluster.ranks.compiling import compile_blocks
from cluster.ranks.decoding import by_frames, quicken
from cluster.ranks.loading import load_pipeline
from cluster.ranks.padding import cut_padding
from cluster.ranks.split_call import Texts, decoded_of, frames_of, latents_of, texts_given
from cluster.ranks.tasks import Denoised, Rendering
from cluster.ranks.tiles import dealt
from cluster.ranks.watching import LoopWatch, flop_counter
from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.hooks.pipelines import transformers_of

# On a CPU every rank keeps to one core: more threads than cores stall each other.
CPU_THREADS = 1


class Renderer:
    """A pipeline on one rank, alone or in step with the other ranks of its gang.

    Args:
        model: what to load.
        rank: 0 .. world_size - 1.
        world_size: ranks that share each video by sequence parallelism.
        init_method: rendezvous of the ranks for torch.distributed; unused for one rank.
        without: components that this process leaves to others, see `ranks.builders`; of what
            they do its methods cannot be called.
        offloaded: keep the components in the machine's memory, and move each to the GPU only while
            it works. For text encoders and VAE: it would be slow for a transformer.
        compiled: compile the blocks of the transformers. Their roots stay eager, and with them a
            schedule's hook, so that a skipped step calls nothing that is compiled.
        attention: a backend of diffusers, for a rank alone; None for the fastest of torch's own.
    """

    def __init__(
        self,
        model: Model,
        rank: int,
        world_size: int,
        init_method: str,
        without: tuple[str, ...] = (),
        offloaded: bool = False,
        compiled: bool = False,
        attention: str | None = None,
    ) -> None:
        self.model = model
        self.rank = rank
        self.world_size = world_size
        if world_size > 1:
            device = xdit.initialize(rank, world_size, init_method)
        else:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        self.kind = model.kind
        # The lock of its own is one between processes, and a killed rank would leave it behind.
        tqdm.set_lock(threading.RLock())
        self.device = device
        self.pipeline = load_pipeline(model, torch.device("cpu") if offloaded else device, without)
        self._offloaded = offloaded
        if offloaded:
            self.pipeline.enable_model_cpu_offload(device=device)
        if device.type == "cuda":
            quicken(self.pipeline.vae)
        self._texts = Texts(self.pipeline, self._ask)
        self._watch: LoopWatch | None = None
        self.adapters = RankAdapters(self.pipeline)
        self.attention = ""
        self._forwards: dict[int, float] = {}  # tokens -> seconds of the fastest
        self._done: float | None = None  # when the last video was denoised
        self._calls_back = (
            "callback_on_step_end" in inspect.signature(type(self.pipeline).__call__).parameters
        )
        if not self._calls_back:
            self._listen(self.pipeline.scheduler)
        if "transformer" not in without:
            self._prepare_transformers(compiled, attention)

    def _prepare_transformers(self, compiled: bool, attention: str | None) -> None:
        """Shares them out over ranks, takes the padding from their texts, chooses their attention,
        and compiles them where that was asked for."""
        if self.world_size > 1:
            assert self.kind.parallel is not None  # the driver has checked it
            degrees = self.model.degrees(self.world_size)
            self.attention = xdit.parallelise(self.pipeline, *self.kind.parallel, *degrees)
        for transformer in transformers_of(self.pipeline):
            cut_padding(transformer, self.kind.masked_texts)
            if self.world_size == 1:
                self.attention = choose_attention(transformer, attention, self.device)
            if compiled:
                compile_blocks(transformer)

    def render(
        self,
        prompt: str,
        seed: int,
        arguments: Mapping[str, Any],
        schedule: Schedule | None = None,
    ) -> Rendering:
        """Renders one video or picture; every rank of the gang makes the same call.

        Raises:
            ScheduleError: the schedule does not fit the run.
            ValueError: what came out is no picture (NaN, Inf, one value, another shape).
        """
        started = time.perf_counter()
        denoised = self.denoise(prompt, seed, arguments, schedule)
        latents = denoised.latents
        if self._shares_tiles(arguments):
            latents = self.broadcast(latents)
        frames = None if latents is None else self.decode(latents, arguments)
        seconds = time.perf_counter() - started
        frames = frames if self.rank == 0 else None
        return Rendering(frames, denoised.nfe, seconds, denoised.loop_s)

    def encode_prompt(self, prompt: str, arguments: Mapping[str, Any]) -> bytes:
        """The embeddings of the texts of a call, packed, for `denoise` in another process."""
        texts = self._texts.of(prompt, arguments)
        self._free()
        return texts

    def denoise(
        self,
        prompt: str | Sequence[str],
        seed: int | Sequence[int],
        arguments: Mapping[str, Any],
        schedule: Schedule | None = None,
        texts: bytes | None = None,
    ) -> Denoised:
        """Denoises a video or picture, or several at once; every rank makes the same call.

        Args:
            prompt: the text, or one for each.
            seed: of the initial noise, or one for each.
            arguments: of the pipeline's call.
            schedule: which steps to compute; None computes all.
            texts: what `encode_prompt` returned, in another process, those of several joined; None
                makes them here.

        Returns:
            What came of the call; for several prompts their latents in one, and the time of all.

        Raises:
            ScheduleError: the schedule does not fit the run.
            ValueError: what came out is no picture (NaN, Inf, one value).
        """
        started = time.perf_counter()
        count = 1 if isinstance(prompt, str) else len(prompt)
        watch = self._watch = LoopWatch(count)
        watching = watch.on(transformers_of(self.pipeline))
        call = dict(arguments)
        if self._calls_back:
            call["callback_on_step_end"] = watch.after_step
        given = nullcontext() if texts is None else texts_given(self.pipeline, texts, self.device)
        latents = None
        try:
            hook = None if schedule is None else apply_mean_cache(self.pipeline, schedule)
            with given:
                if self.rank == 0:
                    run = partial(self._call, prompt, seed, call, "np")
                    latents = latents_of(self.pipeline, run)
                else:
                    self._call(prompt, seed, call, "latent")
        finally:
            remove_mean_cache(self.pipeline)
            for one in watching:
                one.remove()
            self._watch = None
        # With a schedule, the hook answered some of the calls itself.
        nfe = watch.calls if hook is None else hook.forwards
        before, self._done = self._done, time.perf_counter()
        return Denoised(
            latents,
            nfe,
            loop_s=watch.loop_s,
            gang_s=self._done - (started if before is None else before),
            forward_s=self._fastest(arguments, count, watch.fastest_forward_s(nfe)) if nfe else 0.0,
            attention=self.attention,
        )

    def _fastest(self, arguments: Mapping[str, Any], count: int, seconds: float) -> float:
        """The fastest forward of so many outputs of this size until now, in seconds."""
        tokens = self.model.tokens(arguments) * count
        self._forwards[tokens] = min(seconds, self._forwards.get(tokens, seconds))
        return self._forwards[tokens]

    def decode(self, latents: bytes, arguments: Mapping[str, Any]) -> np.ndarray:
        """The frames of what `denoise` made, here or in another process.

        Every rank of the gang makes the same call where the VAE decodes in tiles, and they share
        them; what is of one piece is rank 0's.

        Args:
            latents: of the `Denoised`.
            arguments: of the call that made them.

        Returns:
            (F, H, W, 3) uint8, F = 1 for a picture; no frames on ranks other than 0.

        Raises:
            ValueError: what came out is no picture (NaN, Inf, one value, another shape).
        """
        nothing = np.empty((0, 0, 0, 3), np.uint8)
        shared = self._shares_tiles(arguments)
        if self.rank != 0 and not shared:
            return nothing
        with dealt(self.pipeline.vae, self.rank, self.world_size) if shared else nullcontext():
            # What comes after the VAE is rank 0's.
            shown = partial(frames_of, hidden=self.model.hidden_frames)
            finish: Callable[..., Any] = shown if self.rank == 0 else decoded_of
            frames = finish(self.pipeline, latents, self.device)
        self._free()
        if self.rank != 0:
            return nothing
        video.check_drawn("frames", frames, (*self.model.shape(arguments), 3))
        return np.rint(frames * 255).astype(np.uint8)

    def latents(self, prompt: str, seed: int, arguments: Mapping[str, Any]) -> torch.Tensor:
        """Runs all steps of one video without decoding it; returns its latents."""
        latents: torch.Tensor = self._call(prompt, seed, arguments, "latent")
        return latents

    def runs(
        self, trajectories: Sequence[tuple[str, int]], arguments: Mapping[str, Any]
    ) -> list[Callable[..., Any]]:
        """Calls of the pipeline for what has to run the same trajectory again and again.

        Args:
            trajectories: (prompt, seed) of each.
            arguments: of the pipeline's call.

        Returns:
            One `meancache.fitting.Run` a trajectory: run(**overrides) denoises and returns
            latents, run(decode=True) returns the frames that `render` has, on a CPU but for
            rounding. Their prompts are encoded once, here.
        """
        return [
            partial(self._run, self.encode_prompt(prompt, arguments), prompt, seed, arguments)
            for prompt, seed in trajectories
        ]

    def _run(
        self,
        texts: bytes,
        prompt: str,
        seed: int,
        arguments: Mapping[str, Any],
        *,
        decode: bool = False,
        **overrides: Any,
    ) -> Any:
        changed = {**arguments, **overrides}
        with texts_given(self.pipeline, texts, self.device):
            if not decode:
                return self.latents(prompt, seed, changed)
            on_cpu = self.device.type == "cpu"
            with by_frames(self.pipeline.vae) if on_cpu else nullcontext():
                frames = self.render(prompt, seed, changed).frames
        # Where rank 0 decodes alone, the others wait for each video of a row, not for all of them
        # in the next forward's collective, which would take it for dead.
        self.broadcast(None)
        return frames

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank: what ranks decide by numbers must not depend on one."""
        if self.world_size == 1:
            return value
        shared = [value]
        torch.distributed.broadcast_object_list(shared, src=0)
        return shared[0]

    def transformer_flops(self, prompt: str, seed: int, arguments: Mapping[str, Any]) -> int:
        """FLOPs of the transformer in one run, by torch's counter.

        In a run of its own, as counting slows it. Counts this rank's work alone.
        """
        counter = flop_counter()
        with counter:
            self.latents(prompt, seed, arguments)
        return sum(counter.get_flop_counts()[type(self.pipeline.transformer).__name__].values())

    def _shares_tiles(self, arguments: Mapping[str, Any]) -> bool:
        return self.world_size > 1 and self.model.decodes_in_tiles(arguments)

    def _free(self) -> None:
        """Takes offloaded components off the GPU, as a pipeline's call does where it ends."""
        if self._offloaded:
            self.pipeline.maybe_free_model_hooks()

    def _call(self, prompt: Any, seed: Any, arguments: Mapping[str, Any], output_type: str) -> Any:
        return call_pipeline(self.pipeline, self.model, prompt, seed, arguments, output_type)

    def _ask(self, prompt: str, arguments: Mapping[str, Any]) -> Any:
        return self._call(prompt, 0, arguments, "latent")

    def _listen(self, scheduler: Any) -> None:
        """Tells the watch of the last step where the pipeline has no callback for it.

        For good: to come and go would cross others that watch the scheduler meanwhile.
        """
        step = scheduler.step

        def told(*given: Any, **named: Any) -> Any:
            result = step(*given, **named)
            if self._watch is not None and scheduler.step_index == len(scheduler.timesteps):
                self._watch.after_loop(result[0])
            return result

        scheduler.step = told
