"""How large a pipeline's components are, from the headers of their weights' files.

A safetensors file begins with the shapes of its tensors, so sizes are known without torch and
without reading a weight: those of a folder from its files, those of the Hub by asking it for these
bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.models.files import ModelError, ModelFiles, find_files
from cluster.models.model import Model

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
# What diffusers and transformers call a component's weights.
NAMES = {
    "diffusers": "diffusion_pytorch_model.safetensors",
    "transformers": "model.safetensors",
}
# Components that are a configuration or a vocabulary.
WITHOUT_WEIGHTS = (
    "scheduler",
    "tokenizer",
    "processor",
    "feature_extractor",
    "image_processor",
    "guider",
)


def weights_files(files: ModelFiles, name: str, library: str) -> list[str]:
    """Paths of the safetensors files that hold a component's weights, one or several.

    Args:
        files: of the pipeline.
        name: of the component.
        library: 'diffusers' or 'transformers', whose naming they follow.
    """
    single = f"{name}/{NAMES[library]}"
    try:
        index = files.config(f"{single}.index.json")
    except ModelError:
        return [single]
    parts = index.get("weight_map")
    if not isinstance(parts, dict):
        raise ModelError(f"{single}.index.json names no weights")
    return sorted({f"{name}/{Path(str(part)).name}" for part in parts.values()})


def weights_components(index: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, library) of each component in a model_index.json that has weights."""
    for name, value in index.items():
        if not isinstance(value, list) or len(value) != 2 or value[1] is None:
            continue
        if not name.startswith(WITHOUT_WEIGHTS):
            # The parts of one pipeline alone are in a library of its name, and of diffusers.
            yield name, "transformers" if value[0] == "transformers" else "diffusers"


def component_bytes(model: Model) -> dict[str, int] | None:
    """Bytes of the weights of each component in the model's dtype.

    Returns:
        By component; None where the headers cannot be read, as the folder has no safetensors files
        or the Hub does not answer.
    """
    source, revision = model.place
    try:
        files = find_files(source, revision, Path(source))
        sizes = {}
        for name, library in weights_components(files.config("model_index.json")):
            numbers = sum(map(files.numbers, weights_files(files, name, library)))
            sizes[name] = WIDTHS[model.dtype] * numbers
    except ModelError:
        return None
    return sizes
