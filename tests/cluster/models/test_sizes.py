"""Sizes from the headers of files, without torch."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster.models.model import find_model
from cluster.models.sizes import component_bytes
from meancache import tiny


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny.WEIGHTS, tmp_path / "m")


def test_weights_in_several_files_count_together(folder):
    whole = component_bytes(find_model(str(folder)))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    for part in (1, 2):
        save_file({f"w{part}": np.zeros((part, 5), np.float16)}, weights.with_stem(f"part-{part}"))
    names = {f"w{part}": f"part-{part}.safetensors" for part in (1, 2)}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps({"weight_map": names}))
    parts = component_bytes(find_model(str(folder)))
    assert parts == {**whole, "transformer": 2 * 15}  # a model from a folder is bfloat16


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]"])
def test_sizes_are_unknown_where_a_header_cannot_be_read(folder, content):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert component_bytes(find_model(str(folder))) is None


def test_no_path_in_an_index_leads_out_of_the_component(folder):
    index = {"weight_map": {"w": "../../../etc/passwd"}}
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    assert component_bytes(find_model(str(folder))) is None
