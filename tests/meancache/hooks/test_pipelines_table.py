"""The table of pipeline classes: complete, of the installed diffusers, and as the classes run."""

from __future__ import annotations

import diffusers
import pytest
import torch

from tests.support.pipeline_classes import BUILT
from tests.support.pipeline_support import (
    PAGE,
    STATES,
    classes,
    page,
    rows,
    support,
    unneeded,
    without_building,
)

TEXT = PAGE.read_text(encoding="utf-8")
TABLE = rows(TEXT)
# Each does another thing between its transformer and its scheduler.
HANDFUL = (
    "Flux2KleinKVPipeline",  # the first call returns a cache
    "Cosmos2TextToImagePipeline",  # an affine of the prediction
    "PRXPixelPipeline",  # a prediction of the clean sample
    "LTX2Pipeline",  # two schedulers on one call
    "Ideogram4Pipeline",  # a second transformer
    "Kandinsky5I2VPipeline",  # steps a slice in place
    "FluxModularPipeline",
    "MochiPipeline",
)


@pytest.fixture(scope="module")
def found():
    return classes()


def test_every_class_that_diffusers_exports_is_in_the_table(found):
    assert list(TABLE) == list(found), "run python -m tests.support.pipeline_support"
    assert not unneeded(found)


def test_the_page_is_what_its_rows_say_of_this_version_of_diffusers():
    assert page(TABLE) == TEXT
    assert f"diffusers {diffusers.__version__} " in TEXT


def test_most_flows_work_and_every_other_class_says_why():
    assert sum(one.state == "works" for one in TABLE.values()) >= 60
    for name, one in TABLE.items():
        assert one.state in STATES
        assert one.state == "works" or one.why, name
        assert (one.state == "works") <= (name in BUILT), name


def test_what_follows_from_a_class_itself_is_as_it_was(found):
    for name in set(found) - set(BUILT):
        if TABLE[name].state == "refused":
            assert without_building(found[name]) == TABLE[name], name


@pytest.mark.parametrize("name", HANDFUL)
def test_a_row_is_what_its_class_does(found, name):
    torch.set_num_threads(1)
    assert support(name, found[name]) == TABLE[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_every_row_is_what_its_class_does(found, name):
    torch.set_num_threads(1)
    assert support(name, found[name]) == TABLE[name]
