"""How large a pipeline's components are, from their configurations, and how large a GPU is."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from cluster.models import sizes
from cluster.models.model import Model


@singledispatch
def component_bytes(model: Model) -> dict[str, int]:
    """Bytes of the weights of each component in the model's dtype; nothing is loaded.

    As the files' headers say where they can be read; else counted, which takes some seconds.

    Raises:
        OSError: a configuration cannot be read.
    """
    known = sizes.component_bytes(model)
    return counted_bytes(model) if known is None else known


def counted_bytes(model: Model) -> dict[str, int]:
    """The same from configurations alone: builds each component without memory for its weights."""
    import diffusers
    import torch
    import transformers
    from accelerate import init_empty_weights

    source, revision = model.place
    found = {}
    components = getattr(diffusers, model.pipeline).load_config(source, revision=revision)
    width = torch.empty((), dtype=getattr(torch, model.dtype)).element_size()
    for name, value in components.items():
        if not isinstance(value, list | tuple) or value[1] is None:
            continue
        kind: Any = getattr(diffusers if value[0] == "diffusers" else transformers, value[1], None)
        if not _is_module(kind):
            continue
        where = {"subfolder": name, "revision": revision}
        with init_empty_weights():
            if value[0] == "diffusers":
                module = kind.from_config(kind.load_config(source, **where))
            else:
                module = kind(kind.config_class.from_pretrained(source, **where))
        found[name] = width * sum(weights.numel() for weights in module.parameters())
    return found


def gpu_bytes(index: int) -> int | None:
    """Memory of one of the GPUs that this process sees, used or not; None where it sees none.

    All of it, not what is free: processes that share a GPU load at the same time, and are to come
    to the same conclusion.
    """
    import torch

    return torch.cuda.mem_get_info(index)[1] if torch.cuda.is_available() else None


def _is_module(kind: Any) -> bool:
    import torch

    return isinstance(kind, type) and issubclass(kind, torch.nn.Module)
