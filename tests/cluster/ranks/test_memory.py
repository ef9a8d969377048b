"""Sizes of components: those of the files, known without them."""

from safetensors import safe_open

from cluster.ranks.memory import component_bytes
from meancache import tiny


def test_components_are_as_large_as_their_weights_in_the_files(model):
    sizes = component_bytes(model)
    assert set(sizes) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    for name, size in sizes.items():
        (file,) = (tiny.WEIGHTS / name).glob("*.safetensors")
        with safe_open(file, "pt") as weights:
            count = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
        assert abs(size - 4 * count) <= 0.01 * size
