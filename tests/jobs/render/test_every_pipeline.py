"""Every row of the pipelines table as a person runs it: rendered, verified, replayed."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.media import image, video
from cluster.models.model import Model, find_model
from jobs._shared import cli
from jobs.render import __main__ as render
from jobs.replay import __main__ as replay
from jobs.verify import __main__ as verify
from meancache import Schedule
from tests.support import saved_pipelines
from tests.support.image_pipelines import picture

STEPS = 4
ROWS = [{"prompt": "a red circle on a dark background", "seed": 3}, {"prompt": "a blue square"}]
NAMES = [*saved_pipelines.FOLDERS, *saved_pipelines.WITH_IMAGES]
# A newer one that takes a few seconds; `test_images` has one that draws from images.
ALWAYS = ("Mochi",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two pictures, and prompts with them and without."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name, seed in (("a.png", 0), ("b.png", 1)):
        (folder / name).write_bytes(picture(seed=seed))
    drawn = [{**row, "image": name} for row, name in zip(ROWS, ("a.png", "b.png"), strict=True)]
    for name, rows in (("texts", ROWS), ("images", drawn)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def flags(model: Model) -> list[str]:
    """Of a small output, where the model takes a size."""
    given = ["--steps", str(STEPS)]
    if model.kind.sized:
        given += ["--height", "64", "--width", "96"]
    if not model.kind.is_image:
        every = model.temporal_compression
        given += ["--num-frames", str(1 + every * max(1, 8 // every))]
    return given


def scheduled(model: Model, folder: Path) -> list[str]:
    """The flags of a schedule that computes the first step, the second and the last."""
    arguments = {**model.defaults, "num_inference_steps": STEPS}
    if model.kind.sized:
        arguments |= {"height": 64, "width": 96}
    if not model.kind.is_image:
        arguments["num_frames"] = int(flags(model)[-1])
    edges = [{"start": start, "stop": stop, "span": 1} for start, stop in ((0, 1), (1, 3), (3, 4))]
    file = folder / "schedule.json"
    Schedule.from_edges(model.grid(STEPS, arguments).sigmas, edges).save(file)
    return ["--schedule", str(file)]


def frames(root: Path) -> list[np.ndarray]:
    rows = pq.read_table(root / "manifest" / "parts").to_pylist()
    return [
        (video.decode if row["fps"] else image.decode)((root / row["key"]).read_bytes())
        for row in rows
    ]


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_it_is_rendered_verified_and_replayed_by_one_rank_and_by_two(
    folder, name, tmp_path, shared_cluster, capsys
):
    saved_pipelines.save(name, tmp_path / "model")
    model = find_model(str(tmp_path / "model"), dtype="float32")
    prompts = "images" if model.kind.takes_image else "texts"
    command = ["--model", str(tmp_path / "model"), "--dtype", "float32", *flags(model)]
    command += ["--prompts", str(folder / f"{prompts}.jsonl"), "--gangs", "1"]
    command += scheduled(model, tmp_path)
    shares = model.kind.parallel is not None and model.shares
    for size in (1, 2):
        root = tmp_path / f"by-{size}"
        code = render.main([*command, "--output", str(root), "--gang-size", str(size)])
        said = capsys.readouterr()
        if size == 2 and not shares:
            assert code == cli.EXIT_REFUSED
            assert f"cannot share a {model.pipeline} here; use --gang-size 1" in said.err
            continue
        assert code == 0, said.err
        assert ("it is not kept: the mp4s are silent" in said.out) == model.kind.sound
        rows = pq.read_table(root / "manifest" / "parts").to_pylist()
        assert [row["nfe"] for row in rows] == [3 * model.calls(model.defaults)] * 2
        assert [row["world_size"] for row in rows] == [size] * 2
        assert len({row["sha256"] for row in rows}) == 2
        assert verify.main([str(root)]) == 0
        assert replay.main([str(root), rows[0]["item_id"]]) == 0
        assert "the same: " in capsys.readouterr().out
    if shares:
        for one, two in zip(frames(tmp_path / "by-1"), frames(tmp_path / "by-2"), strict=True):
            # An mp4 makes more of a difference in a pixel; a PNG keeps it.
            assert np.abs(one.astype(int) - two.astype(int)).mean() < 0.5
