"""What a rank loads, and what it asks the disk for beforehand."""

import os
from pathlib import Path

import torch

from cluster.models.model import find_model
from cluster.ranks.loading import load_pipeline, read_ahead
from meancache import tiny


def test_the_weights_that_are_loaded_are_asked_for_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *what: asked.append(what))
    names = {path.parent.name for path in read_ahead(tiny.WEIGHTS, ("text",))}
    assert names == {"transformer", "vae"}
    assert asked == [(0, 0, os.POSIX_FADV_WILLNEED)] * 2


def test_what_is_no_folder_is_not_read():
    assert read_ahead(Path("hunyuanvideo-community/HunyuanVideo"), ()) == []


def test_weights_go_to_the_device_from_the_pages_of_their_files():
    pipeline = load_pipeline(find_model("tiny"), torch.device("cpu"))
    maps = [
        (int(start, 16), int(end, 16))
        for start, end in (
            line.split()[0].split("-")
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(".safetensors")
        )
    ]
    for component in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        largest = max(component.parameters(), key=torch.Tensor.numel).data_ptr()
        assert any(start <= largest < end for start, end in maps), type(component)
