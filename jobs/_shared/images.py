"""The images of rows, for jobs that need one setting for all of them and no row that fails."""

from __future__ import annotations

from functools import partial
from typing import Any

from cluster.models.model import Model
from cluster.store import Store, open_store
from cluster.work import pictures
from cluster.work.prompts import Prompts, PromptsError
from jobs._shared.configs import ModelConfig
from jobs._shared.progress import QUIET_S, progress

_shown = partial(progress, what="images", after_s=QUIET_S)


def examine_all(
    asked: ModelConfig, output: str, rows: Prompts, model: Model, gang_size: int, job: str
) -> dict[str, Any]:
    """Checks the rows' images, in place; returns the size that all of them ask for, where they do.

    Args:
        asked: the flags, which may say a size.
        output: the root, which may know some of the images.
        rows: of the prompts file.
        model: what draws from them.
        gang_size: ranks that share an output.
        job: what is of one size, for the message: 'a calibration'.

    Raises:
        PromptsError: one cannot be used, or they ask for different sizes.
    """
    there = open_store(output)
    sized = asked.height is not None or asked.width is not None
    known = pictures.indexed(there) if model.kind.takes_image else {}
    pictures.examine(rows, model, sized, gang_size, known, _shown)
    for row in rows:
        if row.image is not None and row.image.error is not None:
            raise PromptsError(f"line {row.line}: {row.image.error}")
    if sized or not model.kind.takes_image or model.image_size is None:
        return {}
    sizes = {(row.overrides.get("height"), row.overrides.get("width")) for row in rows}
    if len(sizes) > 1:
        raise PromptsError(
            f"the images ask for {len(sizes)} sizes of the output, and {job} is of one: "
            "give --height and --width, or images of one shape"
        )
    height, width = sizes.pop()
    return {"height": height, "width": width}


def keep_all(store: Store, rows: Prompts) -> None:
    """Copies the rows' images under the root, where leaders find them."""
    images = [one.image for one in rows if one.image is not None]
    if images:
        pictures.keep(store, images, rows.files, _shown)
