"""Conditions on rows: they mean what Python means by them, and can do nothing else."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.results.datasets.where import MOST_CHARACTERS, WhereError, where

TABLE = pa.table(
    {
        "name": ["a red circle", "a blue square", "", "a red square"],
        "seed": [0, 7, -3, 2**62],
        "fps": pa.array([8.0, 23.976, 0.0, 16.0], pa.float32()),
        "metrics.caption": [1.0, 0.5, 0.9, 0.25],
        "metrics.a b": [1.0, None, 2.0, None],
        "created_at": pa.array(
            [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)],
            pa.timestamp("us", tz="UTC"),
        ),
    }
)


def kept(condition: str) -> list[int]:
    """The numbers of the rows for which a condition holds."""
    numbered = TABLE.append_column("number", pa.array(range(TABLE.num_rows)))
    return where(numbered, condition)["number"].to_pylist()


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("metrics.caption >= 0.9", [0, 2]),
        ("metrics.caption >= 0.9 and seed == 0", [0]),
        ("seed == 0 or seed == 7", [0, 1]),
        ("not seed == 0", [1, 2, 3]),
        ("-4 < seed <= 0", [0, 2]),
        ("0.9 <= metrics.caption", [0, 2]),
        ("seed == 4611686018427387904", [3]),
        ("seed > 6.5", [1, 3]),
        ("fps == 23.976", [1]),
        ("fps > metrics.caption", [0, 1, 3]),
        ("seed in (7, -3)", [1, 2]),
        ("seed not in [7, -3]", [0, 3]),
        ("'red' in name", [0, 3]),
        ("'red' not in name and name != ''", [1]),
        ("name in {'a red circle'}", [0]),
        ("created_at >= '2026-01-03'", [2, 3]),
        ("created_at == '2026-01-02 01:00+01:00'", [1]),
        ("  seed == 0  ", [0]),
    ],
)
def test_a_condition_chooses_rows_in_their_order(condition, rows):
    assert kept(condition) == rows


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ('metrics["a b"] > 1', [2]),
        ('not metrics["a b"] > 1', [0]),
        ('metrics["a b"] in (1, 2)', [0, 2]),
        ('metrics["a b"] not in (1,)', [2]),
        ('metrics["a b"] is None', [1, 3]),
        ('metrics["a b"] is not None', [0, 2]),
        ('metrics["a b"] > 1 or seed == 7', [1, 2]),
    ],
)
def test_what_is_absent_meets_neither_a_comparison_nor_its_opposite(condition, rows):
    assert kept(condition) == rows


numbers = st.integers(-5, 10) | st.floats(-2, 2)
comparisons = st.builds(
    "{} {} {}".format,
    st.sampled_from(["seed", "caption"]),
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    numbers,
) | st.builds("{} in {}".format, st.just("seed"), st.lists(st.integers(-5, 10), min_size=1))
conditions = st.recursive(
    comparisons,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("(not {})".format, inner)
    ),
    max_leaves=6,
)


@given(conditions)
def test_conditions_mean_what_they_mean_in_python(condition):
    columns = {"seed": TABLE["seed"].to_pylist(), "caption": TABLE["metrics.caption"].to_pylist()}
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    expected = [number for number, row in enumerate(rows) if eval(condition, {}, row)]
    assert kept(condition.replace("caption", "metrics.caption")) == expected


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("num_frames == 9", "no column 'num_frames'; there are name, seed, fps, metrics.caption"),
        ("metrics.psnr > 1", "no column 'metrics.psnr'; there are"),
        ("seed = 7", "with == for equal"),
        ("", "cannot be read"),
        ("seed ==", "cannot be read"),
        ("seed == 7; import os", "cannot be read"),
        ("seed", "'seed' is no condition"),
        ("1 == 1", "both values"),
        ("seed == 'seven'", "no value of a column of numbers"),
        ("seed == True", "neither a number nor a text"),
        ("seed == 1" + "0" * 40, "no value of a column of numbers"),
        ("name > 3", "no value of a column of texts"),
        ("name == seed", "'name' is text, 'seed' number"),
        ("created_at > 'yesterday'", "no value of a column of times"),
        ("3 in seed", "only text is within text"),
        ("seed in ()", "is no column"),
        ("seed is 7", "only None can"),
        ("seed + 1 == 8", "'seed + 1' is no column"),
        ("name.upper() == 'A'", "is no column"),
        ("name.__class__ == 'A'", "is no column"),
        ("__import__('os').system('true') == 0", "is no column"),
        ("(seed := 7) == 7", "is no column"),
        ("[seed for seed in (1,)] == 1", "is no column"),
        ("seed == 0\x00", "cannot be read"),
        ("(" * 5000 + "seed == 0" + ")" * 5000, "cannot be read"),
        ("not " * 2400 + "seed == 0", "cannot be read"),
        ("seed == 0 or " * MOST_CHARACTERS + "seed == 1", "more than 10000 characters"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(condition, sentence):
    with pytest.raises(WhereError) as refusal:
        where(TABLE, condition)
    assert sentence in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    assert str(refusal.value).isprintable()
