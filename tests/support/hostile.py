"""What the tests of untrusted input share: hostile values, mutations, and what a refusal is."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The same examples on every machine; a module's files are shared by its examples.
FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
ESCAPE = "\x1b[2J\x1b[31m\u202egnp.exe\r\n\x00"

VALUES = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 10**9, 10**400, 0.0, -0.0, 0.5, 1e308,
        5e-324, float("nan"), float("inf"), "", "1", "01", " 1", "٣", "\ud800", "../../etc/passwd",
        ESCAPE, "x" * 10_000, [], [[]], {}, {"": None}, [None] * 100,
    ]
)  # fmt: skip
JSON = st.recursive(
    VALUES | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


def assert_sentence(error: Exception) -> None:
    """One short line of printable characters, with no name of an exception in it."""
    said = str(error)
    assert said.isprintable(), repr(said)
    assert 10 < len(said) < 800, said
    assert not any(name in said for name in ("Traceback", "KeyError", "TypeError", "Recursion"))


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> str:
    """JSON text of a document with one value replaced, removed, added or given twice."""
    copy = json.loads(json.dumps(document))
    place, parent, key = copy, None, None
    while isinstance(place, dict | list) and place and (parent is None or draw(st.booleans())):
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        parent, key = place, draw(st.sampled_from(keys))
        place = parent[key]
    action = draw(st.sampled_from(["replace", "remove", "add", "twice"]))
    if action == "replace":
        parent[key] = draw(JSON)
    elif action == "remove":
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, draw(JSON))
    elif action == "add":
        parent[draw(st.sampled_from(["", "01", " 1", "٣", "__proto__", ESCAPE]))] = draw(JSON)
    else:
        parent["TWICE"] = parent[key]
        return json.dumps(copy).replace('"TWICE"', json.dumps(key), 1)
    return json.dumps(copy)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A file cut short, or with some bytes changed, dropped or slipped in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        changed[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(changed[: draw(st.just(len(changed)) | st.integers(0, len(changed)))])
