"""python -m jobs.export ROOT: a finished render as a VideoFolder, WebDataset tars or flat Parquet.

Resume is the same command: what is there is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.results import manifest
from cluster.results.datasets import dataset, layouts
from cluster.results.datasets.layouts import Export
from cluster.results.datasets.where import EXAMPLE, WhereError, where
from cluster.store import MissingKey, open_store
from cluster.work import plan
from jobs._shared import cli as _cli
from jobs._shared.progress import progress
from meancache.json_values import shown

# How each format is read, for the last line.
READ_WITH = {
    "videofolder": "datasets.load_dataset({folder!r}, data_dir={output!r})",
    "webdataset": "datasets.load_dataset('webdataset', data_dir={output!r})",
    "parquet": "select * from '{output}/*.parquet'",
}


@dataclass(frozen=True)
class Prepared:
    """An export that nothing speaks against."""

    export: Export
    spec: dict[str, object]
    format: str


def prepare(options: argparse.Namespace) -> Prepared:
    """Reads the manifest and chooses the rows, before anything is written."""
    source = open_store(options.root)
    there = manifest.finished(source)
    if there is None:
        raise MissingKey(
            f"{source.uri(manifest.SUCCESS_KEY)} does not exist: give the --output of a "
            "jobs.render that has finished"
        )
    success = there[1]
    parts = progress(dataset.read_parts(source, success), len(success.parts), "parts", first="")
    table = dataset.flattened(parts).sort_by("index")
    rows = table if options.where is None else where(table, options.where)
    if not rows.num_rows:
        met = "" if options.where is None else f" meets --where {shown(options.where)}"
        raise WhereError(f"none of the {table.num_rows} rows of {options.root}{met}")
    target = _cli.open_output(options)
    spec = layouts.specification(success, options.format, options.where)
    plan.check_spec(target, spec, layouts.JOB_KEY)
    stages = layouts.FORMATS[options.format](rows)
    return Prepared(Export(source, target, rows, stages), spec, options.format)


def perform(prepared: Prepared) -> int:
    """Writes the files that are not there yet."""
    here = prepared.export
    if here.finished():
        print(f"export: nothing to do, {here.files} files are there")
    else:
        missing = here.missing()
        todo = sum(map(len, missing))
        print(f"export: {todo} files to write, {here.files - todo} already there")
        plan.freeze(here.target, prepared.spec, layouts.JOB_KEY)
        for _ in progress(here.write(missing), todo, "files", first=""):
            pass
        here.finish()
    output = here.target.uri(layouts.JOB_KEY).removesuffix(f"/{layouts.JOB_KEY}")
    image = here.rows["key"][0].as_py().endswith(".png")
    folder = "imagefolder" if image else "videofolder"
    print(f"{here.rows.num_rows} rows: {output}")
    print(f"read with: {READ_WITH[prepared.format].format(folder=folder, output=output)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.export",
        "Copies the videos and rows of a finished jobs.render, or those that meet a condition, to\n"
        "a layout that Hugging Face datasets, WebDataset, DuckDB, Polars and others read. Every\n"
        "video is checked against its sha256. An export that was stopped is resumed by the same\n"
        "command; a finished one writes nothing again.",
        "python -m jobs.export out --format videofolder --output dataset \\\n"
        f'      --where "{EXAMPLE}"',
    )
    result.add_argument("root", metavar="ROOT", help="the --output of a finished jobs.render")
    result.add_argument(
        "--format",
        required=True,
        choices=tuple(layouts.FORMATS),
        help="videofolder: metadata.parquet above the videos (or pictures); webdataset: tars of "
        "video, prompt and row; parquet: the rows alone",
    )
    _cli.add_output(result, "where the files go")
    result.add_argument(
        "--where",
        metavar="EXPR",
        help="only rows that meet a condition on columns and metrics, of == != < <= > >= in, "
        f'is None, and, or, not; such as "{EXAMPLE}"',
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)
