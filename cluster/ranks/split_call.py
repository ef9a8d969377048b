"""A pipeline's call in three parts, for processes of their own: text, denoising, decoding.

The pipeline's own code runs in all of them, unmodified: its call is stopped where the next part
begins, and what it had computed until then is handed on. What the parts exchange is packed, so
that a process in between needs no torch.
"""

from __future__ import annotations

import functools
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers
import numpy as np
import torch
from accelerate import init_empty_weights
from torch.utils import _pytree as pytree

# Prompts of whom the embeddings are kept: rows that differ by their seed alone are neighbours.
REMEMBERED = 16
_TIMESTEPS = "set_timesteps"


class _Reached(BaseException):
    """Ends a pipeline's call where the next part begins; nothing in between may catch it."""


class Texts:
    """Runs a pipeline's call up to its embeddings of the prompt; remembers the last ones.

    Args:
        pipeline: with its text encoders; its transformers may be outlines.
        call: makes a call of the pipeline for a prompt and the call's arguments.
    """

    def __init__(self, pipeline: Any, call: Callable[[str, Mapping[str, Any]], Any]) -> None:
        self._pipeline = pipeline
        self._call = call
        self._known: OrderedDict[str, bytes] = OrderedDict()

    def of(self, prompt: str, arguments: Mapping[str, Any]) -> bytes:
        """What the call's encoders return, each time that they are asked, packed."""
        key = json.dumps([prompt, arguments], sort_keys=True, default=repr)
        if key not in self._known:
            self._known[key] = self._encode(prompt, arguments)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _encode(self, prompt: str, arguments: Mapping[str, Any]) -> bytes:
        pipeline = self._pipeline
        answers: dict[str, list[Any]] = {name: [] for name in _encoders(pipeline)}

        def recording(name: str) -> Callable[..., Any]:
            encode = getattr(pipeline, name)

            def recorded(*given: Any, **named: Any) -> Any:
                answers[name].append(encode(*given, **named))
                return answers[name][-1]

            return recorded

        def ending(prepare: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(prepare)  # a scheduler is asked what its method takes
            def reached(*given: Any, **named: Any) -> Any:
                if answers["encode_prompt"]:
                    raise _Reached
                return prepare(*given, **named)

            return reached

        with ExitStack() as stack:
            for name in answers:
                stack.enter_context(replaced(pipeline, name, recording(name)))
            # The first things that pipelines do when they know their texts; HunyuanVideo's for
            # images prepares its latents before.
            for owner, name in ((pipeline, "prepare_latents"), (pipeline.scheduler, _TIMESTEPS)):
                stack.enter_context(replaced(owner, name, ending(getattr(owner, name))))
            try:
                self._call(prompt, arguments)
            except _Reached:
                return pack(answers)
        raise RuntimeError(f"{type(pipeline).__name__} prepared no latents")


def _encoders(pipeline: Any) -> list[str]:
    """The methods that ask a pipeline's encoders."""
    return [name for name in ("encode_prompt", "encode_image") if hasattr(pipeline, name)]


@contextmanager
def texts_given(pipeline: Any, texts: bytes, device: torch.device) -> Iterator[None]:
    """Within it, the pipeline's call uses these embeddings instead of its encoders."""

    def answering(answers: Iterator[Any]) -> Callable[..., Any]:
        return lambda *_, **__: next(answers)

    with ExitStack() as stack:
        for name, answers in unpack(texts, device).items():
            stack.enter_context(replaced(pipeline, name, answering(iter(answers))))
        yield


def latents_of(pipeline: Any, call: Callable[[], Any]) -> bytes:
    """Runs a pipeline's call up to its VAE.

    Args:
        pipeline: which `call` calls.
        call: asks it for frames.

    Returns:
        What its VAE would have been called with, packed.
    """
    asked: list[Any] = []

    def reached(*given: Any, **named: Any) -> Any:
        asked.append((given, named))
        raise _Reached

    with replaced(pipeline.vae, "decode", reached):
        try:
            call()
        except _Reached:
            return pack(asked[0])
    raise RuntimeError(f"{type(pipeline).__name__} ended without calling its VAE")


@torch.no_grad()
def decoded_of(pipeline: Any, latents: bytes, device: torch.device) -> torch.Tensor:
    """What its VAE answers to the call that `latents_of` stopped at: (1, 3, F, H, W) or
    (1, 3, H, W), about in [-1, 1]."""
    given, named = unpack(latents, device)
    decoded: torch.Tensor = pipeline.vae.decode(*given, **named)[0]
    return decoded


def frames_of(pipeline: Any, latents: bytes, device: torch.device, hidden: int = 0) -> Any:
    """The rest of a call that `latents_of` stopped: (F, H, W, 3) float32 in [0, 1].

    Args:
        pipeline: whose call it was.
        latents: of `latents_of`.
        device: of the VAE.
        hidden: frames at the beginning of a video that the pipeline drops.
    """
    decoded = decoded_of(pipeline, latents, device)
    if hasattr(pipeline, "video_processor"):
        decoded = decoded[:, :, hidden:]
        return pipeline.video_processor.postprocess_video(decoded, output_type="np")[0]
    # The VAE of Qwen-Image is one of videos, and its pictures are their first frames.
    picture = decoded[:, :, 0] if decoded.ndim == 5 else decoded
    return over_white(pipeline.image_processor.postprocess(picture, output_type="np"))


def over_white(pictures: np.ndarray) -> np.ndarray:
    """(F, H, W, 3) of pictures with or without a fourth channel, as Qwen-Image-2.1's have, that
    says how opaque they are."""
    opaque = pictures[..., 3:]
    return pictures if not opaque.size else pictures[..., :3] * opaque + (1 - opaque)


class Outline:
    """What is known of a module without its weights. No module itself: it is on no device.

    Args:
        module: on the meta device.
        dtype: that its weights would have.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        self._module = module
        self.dtype = dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def outline_transformers(pipeline: Any, source: str, revision: str | None) -> None:
    """Lets a pipeline without transformers be asked for the texts that it would give them.

    Args:
        pipeline: which was loaded without them.
        source: where from; its configurations are read again.
        revision: of a Hugging Face id.
    """
    components = type(pipeline).load_config(source, revision=revision)
    for name, value in components.items():
        if name.startswith("transformer") and value[1] is not None:
            kind = getattr(diffusers, value[1])
            config = kind.load_config(source, subfolder=name, revision=revision)
            with init_empty_weights():
                module = kind.from_config(config)
            setattr(pipeline, name, Outline(module, pipeline.dtype))


def pack(value: Any) -> bytes:
    """Tensors of any device, nested as they are, for another process."""
    on_cpu = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), value)
    return pickle.dumps(on_cpu)


def unpack(packed: bytes, device: torch.device) -> Any:
    """What was packed, with its tensors on a device."""
    # From another process of this gang, never from a file or the network.
    value = pickle.loads(packed)
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), value)


@contextmanager
def replaced(owner: Any, name: str, by: Callable[..., Any]) -> Iterator[None]:
    """Within it, the object's method is another."""
    setattr(owner, name, by)
    try:
        yield
    finally:
        delattr(owner, name)
