"""The README.md of an export: a dataset card that says how its rows were made.

Follows from job.json and the rows alone. The licence is for whoever publishes it to say: the
model's own may bind what it draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.results.parts import METRIC

PSNR, SSIM = f"{METRIC}psnr", f"{METRIC}ssim"
# How Hugging Face calls sizes of datasets, by the most rows.
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_LOADS = {
    "videofolder": "datasets.load_dataset('{folder}', data_dir='.')",
    "webdataset": "datasets.load_dataset('webdataset', data_dir='.')",
    "parquet": "datasets.load_dataset('parquet', data_files='part-*.parquet')",
}


def written(job: Mapping[str, Any], layout: str, rows: pa.Table) -> bytes:
    """The card.

    Args:
        job: the content of job.json; what it lacks is left out.
        layout: of the export.
        rows: that it holds.
    """
    image = rows["key"][0].as_py().endswith(".png")
    from_image = "image_key" in rows.column_names
    what = "images" if image else "videos"
    to = "image" if image else "video"
    tasks = f"image-to-{to}" if from_image else f"text-to-{to}"
    size = next((name for most, name in _SIZES.items() if rows.num_rows < most), "n>1M")
    folder = "imagefolder" if image else "videofolder"
    lines = [
        "---",
        "license: other # not decided here: see below",
        f"task_categories: [{tasks}]",
        f"size_categories: ['{size}']",
        "tags: [synthetic]",
        "---",
        "",
        f"# {rows.num_rows} generated {what}",
        "",
        *_made(job, rows),
        "",
        *_fidelity(rows),
        "",
        "## Read it",
        "",
        "```python",
        "import datasets",
        "",
        f"dataset = {_LOADS[layout].format(folder=folder)}",
        "```",
        "",
        "## Columns",
        "",
        ", ".join(_code(name) for name in rows.column_names),
        "",
        "## Licence",
        "",
        "To be added by whoever publishes this: the licences of the model, of its adapters and of "
        "the prompts and images that it was given may bind what was made of them.",
        "",
    ]
    return "\n".join(lines).encode()


def _made(job: Mapping[str, Any], rows: pa.Table) -> list[str]:
    """How the rows were made."""
    models = pc.unique(rows["model"]).to_pylist()
    revisions = pc.unique(rows["model_revision"]).to_pylist()
    steps = pc.unique(rows["num_inference_steps"]).to_pylist()
    forwards = pc.unique(rows["nfe"]).to_pylist()
    schedules = [one for one in pc.unique(rows["schedule_id"]).to_pylist() if one is not None]
    model = job.get("model")
    known = model if isinstance(model, Mapping) else {}
    run = [_code(known[name]) for name in ("pipeline", "dtype") if name in known]
    lines = [
        f"- Model: {', '.join(map(_code, models))}, revision {', '.join(map(_code, revisions))}"
        + "".join(f", {one}" for one in run),
        f"- Steps: {_range(steps)}, of which {_range(forwards)} forwards were computed",
    ]
    if schedules:
        ids = ", ".join(_code(one) for one in schedules[:8]) + ", ..." * (len(schedules) > 8)
        lines.append(f"- MeanCache schedules, the other steps being estimated: {ids}")
    else:
        lines.append("- Every step was computed: no schedule")
    arguments = job.get("arguments")
    if isinstance(arguments, Mapping):
        given = ", ".join(_code(f"{name}={value!r}") for name, value in sorted(arguments.items()))
        lines.append(f"- Arguments, where a row does not say otherwise: {given}")
    return ["## How it was made", "", *lines]


def _fidelity(rows: pa.Table) -> list[str]:
    """How close the audited rows came to their full runs."""
    lines = ["## Fidelity", ""]
    known = rows[PSNR].drop_null() if PSNR in rows.column_names else pa.chunked_array([[]])
    if not len(known):
        return [*lines, "No row was audited against its full run."]
    psnr = pc.mean(known).as_py(), pc.min(known).as_py()
    ssim = pc.mean(rows[SSIM]).as_py()
    return [
        *lines,
        f"{len(known)} of {rows.num_rows} rows were rendered in full too: PSNR {psnr[0]:.1f} dB in "
        f"the mean, {psnr[1]:.1f} dB at worst"
        + (f"; SSIM {ssim:.4f} in the mean." if ssim is not None else "."),
    ]


def _range(values: list[Any]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "unknown"
    return str(known[0]) if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def _code(value: Any) -> str:
    """A value of any origin as code in Markdown, on one line."""
    text = "".join(one if one.isprintable() and one != "`" else " " for one in str(value))
    return f"`{text[:300]}`"
