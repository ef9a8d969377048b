"""Prompts files of every kind, and what is said of the rows that cannot be used."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.work.prompts import PromptsError, read_prompts, stable_seed

ROWS = [
    {"prompt": "a red circle", "prompt_id": "one", "seed": 7, "guidance_scale": 5.5},
    {"prompt": "a blue square", "prompt_id": "two"},
]


def surrogate_parquet() -> bytes:
    """What a writer that does not check its text leaves of a lone surrogate."""
    text = pa.array([b"a \xed\xa0\x80"], pa.binary()).view(pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": text}), sink)
    return sink.getvalue().to_pybytes()


SURROGATE = surrogate_parquet()


def written(tmp_path, name: str, data: bytes | str) -> str:
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_four_kinds_of_file_hold_the_same_prompts(tmp_path):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    files = [
        written(tmp_path, "p.jsonl", jsonl(*ROWS)),
        written(
            tmp_path,
            "p.csv",
            "prompt,prompt_id,seed,guidance_scale\na red circle,one,7,5.5\na blue square,two,,\n",
        ),
        written(tmp_path, "p.parquet", sink.getvalue().to_pybytes()),
    ]
    for file in files:
        first, second = read_prompts(file)
        assert (first.prompt, first.prompt_id, first.seed) == ("a red circle", "one", 7)
        assert first.overrides == {"guidance_scale": 5.5}
        assert (second.prompt, second.prompt_id, second.seed) == ("a blue square", "two", None)
    text = written(tmp_path, "p.txt", "\ufeffa red circle\n\n  a blue square  \n")
    assert [prompt.prompt for prompt in read_prompts(text)] == ["a red circle", "a blue square"]


def test_a_null_is_a_value_left_out(tmp_path):
    row = {"prompt": "a", "prompt_id": None, "seed": None, "height": None}
    (prompt,) = read_prompts(written(tmp_path, "p.jsonl", jsonl(row)))
    assert (prompt.seed, prompt.overrides) == (None, {})


def test_a_prompt_without_an_id_gets_one_from_its_content(tmp_path):
    a, b, c = read_prompts(written(tmp_path, "p.txt", "one\ntwo\none\n"))
    assert a.prompt_id == c.prompt_id != b.prompt_id


def test_a_prompt_without_a_seed_gets_a_stable_one_from_its_id():
    assert stable_seed("one") == stable_seed("one")
    assert len({stable_seed("one", 0), stable_seed("one", 1), stable_seed("two", 0)}) == 3
    assert all(0 <= stable_seed(str(n)) < 2**31 for n in range(100))


def test_odd_but_valid_text_is_kept_as_it_is(tmp_path):
    odd = ["nul \x00 and escape \x1b[31m", "مرحبا بالعالم", "x" * 8_000_000, "emoji 🎬"]
    file = written(tmp_path, "p.jsonl", jsonl(*({"prompt": text} for text in odd)))
    assert [prompt.prompt for prompt in read_prompts(file)] == odd


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt_id": "x"}, "line 2: no prompt"),
        ({"prompt": "   "}, "line 2: no prompt"),
        ({"prompt": 5}, "line 2: prompt must be text"),
        ({"prompt": "a", "promt_id": "x"}, "line 2: unknown column 'promt_id'; known are prompt"),
        ({"prompt": "a \ud800"}, "line 2: prompt holds a lone surrogate"),
        ({"prompt": "a", "seed": -1}, "line 2: seed -1 must be between 0"),
        ({"prompt": "a", "seed": 2**63}, "line 2: seed"),
        ({"prompt": "a", "seed": 1.5}, "line 2: seed 1.5 must be a whole number"),
        ({"prompt": "a", "seed": "x"}, "line 2: seed 'x' must be a whole number"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "line 2: guidance_scale nan"),
        ({"prompt": "a", "height": True}, "line 2: height"),
        ({"prompt": "a", "prompt_id": ""}, "line 2: prompt_id has 0 characters"),
        (["a"], "line 2: not a JSON object"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, row, sentence):
    file = written(tmp_path, "p.jsonl", jsonl({"prompt": "fine"}, row))
    with pytest.raises(PromptsError, match=sentence):
        read_prompts(file)


def test_many_bad_rows_are_named_together(tmp_path):
    file = written(tmp_path, "p.jsonl", jsonl(*[{"seed": 1}] * 9))
    with pytest.raises(PromptsError, match=r"line 1: no prompt; .*line 5: no prompt and 4 more"):
        read_prompts(file)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("p.txt", b"", "there is no prompt in it"),
        ("p.jsonl", b"\n\n", "there is no prompt in it"),
        ("p.txt", b"fine\n\xed\xa0\x80\n", "line 2: not UTF-8"),
        ("p.jsonl", b"{\n", "line 1: not JSON"),
        ("p.csv", b"prompt,seed\na\n", "line 2: 1 fields where the header has 2"),
        ("p.csv", b"prompt,prompt\na,b\n", "line 1: a column is named twice"),
        ("p.csv", b"prompt\nfine\n\xff\n", "line 3: not UTF-8 at byte 12"),
        ("p.csv", b'prompt,seed\n"two\nlines",1\na,b\n', "line 4: seed 'b' must be"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1: a column is named twice"),
        ("p.parquet", b"PAR1", "not a Parquet file"),
        ("p.parquet", SURROGATE, "not UTF-8, such as a lone surrogate"),
        ("p.doc", b"a", "ending must be one of .txt, .jsonl, .csv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, name, data, sentence):
    with pytest.raises(PromptsError, match=sentence):
        read_prompts(written(tmp_path, name, data))


def test_a_byte_order_mark_is_one_at_the_start_of_the_file_alone(tmp_path):
    file = written(tmp_path, "p.txt", "\ufeffone\n\ufefftwo\n")
    assert [prompt.prompt for prompt in read_prompts(file)] == ["one", "\ufefftwo"]


def test_rows_that_override_nothing_share_one_mapping(tmp_path):
    one, two = read_prompts(written(tmp_path, "p.txt", "one\ntwo\n"))
    assert one.overrides is two.overrides


@pytest.mark.parametrize(("seed", "kept"), [("7", 7), (" +7 ", 7), ("٣", None), ("1_0", None)])
def test_a_number_in_text_is_of_plain_digits(tmp_path, seed, kept):
    file = written(tmp_path, "p.csv", f"prompt,seed\na,{seed}\n")
    if kept is None:
        with pytest.raises(PromptsError, match="must be a whole number"):
            read_prompts(file)
    else:
        assert read_prompts(file)[0].seed == kept


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PromptsError, match=r"absent\.txt"):
        read_prompts(str(tmp_path / "absent.txt"))
