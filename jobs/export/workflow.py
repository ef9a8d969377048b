"""A finished render as a VideoFolder, WebDataset tars or flat Parquet.

Resume is the same command: what is there is done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cluster.results import manifest, rounds
from cluster.results.datasets import card, dataset, layouts
from cluster.results.datasets.layouts import Export, File
from cluster.results.datasets.where import WhereError, where
from cluster.store import MissingKey, Store, open_store
from cluster.work import pictures, plan
from jobs._shared.progress import QUIET_S, progress
from jobs._shared.roots import RefusedError, check_apart, open_output, refusing
from meancache.json_values import is_deep, shown

HUB = "hf://"
# How each format is read, for the last line.
READ_WITH = {
    "videofolder": "datasets.load_dataset({folder!r}, data_dir={output!r})",
    "webdataset": "datasets.load_dataset('webdataset', data_dir={output!r})",
    "parquet": "select * from '{output}/*.parquet'",
}


@dataclass(frozen=True)
class Config:
    """What is copied, and where to.

    Attributes:
        root: of a finished render.
        format: of `layouts.FORMATS`.
        output: where the files go.
        where: a condition on the rows, or None for all.
        unfinished: of a render that is on its way, take the rows that are there.
    """

    root: str
    format: str
    output: str
    where: str | None = None
    unfinished: bool = False


@dataclass(frozen=True)
class Outcome:
    """How many rows were exported, in how many files."""

    rows: int
    files: int


@dataclass(frozen=True)
class Prepared:
    """An export that nothing speaks against."""

    export: Export
    spec: dict[str, object]


def run(config: Config) -> Outcome:
    """Writes the files that are not there yet."""
    prepared = prepare(config)
    here = prepared.export
    if here.finished():
        print(f"export: nothing to do, {here.files} files are there")
    else:
        missing = here.missing()
        todo = sum(map(len, missing))
        print(f"export: {todo} files to write, {here.files - todo} already there")
        plan.freeze(here.target, prepared.spec, layouts.JOB_KEY)
        for _ in progress(here.write(missing), todo, "files"):
            pass
        here.finish()
    output = here.target.uri(layouts.JOB_KEY).removesuffix(f"/{layouts.JOB_KEY}")
    image = here.rows["key"][0].as_py().endswith(".png")
    folder = "imagefolder" if image else "videofolder"
    print(f"{here.rows.num_rows} rows: {output}")
    how = READ_WITH[config.format].format(folder=folder, output=output)
    if output.startswith(HUB):
        how = f"datasets.load_dataset({output.removeprefix(f'{HUB}datasets/')!r})"
    print(f"read with: {how}")
    return Outcome(here.rows.num_rows, here.files)


@refusing()
def prepare(config: Config) -> Prepared:
    """Reads the manifest and chooses the rows, before anything is written."""
    source = open_store(config.root)
    target = _target(config.output)
    check_apart(source, config.root, target, config.output)
    there = rounds.complete(source)
    if there is None and not config.unfinished:
        if manifest.finished(source) is not None:
            raise RefusedError(
                f"rows are being appended to {config.root}: run that command until it is finished, "
                "or give --unfinished for the rows that are there so far"
            )
        raise MissingKey(
            f"{source.uri(manifest.SUCCESS_KEY)} does not exist: give the --output of a "
            "jobs.render that has finished, or --unfinished for the rows that it has so far"
        )
    success = manifest.so_far(source) if there is None else there[1]
    if not success.parts:
        raise WhereError(f"{config.root} has no row yet: export it when its first shard is closed")
    read = dataset.read_parts(source, success)
    parts = progress(read, len(success.parts), "parts", after_s=QUIET_S)
    table = dataset.flattened(parts).sort_by("index")
    rows = table if config.where is None else where(table, config.where)
    if not rows.num_rows:
        met = "" if config.where is None else f" meets --where {shown(config.where)}"
        raise WhereError(f"none of the {table.num_rows} rows of {config.root}{met}")
    if config.output.startswith(HUB):
        target.probe()
    else:
        target = open_output(config.output)
    spec = layouts.specification(success, config.format, config.where)
    plan.check_spec(target, spec, layouts.JOB_KEY)
    images = layouts.IMAGE_KEY in rows.column_names
    sizes = {one.key: one.bytes for one in source.entries(pictures.KEPT)} if images else {}
    stages = layouts.FORMATS[config.format](rows, sizes)
    text = card.written(_job(source), config.format, rows)
    # Before the metadata, which says that all else is there.
    stages.insert(1, [File(layouts.CARD_KEY, 0, 0, 0, lambda source, rows: text)])
    return Prepared(Export(source, target, rows, stages), spec)


def _target(output: str) -> Store:
    """Where an export goes: a store like others, or a dataset on the Hub."""
    if not output.startswith(HUB):
        return open_store(output)
    from cluster.store.hub import HubStore  # with huggingface_hub

    return HubStore(output)


def _job(source: Store) -> dict[str, Any]:
    """What job.json says; nothing where there is none that can be read."""
    try:
        found = json.loads(source.get(plan.SPEC_KEY))
    except (MissingKey, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and not is_deep(found) else {}
