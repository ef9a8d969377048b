"""The embedded model, as the driver knows it, and small plans of it."""

import pytest

from cluster.model import Model, find_model
from cluster.plan import WorkItem, plan_items
from cluster.prompts import Prompt


@pytest.fixture(scope="session")
def model() -> Model:
    """What is known of the embedded model without its weights."""
    return find_model("tiny")


@pytest.fixture
def items(model) -> list[WorkItem]:
    """Seven items of one shard."""
    prompts = [Prompt(line, f"prompt {line}", f"id-{line}") for line in range(1, 8)]
    return plan_items(prompts, model, model.defaults)
