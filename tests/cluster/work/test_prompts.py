"""Prompts files of every kind, and what is said of the rows that cannot be used."""

import datetime
import decimal
import gzip
import json
import os
import uuid

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


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


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
    a, b = read_prompts(written(tmp_path, "p.txt", "one\ntwo\n"))
    (again,) = read_prompts(written(tmp_path, "q.jsonl", jsonl({"prompt": "one"})))
    assert a.prompt_id == again.prompt_id != b.prompt_id


@pytest.mark.parametrize("name", ["p.txt", "p.csv"])
def test_a_repeated_line_is_another_video_and_those_before_it_keep_their_ids(tmp_path, name):
    header = "prompt\n" if name == "p.csv" else ""
    once = read_prompts(written(tmp_path, name, f"{header}one\ntwo\n"))
    rows = read_prompts(written(tmp_path, name, f"{header}one\ntwo\none\none\n"))
    assert rows[:2] == once
    assert len({row.prompt_id for row in rows}) == 4
    assert [row.repetition for row in rows] == [0, 0, 1, 2]


def test_rows_with_an_id_or_a_seed_of_their_own_repeat_as_they_are(tmp_path):
    rows = [{"prompt": "a", "seed": 1}] * 2 + [{"prompt": "a", "prompt_id": "x"}] * 2
    found = read_prompts(written(tmp_path, "p.jsonl", jsonl(*rows)))
    assert found[0].prompt_id == found[1].prompt_id
    assert [row.repetition for row in found] == [0] * 4


def test_a_prompt_without_a_seed_gets_a_stable_one_from_its_id():
    assert stable_seed("one") == stable_seed("one")
    assert len({stable_seed("one", 0), stable_seed("one", 1), stable_seed("two", 0)}) == 3
    assert all(0 <= stable_seed(str(n)) < 2**31 for n in range(100))


def test_odd_but_valid_text_is_kept_as_it_is(tmp_path):
    odd = ["escape \x1b[31m", "مرحبا بالعالم", "x" * 8_000_000, "emoji 🎬"]
    file = written(tmp_path, "p.jsonl", jsonl(*({"prompt": text} for text in odd)))
    assert [prompt.prompt for prompt in read_prompts(file)] == odd


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt_id": "x"}, "line 2: no prompt"),
        ({"prompt": "   "}, "line 2: no prompt"),
        ({"prompt": 5}, "line 2: prompt must be text"),
        ({"prompt": "a", "Prompt ID": "x"}, "line 2: the column 'Prompt ID' is none of a prompt's"),
        ({"prompt": "a \x00"}, "line 2: prompt holds a NUL character"),
        ({"prompt": "a", "note": {"x": ["\x00"]}}, "line 2: column 'note' holds a NUL character"),
        ({"prompt": "a", "note": "\ud800"}, "line 2: column 'note' cannot hold"),
        ({"prompt": "a", "note": 2**70}, "line 2: column 'note' cannot hold"),
        ({"prompt": "a", "seed": 1e300}, "line 2: seed 1e.300 is a float too large to be exact"),
        ({"prompt": "a", "seed": 2.0**53}, "line 2: seed 9007199254740992.0 is a float too large"),
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
        ("p.doc", b"a", "ending must be one of .txt, .jsonl, .ndjson, .csv, .tsv, .parquet"),
        ("p.gz", b"a", "ending must be one of .txt"),
        ("p.txt.gz", b"a", r"not a whole .gz file"),
        ("p.txt.gz", gzip.compress(b"a red circle", mtime=0)[:-5], r"not a whole .gz file"),
        ("p.txt.zst", zst(b"a red circle")[:-5], r"not a whole .zst file"),
        ("p.txt", "a red circle".encode("utf-16-le"), "line 1: a NUL character, as in UTF-16"),
        ("p.csv", "prompt\na\n".encode("utf-16-be"), "line 1: a NUL character, as in UTF-16"),
        ("p.jsonl", '{"prompt": "a"}'.encode("utf-32-le"), "line 1: a NUL character"),
        ("p.txt", "fine\n猫が走る".encode("shift-jis"), "line 2: not UTF-8 at byte"),
        ("p.txt", "fine\n猫が走る".encode("iso2022_jp"), "line 2: an escape sequence of ISO-2022"),
        ("p.txt", b"one\rtwo\nthree\n", "line 1: a carriage return within a line"),
        ("p.csv", b"prompt;seed\na;1\n", "but 'prompt;seed'; separate columns by commas"),
        ("p.tsv", b"prompt,seed\na,1\n", r"separate columns by commas \(tabs in a .tsv\)"),
        ("p.csv", b"text,seed\na,1\n", "no column 'prompt', .*give --prompt-column text"),
        ("p.csv", b"id,Long_Caption\n1,a\n", "give --prompt-column Long_Caption"),
        ("p.jsonl", b'{"prompt": "a"}\n{"caption": "b"}\n', "line 2: no .*--prompt-column caption"),
        ("p.jsonl", b'{"prompt": "a", "x": 1e400}', "line 1: the number '1e400' is too large"),
        ("p.jsonl", b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}", "line 1: a number of more dig"),
        ("p.jsonl", b"[" * 100_000, "line 1: nested too deep"),
        ("p.csv", b"prompt,note\na\\, b\n", "line 2: a backslash before ','"),
        ("p.txt", "\ufeffa\n".encode("utf-32-le"), "line 1: UTF-32"),
        ("p.txt", b'{"prompt": "a"}\n', "line 1: looks like .jsonl"),
        ("p.txt", b"prompt,seed\na,1\n", "line 1: looks like .csv"),
        (
            "p.csv",
            gzip.compress(b"prompt\na\n", mtime=0),
            "but a gzip file; give it a name with .gz",
        ),
        ("p.jsonl", SURROGATE, "line 1: not text, but a Parquet file"),
        ("p.csv", b"PK\x03\x04\x14\0", "a zip archive or a spreadsheet; unpack it"),
        ("p.csv", b"a red circle\na blue square\n", "line 1: no column 'prompt', but"),
        ("p.csv", b"prompt, seed\na,1\n", "line 1: the column ' seed' is none of a prompt's"),
        ("p.csv", b"PROMPT\na\n", "line 1: the column 'PROMPT' is none .* is it 'prompt'"),
        ("p.csv", b'prompt\na "red" circle\n', "line 2: not CSV .a quote in a field that does"),
        ("p.csv", b'prompt,seed\n "a, b",1\n', "line 2: not CSV .a quote in a field that does"),
        ("p.csv", b'prompt,seed\n"a" ,1\n', "line 2: not CSV .a quote in a quoted field"),
        ("p.csv", b'prompt\nfine\n"a\nb\n', "line 3: not CSV .a quote that is never closed"),
        ("p.csv", b"prompt\nfine\na\rb\n", "line 3: not CSV .a carriage return"),
        ("p.csv", b'prompt,seed\n"a \\"b\\", c",1\n"d",2\n', "line 2: not CSV"),
        ("p.tsv", b"prompt\nfine\na\\tb\n", "line 3: a backslash escape"),
        ("p.csv", b"prompt,seed\na,9007199254740993.0\n", "line 2: seed .* too large to be exact"),
        ("p.csv", b"prompt,seed\na,1e400000000\n", "line 2: seed .* must be a whole number"),
        ("p.jsonl", b'[{"prompt": "a"}]', "line 1: not a JSON object"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, name, data, sentence):
    with pytest.raises(PromptsError, match=sentence):
        read_prompts(written(tmp_path, name, data))


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_integers_that_became_floats_or_decimals_are_taken_where_they_are_whole(tmp_path):
    for seeds in (
        pa.array([7.0, None]),
        pa.array([7.0, None], pa.float32()),
        pa.array([decimal.Decimal("7.00"), None]),
        pa.array([7, None], pa.uint64()),
    ):
        columns = {"prompt": pa.array(["a", "b"], pa.large_string()), "seed": seeds}
        file = written(tmp_path, "p.parquet", parquet(pa.table({**columns, "prompt_id": seeds})))
        first, second = read_prompts(file)
        assert (first.seed, first.prompt_id) == (7, "7")
        assert second.seed is None
    for name, text in [
        ("p.csv", "prompt,seed\na,7.0\nb,\n"),
        ("p.csv", "prompt,seed\na,7.0\nb,NaN\n"),
        ("p.csv", 'prompt,seed\n"a","7"\n"b",""\n'),
        ("p.jsonl", '{"prompt":"a","seed":7.0}\n{"prompt":"b","seed":null}\n'),
    ]:
        assert [prompt.seed for prompt in read_prompts(written(tmp_path, name, text))] == [7, None]


def test_ids_may_be_uuids(tmp_path):
    one = uuid.UUID("00000000-0000-0000-0000-00000000002a")
    table = pa.table({"prompt": ["a"], "prompt_id": pa.array([one.bytes], pa.uuid())})
    (prompt,) = read_prompts(written(tmp_path, "p.parquet", parquet(table)))
    assert prompt.prompt_id == str(one)


def test_other_columns_keep_their_types(tmp_path):
    when = datetime.datetime(2026, 1, 31, 12, 0, 0, 1, datetime.UTC)
    kept = {
        "rank": pa.array([1], pa.int8()),
        "when": pa.array([when], pa.timestamp("us", tz="UTC")),
        "cost": pa.array([decimal.Decimal("1.50")]),
        "tags": pa.array([["a", "b"]]),
        "box": pa.array([{"x": 1, "y": None}], pa.struct([("x", pa.int32()), ("y", pa.string())])),
        "data": pa.array([b"\xff"]),
    }
    changed = {
        "kind": (pa.array(["x"]).dictionary_encode(), pa.string()),
        "long": (pa.array(["x"], pa.large_string()), pa.string()),
        "id": (pa.array([b"\0" * 16], pa.uuid()), pa.string()),
        "none": (pa.nulls(1), pa.string()),
        "map": (
            pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            pa.list_(pa.struct([("key", pa.string()), ("value", pa.int64())])),
        ),
    }
    table = pa.table({"prompt": ["a"], **kept, **{name: one for name, (one, _) in changed.items()}})
    extra = read_prompts(written(tmp_path, "p.parquet", parquet(table))).extra
    for name, array in kept.items():
        assert extra[name].combine_chunks().equals(array)
    for name, (_, kind) in changed.items():
        assert extra.schema.field(name).type == kind
    assert extra["id"][0].as_py() == "00000000-0000-0000-0000-000000000000"
    assert extra["map"][0].as_py() == [{"key": "a", "value": 1}]


def test_values_of_json_are_typed_by_all_rows_and_text_of_a_csv_is_text(tmp_path):
    rows = [{"prompt": "a"}] * 2000 + [{"prompt": "a", "rank": 1}, {"prompt": "a", "rank": 0.5}]
    extra = read_prompts(written(tmp_path, "p.jsonl", jsonl(*rows))).extra
    assert extra["rank"].to_pylist() == [None] * 2000 + [1.0, 0.5]
    extra = read_prompts(written(tmp_path, "p.csv", 'prompt,zip,no\na,007,\nb,"",\n')).extra
    assert extra.to_pylist() == [{"zip": "007", "no": None}, {"zip": "", "no": None}]


def test_a_column_of_two_kinds_is_refused(tmp_path):
    near = jsonl({"prompt": "a", "x": 1}, {"prompt": "a", "x": "one"})
    with pytest.raises(PromptsError, match="line 2: column 'x' holds 'one', of another kind"):
        read_prompts(written(tmp_path, "p.jsonl", near))
    far = jsonl(*[{"prompt": "a", "x": 1}] * 2048, {"prompt": "a", "x": "one"})
    with pytest.raises(PromptsError, match=r"column 'x' is int64 in line 1 and .* in line 2049"):
        read_prompts(written(tmp_path, "p.jsonl", far))


def test_an_index_of_pandas_is_carried_along(tmp_path):
    extra = read_prompts(written(tmp_path, "p.csv", ",prompt\n5,a\n")).extra
    assert extra.to_pylist() == [{"column_1": "5"}]
    table = pa.table({"prompt": ["a"], "__index_level_0__": [5]})
    extra = read_prompts(written(tmp_path, "p.parquet", parquet(table))).extra
    assert extra.to_pylist() == [{"__index_level_0__": 5}]


def test_another_column_may_hold_the_prompts(tmp_path):
    file = written(tmp_path, "p.csv", "caption,prompt,seed\na,b,1\n")
    prompts = read_prompts(file, "caption")
    assert [(prompt.prompt, prompt.seed) for prompt in prompts] == [("a", 1)]
    assert prompts.extra.to_pylist() == [{"prompt": "b"}]
    text = written(tmp_path, "p.txt", "a\n")
    assert [prompt.prompt for prompt in read_prompts(text, "caption")] == ["a"]


def test_text_in_utf_16_with_a_mark_is_read(tmp_path):
    for encoding in ("utf-16", "utf-8-sig"):
        file = written(tmp_path, "p.txt", "a red circle\r\né\r\n".encode(encoding))
        assert [prompt.prompt for prompt in read_prompts(file)] == ["a red circle", "é"]


@pytest.mark.parametrize("where", ["{}", "{}/*.csv*", "{}/../many/**/*.csv*"])
def test_a_folder_or_a_glob_is_its_files_by_name(tmp_path, where):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "b.csv.gz").write_bytes(gzip.compress(b"prompt,n\nb,1\n", mtime=0))
    (folder / "a.csv").write_bytes(b"prompt,m\na,1\n")
    (folder / "c.csv.zst").write_bytes(zst(b"prompt\nc\n"))
    (folder / "_SUCCESS").touch()
    (folder / ".a.csv.crc").touch()
    prompts = read_prompts(where.format(folder))
    assert [prompt.prompt for prompt in prompts] == ["a", "b", "c"]
    assert prompts.extra.to_pylist() == [
        {"m": "1", "n": None}, {"m": None, "n": "1"}, {"m": None, "n": None},
    ]  # fmt: skip


def test_what_is_in_a_folder_and_no_prompts_is_said(tmp_path):
    with pytest.raises(PromptsError, match="no file is in it"):
        read_prompts(str(tmp_path))
    with pytest.raises(PromptsError, match="no file matches it"):
        read_prompts(str(tmp_path / "*.csv"))
    (tmp_path / "a.csv").write_bytes(b"prompt\n \n")
    with pytest.raises(PromptsError, match=r"a\.csv line 2: no prompt"):
        read_prompts(str(tmp_path))
    (tmp_path / "README.md").touch()
    with pytest.raises(PromptsError, match=r"README.md: the file's ending must be one of"):
        read_prompts(str(tmp_path))
    (tmp_path / "README.md").unlink()
    (tmp_path / "more").mkdir()
    with pytest.raises(PromptsError, match="holds the folder more; give a glob"):
        read_prompts(str(tmp_path))


CASES = {
    "pandas_float.csv": (b"prompt,seed\na red circle,1.0\na blue square,\n", [1, None]),
    "pandas_float.jsonl": (
        b'{"prompt":"a red circle","seed":1.0}\n{"prompt":"a blue square","seed":null}\n',
        [1, None],
    ),
    "quotes_inside.csv": (
        b'prompt\n"red" circle moving left\na blue square moving up\n',
        r"line 2: not CSV .a quote in a quoted field that is not doubled",
    ),
    "spark_escape.csv": (
        b'prompt,seed\n"a \\"red\\" circle, moving left",1\n"a blue square",2\n',
        r"line 2: not CSV .a quote in a quoted field that is not doubled",
    ),
    "unclosed.csv": (
        b'prompt\n"a red circle moving left\na blue square moving up\n',
        r"line 2: not CSV .a quote that is never closed",
    ),
    "nul.txt": (b"a red\x00 circle\n", "line 1: a NUL character"),
    "utf16le_nobom.txt": (
        "a red circle\r\na blue square\r\n".encode("utf-16-le"),
        "line 1: a NUL character, as in UTF-16 without a mark",
    ),
    "same_prompt_seed.jsonl": (
        b'{"prompt_id":"a","prompt":"a red circle","seed":42}\n'
        b'{"prompt_id":"b","prompt":"a red circle","seed":42}\n',
        [42, 42],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_files_that_people_have_reported(tmp_path, name):
    data, expected = CASES[name]
    file = written(tmp_path, name, data)
    if isinstance(expected, str):
        with pytest.raises(PromptsError, match=expected):
            read_prompts(file)
    else:
        assert [prompt.seed for prompt in read_prompts(file)] == expected


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


def test_text_that_begins_like_a_file_of_another_kind_is_text(tmp_path):
    rows = read_prompts(written(tmp_path, "p.txt", "PAR1 is a word\nBZh\nprompt, seed and soil\n"))
    assert [row.prompt for row in rows] == ["PAR1 is a word", "BZh", "prompt, seed and soil"]


def test_a_seed_that_is_not_a_number_is_said_to_be_none(tmp_path):
    file = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "seed": [7.0, float("nan")]}), file)
    with pytest.raises(PromptsError, match="line 2: seed nan must be a whole number"):
        read_prompts(str(file))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    for given in (tmp_path / "p.txt", tmp_path):
        with pytest.raises(PromptsError, match="a pipe or a device, not a file"):
            read_prompts(str(given))


def test_a_folder_or_a_glob_names_the_file_that_is_not_read(tmp_path):
    written(tmp_path, "a.csv", "prompt\na\n")
    written(tmp_path, "_SUCCESS", "")
    assert len(read_prompts(f"{tmp_path}/*")) == 1
    written(tmp_path, "README.md", "")
    for given in (str(tmp_path), f"{tmp_path}/*"):
        with pytest.raises(PromptsError) as raised:
            read_prompts(given)
        assert f"prompts {given}: README.md: the file's ending must be" in str(raised.value)
        assert f"leave others out by a glob, {tmp_path}/*.csv" in str(raised.value)
