"""Inside a GPU process: the only room of the cluster that imports torch.

What is imported from here does not: how ranks are built, and the tasks that they do. A rank imports
the rest when it is built.
"""

from cluster.ranks.builders import (
    EncodersBuilder,
    RankBuilder,
    denoiser_builder,
    encoders_builder,
    encoders_size,
    rank_builder,
)
from cluster.ranks.tasks import (
    Denoised,
    Rendering,
    RenderRequest,
    decode_item,
    denoise_batch,
    denoise_item,
    encode_for_batch,
    encode_prompt,
    encoded,
    render_item,
    use_adapters,
)

__all__ = [
    "Denoised",
    "EncodersBuilder",
    "RankBuilder",
    "RenderRequest",
    "Rendering",
    "decode_item",
    "denoise_batch",
    "denoise_item",
    "denoiser_builder",
    "encode_for_batch",
    "encode_prompt",
    "encoded",
    "encoders_builder",
    "encoders_size",
    "rank_builder",
    "render_item",
    "use_adapters",
]
