"""Sizes of components: those of the files, or counted without them."""

from safetensors import safe_open

from cluster.ranks.memory import component_bytes, counted_bytes
from meancache import tiny


def test_components_are_as_large_as_their_weights_in_the_files(model):
    sizes = counted_bytes(model)
    assert set(sizes) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    for name, size in sizes.items():
        (file,) = (tiny.WEIGHTS / name).glob("*.safetensors")
        with safe_open(file, "pt") as weights:
            count = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
        assert abs(size - 4 * count) <= 0.01 * size


def test_headers_and_the_count_agree(model):
    counted, known = counted_bytes(model), component_bytes(model)
    assert known.keys() == counted.keys()
    for name, size in known.items():
        assert abs(size - counted[name]) <= 0.01 * size
