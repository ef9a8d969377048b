"""What a rank loads, and what it asks the disk for beforehand."""

import os
from pathlib import Path

from cluster.ranks.loading import read_ahead
from meancache import tiny


def test_the_weights_that_are_loaded_are_asked_for_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *what: asked.append(what))
    names = {path.parent.name for path in read_ahead(tiny.WEIGHTS, ("text",))}
    assert names == {"transformer", "vae"}
    assert asked == [(0, 0, os.POSIX_FADV_WILLNEED)] * 2


def test_what_is_no_folder_is_not_read():
    assert read_ahead(Path("hunyuanvideo-community/HunyuanVideo"), ()) == []
