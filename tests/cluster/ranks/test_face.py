"""What drivers and leaders import of this room brings no torch."""

import subprocess
import sys

KNOWN = """
import sys
import cluster.ranks, cluster.ranks.memory
from cluster.models.model import find_model
from cluster.models.sizes import component_bytes
from cluster.models.memory_plan import Demand
model = find_model("tiny")
model.grid(50)
Demand(model, component_bytes(model), model.defaults, 1, 1).offloads(80e9, 0)
heavy = {"torch", "diffusers", "transformers", "accelerate"}
print(sorted(heavy & set(sys.modules)))
"""


def test_all_that_is_asked_before_a_rank_starts_needs_no_torch():
    found = subprocess.run(
        [sys.executable, "-c", KNOWN], check=True, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.strip() == "[]"
