"""The embedded model, as the driver knows it, and small plans of it."""

from collections.abc import Iterator

import pytest

from cluster.fleet.gang import Gang
from cluster.models.model import Model, find_model
from cluster.ranks import rank_builder
from cluster.work.plan import WorkItem, plan_items
from cluster.work.prompts import Prompt


@pytest.fixture(scope="session", autouse=True)
def forkserver(kept_forkserver) -> None:
    """Gangs start their ranks as forks of one process."""


@pytest.fixture(scope="session")
def model() -> Model:
    """What is known of the embedded model without its weights."""
    return find_model("tiny")


@pytest.fixture
def items(model) -> list[WorkItem]:
    """Seven items of one shard."""
    prompts = [Prompt(line, f"prompt {line}", f"id-{line}") for line in range(1, 8)]
    return plan_items(prompts, model, model.defaults)


@pytest.fixture(scope="session")
def gang_of_one(model) -> Iterator[Gang]:
    """One rank with the embedded pipeline, plain diffusers."""
    with Gang(rank_builder(model), 1) as gang:
        yield gang


@pytest.fixture(scope="session")
def gang_of_two(model) -> Iterator[Gang]:
    """Two xDiT ranks that share each video of the embedded pipeline, over gloo."""
    with Gang(rank_builder(model), 2) as gang:
        yield gang
