"""A prompts file from a stranger gives its rows, word for word, or the line that cannot be used."""

import csv
import decimal
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.work.prompts import COLUMNS, MAX_SEED, Prompt, PromptsError, read_prompts
from tests.support.hostile import ESCAPE, FUZZ, JSON, VALUES, assert_sentence, damaged

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
PROMPT = TEXT.filter(lambda text: bool(text.strip()))
NAMES = st.sampled_from([*COLUMNS, "surprise", "", "PROMPT", ESCAPE, "\ud800"])


def parquet(table: pa.Table, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Reads bytes as a prompts file of some ending."""
    folder = tmp_path_factory.mktemp("prompts")

    def run(ending: str, data: bytes) -> list[Prompt]:
        path = folder / f"p.{ending}"
        path.write_bytes(data)
        return read_prompts(str(path))

    return run


@pytest.fixture(scope="module")
def reads_or_refuses(read):
    def run(ending: str, data: bytes) -> None:
        try:
            prompts = read(ending, data)
        except PromptsError as error:
            prompts, said = [], str(error)
        else:
            said = None
        if said is not None:
            assert re.search(rf"p\.{ending}: (line \d+: |there is no prompt in it)", said)
            for sentence in said.split("; line "):
                assert sentence.isprintable()
                assert len(sentence) < 500
        for prompt in prompts:
            assert prompt.prompt.strip()
            f"{prompt.prompt}{prompt.prompt_id}".encode()
            assert prompt.seed is None or 0 <= prompt.seed <= MAX_SEED

    return run


@FUZZ
@given(st.sampled_from(["txt", "jsonl", "csv", "parquet"]), st.binary(max_size=200))
def test_any_bytes_in_any_kind_of_file(reads_or_refuses, ending, data):
    reads_or_refuses(ending, data)


@FUZZ
@given(st.text(st.sampled_from('",\r\n\x00a\ufeff;\x1b\u2028'), max_size=60))
def test_any_csv(reads_or_refuses, text):
    reads_or_refuses("csv", f"prompt,prompt_id\n{text}".encode())


@FUZZ
@given(st.lists(JSON | st.dictionaries(NAMES, JSON, max_size=3), max_size=5))
def test_any_json_in_the_lines(reads_or_refuses, rows):
    reads_or_refuses("jsonl", "\n".join(map(json.dumps, rows)).encode())


@FUZZ
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_value_in_any_column(reads_or_refuses, row):
    reads_or_refuses("jsonl", json.dumps({"prompt": "a", **row}).encode())


@FUZZ
@given(damaged(parquet(pa.table({"prompt": ["a", "b"], "seed": [1, 2]}))))
def test_a_damaged_parquet_file(reads_or_refuses, data):
    reads_or_refuses("parquet", data)


@FUZZ
@given(st.lists(PROMPT, min_size=1, max_size=5))
def test_texts_come_out_as_they_went_in(read, texts):
    rows = [{"prompt": text} for text in texts]
    table = io.StringIO(newline="")
    writer = csv.writer(table, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["prompt"], *([text] for text in texts)])
    files = {
        "jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "csv": table.getvalue().encode(),
        "parquet": parquet(pa.Table.from_pylist(rows)),
    }
    for ending, data in files.items():
        assert [prompt.prompt for prompt in read(ending, data)] == texts


@FUZZ
@given(st.lists(PROMPT.filter(lambda text: not re.search("[\r\n]", text)), min_size=1))
def test_lines_of_text_come_out_without_the_white_space_around_them(read, texts):
    found = read("txt", b"\xef\xbb\xbf" + "\n".join(texts).encode())
    assert [prompt.prompt for prompt in found] == [text.strip() for text in texts]


@pytest.mark.parametrize(
    ("ending", "data", "line"),
    [
        ("txt", b"fine\nlone \xed\xa0\x80\n", 2),
        ("jsonl", b'{"prompt": "fine"}\n{"prompt": "lone \\ud800"}\n', 2),
        ("jsonl", b'{"prompt": "fine"}\n{"prompt": "lone \xed\xa0\x80"}\n', 2),
        ("jsonl", b'{"prompt": "fine"}\n{"prompt": "a", "prompt_id": "\\udfff"}\n', 2),
        ("jsonl", b'{"prompt": "fine"}\n{"prompt": "a", "negative_prompt": "\\udfff"}\n', 2),
        ("csv", b"prompt\nfine\nlone \xed\xa0\x80\n", 3),
        (
            "parquet",
            parquet(
                pa.table(
                    {"prompt": pa.array([b"fine"] * 2000 + [b"\xed\xa0\x80"]).view(pa.string())}
                )
            ),
            2001,
        ),
    ],
)
def test_a_lone_surrogate_is_refused_at_its_line(read, ending, data, line):
    with pytest.raises(PromptsError, match=f": line {line}: ") as refusal:
        read(ending, data)
    assert_sentence(refusal.value)


HOSTILE_COLUMNS = {
    "prompt of numbers": {"prompt": pa.array([1, 2])},
    "prompt of bytes": {"prompt": pa.array([b"a", b"\xff"])},
    "prompt of structs": {"prompt": pa.array([{"prompt": {"prompt": "a"}}])},
    "prompt of lists": {"prompt": pa.array([["a"]])},
    "prompt of maps": {"prompt": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))},
    "prompt of nothing": {"prompt": pa.nulls(2)},
    "seed of bytes": {"prompt": ["a"], "seed": pa.array([b"7"])},
    "seed of decimals": {"prompt": ["a"], "seed": pa.array([decimal.Decimal("1.5")])},
    "seed of floats": {"prompt": ["a"], "seed": [1.5]},
    "seed of large floats": {"prompt": ["a"], "seed": [2.0**53]},
    "seed of single floats": {"prompt": ["a"], "seed": pa.array([2.0**24], pa.float32())},
    "seed of nan": {"prompt": ["a"], "seed": [float("nan")]},
    "extra of nul": {"prompt": ["a"], "b": ["\x00"]},
    "extra of no text": {"prompt": ["a"], "b": pa.array([b"\xff"]).view(pa.string())},
    "seed of booleans": {"prompt": ["a"], "seed": [True]},
    "seed of times": {"prompt": ["a"], "seed": pa.array([2**62], pa.timestamp("us"))},
    "seed of dates": {"prompt": ["a"], "seed": pa.array([2**31 - 1], pa.date32())},
    "seed of spans": {"prompt": ["a"], "seed": pa.array([2**62], pa.duration("us"))},
    "huge seed": {"prompt": ["a"], "seed": pa.array([2**64 - 1], pa.uint64())},
    "negative seed": {"prompt": ["a"], "seed": [-1]},
    "nan": {"prompt": ["a"], "guidance_scale": [float("nan")]},
    "id of a megabyte": {"prompt": ["a"], "prompt_id": ["x" * 2**20]},
    "a name of control characters": {"prompt": ["a"], ESCAPE: ["b"]},
    "too many others": {"prompt": ["a"], **{f"c{number}": ["b"] for number in range(10_000)}},
}


@pytest.mark.parametrize("name", sorted(HOSTILE_COLUMNS))
def test_parquet_columns_of_hostile_types_and_values(read, name):
    with pytest.raises(PromptsError, match=r": line \d+: ") as refusal:
        read("parquet", parquet(pa.table(HOSTILE_COLUMNS[name])))
    assert_sentence(refusal.value)


def test_a_parquet_column_given_twice_is_refused(read):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"])
    with pytest.raises(PromptsError, match="line 1: a column is named twice"):
        read("parquet", parquet(table))


def test_a_dictionary_of_prompts_is_text_like_any_other(read):
    table = pa.table({"prompt": pa.array(["a", "b", "a"]).dictionary_encode()})
    for compression in ("gzip", "zstd", "none"):
        found = read("parquet", parquet(table, compression=compression))
        assert [prompt.prompt for prompt in found] == ["a", "b", "a"]


def test_a_hundred_thousand_columns_are_refused(read):
    names = ",".join(f"column {number}" for number in range(100_000))
    row = json.dumps({"prompt": "a"} | {f"column {number}": "a" for number in range(100_000)})
    for ending, text in (("csv", f"prompt,{names}\n" + "a" + "," * 100_000), ("jsonl", row)):
        with pytest.raises(PromptsError, match="line 1: 100000 columns beside those") as refusal:
            read(ending, text.encode())
        assert_sentence(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompt,prompt\na,b\n", "line 1: a column is named twice"),
        ("prompt,seed\na,1,2\n", "line 2: 3 fields where the header has 2"),
        ("prompt,seed\na,1.5\n", "line 2: seed '1.5' must be a whole number"),
        ("prompt,seed\na,True\n", "line 2: seed 'True' must be a whole number"),
        ("prompt,seed\na," + "9" * 5000 + "\n", "line 2: seed '9+... must be a whole number"),
        ("prompt,seed\na," + "9" * 4000 + "\n", "line 2: seed 9+... must be between"),
        ('prompt,seed\na,"\x1b[2J\u202e"\n', "line 2: seed '.x1b"),
        ('prompt,"\x1b[2J\u202e"\na,b\n', "line 1: the column name '.x1b"),
        (f'prompt\n"{ESCAPE}"\n', "line 3: a NUL character"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said_with_its_line(read, text, sentence):
    with pytest.raises(PromptsError, match=sentence) as refusal:
        read("csv", text.encode())
    assert_sentence(refusal.value)


def test_a_prompt_of_8_megabytes_and_any_control_character_is_a_prompt(read):
    odd = "".join(map(chr, range(1, 0x300))) + "\u202e\ufeff" + "x" * 8_000_000
    (found,) = read("jsonl", json.dumps({"prompt": odd}).encode())
    assert found.prompt == odd


def test_an_id_that_looks_like_a_path_is_only_text(read):
    (found,) = read("jsonl", b'{"prompt": "a", "prompt_id": "../../etc/passwd"}')
    assert found.prompt_id == "../../etc/passwd"
