"""Adapters on a rank's transformers: what is loaded, what is kept, what does not fit."""

import pytest
import torch

from cluster.models.adapter_names import adapter_name
from cluster.models.model import find_model
from cluster.ranks.adapters import KEPT, RankAdapters
from cluster.ranks.loading import load_pipeline
from meancache.hooks.pipelines import active_loras, transformers_of
from tests.support import saved_pipelines
from tests.support.adapters import save_adapter


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A small Wan 2.2 and files of adapters, by what stands for their hashes."""
    folder = tmp_path_factory.mktemp("wan")
    saved_pipelines.save("Wan 2.2", folder / "model")
    model = find_model(str(folder / "model"), dtype="float32")
    pipeline = load_pipeline(model, torch.device("cpu"))
    files = {
        str(seed) * 64: save_adapter(pipeline, folder, f"a{seed}", seed).read_bytes()
        for seed in range(KEPT + 1)
    }
    return pipeline, files


def active(pipeline) -> list[list[str]]:
    return [active_loras(transformer) for transformer in transformers_of(pipeline)]


def test_adapters_are_on_both_transformers_and_are_read_once(wan):
    pipeline, files = wan
    adapters, read = RankAdapters(pipeline), []

    def reading(sha256: str) -> bytes:
        read.append(sha256)
        return files[sha256]

    one, two = ("0" * 64, 1.0), ("1" * 64, 0.5)
    assert not adapters.use([], reading)
    assert adapters.use([one], reading)
    assert active(pipeline) == [[adapter_name(*one)]] * 2
    assert not adapters.use([one], reading)
    assert adapters.use([one, two], reading)
    assert active(pipeline) == [sorted([adapter_name(*one), adapter_name(*two)])] * 2
    assert adapters.use([], reading)
    assert active(pipeline) == [[]] * 2
    assert adapters.use([two], reading)
    assert read == [one[0], two[0]]
    for seed in range(KEPT + 1):
        adapters.use([(str(seed) * 64, 1.0)], reading)
    assert all(len(part.peft_config) == KEPT for part in transformers_of(pipeline))
    adapters.use([], reading)


def test_an_adapter_that_fits_no_transformer_is_named(wan, tmp_path_factory):
    pipeline, _ = wan
    folder = tmp_path_factory.mktemp("flux")
    saved_pipelines.save("FLUX.1", folder / "model")
    flux = load_pipeline(find_model(str(folder / "model"), dtype="float32"), torch.device("cpu"))
    data = save_adapter(flux, folder, "flux", 0).read_bytes()
    adapters = RankAdapters(pipeline)
    with pytest.raises(ValueError, match="ffffffffffffffff-1"):
        adapters.use([("f" * 64, 1.0)], lambda sha256: data)
    assert active(pipeline) == [[]] * 2
