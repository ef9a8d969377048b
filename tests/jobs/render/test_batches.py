"""Jobs whose pictures go into one forward several at a time, as a person would run them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.media import image
from jobs._shared import cli
from jobs.render import __main__ as render
from jobs.replay import __main__ as replay
from jobs.verify import __main__ as verify
from tests.support import saved_pipelines

STEPS = 2
# Two sizes in turn, and one that is alone.
SIZES = [(32, 48), (32, 32)] * 4 + [(64, 32)]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("batches")
    saved_pipelines.save("FLUX.1", folder / "model")
    rows = [
        {"prompt": f"a red circle {n}", "seed": n, "height": height, "width": width}
        for n, (height, width) in enumerate(SIZES)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--dtype", "float32", "--steps", str(STEPS), "--gangs", "1"]
    return ["--model", str(folder / "model"), *flags, "--prompts", str(folder / "rows.jsonl")]


@pytest.fixture(scope="module")
def rendered(command, tmp_path_factory, shared_cluster) -> Path:
    root = tmp_path_factory.mktemp("batches") / "out"
    assert render.main([*command, "--output", str(root), "--batch", "4"]) == 0
    return root


def rows(root: Path) -> list[dict]:
    return pq.read_table(root / "manifest" / "parts").to_pylist()


def test_rows_of_a_setting_share_forwards_and_receipts_say_so(rendered):
    receipts = [json.loads(path.read_text()) for path in rendered.glob("receipts/*/*.json")]
    sizes = {one["index"]: one.get("batch", 1) for one in receipts}
    # All of them on an idle machine; on a busy one the first may come alone.
    assert list(sizes.values()).count(4) >= 4
    assert sizes[8] == 1
    assert all(0 <= one["batch_place"] < one["batch"] for one in receipts if "batch" in one)
    assert all(one["nfe"] == STEPS for one in receipts)
    assert verify.main([str(rendered)]) == 0


def test_a_job_goes_on_without_batches_to_the_same_items_and_pictures(command, rendered, tmp_path):
    root = Path(shutil.copytree(rendered, tmp_path / "out"))
    shutil.rmtree(root / "manifest")
    for path in sorted(root.glob("receipts/*/*.json"))[::2]:
        path.unlink()
    assert render.main([*command, "--output", str(root)]) == 0
    assert len(rows(root)) == len(SIZES)
    for row, before in zip(rows(root), rows(rendered), strict=True):
        assert row["item_id"] == before["item_id"]
        pair = [
            image.decode((where / one["key"]).read_bytes()).astype(int)
            for where, one in ((root, row), (rendered, before))
        ]
        assert np.abs(pair[0] - pair[1]).max() <= 1


def test_a_row_of_a_batch_is_replayed_to_the_bit(rendered, capsys):
    receipts = [json.loads(path.read_text()) for path in rendered.glob("receipts/*/*.json")]
    last = next(one for one in receipts if one.get("batch_place") == 3)
    assert replay.main([str(rendered), last["item_id"]]) == 0
    assert "the same: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("tiny", "--batch 4 is for models of images: tiny makes videos"),
        ("FLUX.1 Kontext", "has an image of its own beside"),
    ],
)
def test_what_has_no_room_for_several_is_refused(tmp_path, prompts, capsys, model, sentence):
    if model != "tiny":
        model = str(saved_pipelines.save(model, tmp_path / "model"))
    given = ["--model", model, "--prompts", prompts, "--output", str(tmp_path / "out")]
    assert render.main([*given, "--batch", "4"]) == cli.EXIT_REFUSED
    assert sentence in capsys.readouterr().err


def test_a_batch_beyond_measure_is_refused(command, tmp_path, capsys):
    given = [*command, "--output", str(tmp_path / "out"), "--batch", "65"]
    assert render.main(given) == cli.EXIT_REFUSED
    assert "--batch 65 must be at most 64" in capsys.readouterr().err
