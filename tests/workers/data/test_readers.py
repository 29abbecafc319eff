"""Records out of files: every bad one has its kind and its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft.workers.common.text import printable
from deft.workers.data import readers
from deft.workers.data.readers import BadRecord, BadRecordLog, Record, read_records

GOOD = b'{"prompt": "a", "response": "b"}'


def read(path: Path, *columns: str) -> list[Record | BadRecord]:
    return list(read_records(path, path.name, columns))


def written(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        (b"{", "broken JSON", "not a line of JSON: Expecting property name"),
        (b'{"prompt": "a"} {}', "broken JSON", "Extra data at column 17"),
        (b"[" * 100_000, "broken JSON", "nested too deeply"),
        (b'{"prompt": "\xff"}', "invalid UTF-8", "at byte 13"),
        (b'["a", "b"]', "wrong type", "expected a JSON object, got list"),
        (b'{"a": 1, "a": 2}', "repeated key", "key 'a' is given twice"),
        (b'{"x": [{"a": 1, "a": 2}]}', "repeated key", "key 'a' is given twice"),
        (b"\xef\xbb\xbf" + GOOD, "broken JSON", "Expecting value at column 1"),
    ],
)
def test_bad_lines_have_kind_and_number(
    tmp_path: Path, line: bytes, kind: str, expected: str
) -> None:
    file = written(tmp_path, "data.jsonl", GOOD + b"\n\n" + line + b"\n" + GOOD)
    first, bad, last = read(file)
    assert first == Record("data.jsonl:1", {"prompt": "a", "response": "b"})
    assert last == Record("data.jsonl:4", {"prompt": "a", "response": "b"})
    assert isinstance(bad, BadRecord)
    assert (bad.where, bad.kind) == ("data.jsonl:3", kind)
    assert expected in bad.message


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "array.json", "data.csv"])
def test_byte_order_mark_at_the_start_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    content = {
        "data.jsonl": '{"prompt": "é"}',
        "data.json": '{"prompt": "é"}',
        "array.json": '[{"prompt": "é"}]',
        "data.csv": "prompt\né",
    }[name]
    (record,) = read(written(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))
    assert isinstance(record, Record)
    assert record.fields == {"prompt": "é"}


def test_elements_of_an_array_have_the_lines_they_start_on(tmp_path: Path) -> None:
    content = b'\n[\n {"a": "x"},\n\n {"a":\n "\xff"}, 3,\n {"a": "z"}\n]\n'
    x, broken, number, z = read(written(tmp_path, "a.json", content))
    assert x == Record("a.json:3", {"a": "x"})
    assert isinstance(broken, BadRecord)
    assert isinstance(number, BadRecord)
    assert (broken.where, broken.kind) == ("a.json:5", "invalid UTF-8")
    assert (number.where, number.kind) == ("a.json:6", "wrong type")
    assert z == Record("a.json:7", {"a": "z"})


def test_array_that_breaks_off_is_named_by_line(tmp_path: Path) -> None:
    good, bad = read(written(tmp_path, "a.json", b'[{"a": "x"},\n{"a": }\n, {"a": "z"}]'))
    assert isinstance(good, Record)
    assert isinstance(bad, BadRecord)
    assert (bad.where, bad.kind) == ("a.json:2", "broken JSON")


def test_csv_values_stay_texts_and_quoted_lines_are_counted(tmp_path: Path) -> None:
    content = b'prompt,response\n"two\nlines",007\nNA,1.0\nonly one\n"x"y,2\n\xff,3\n\nlast,null\n'
    items = read(written(tmp_path, "a.csv", content))
    records = [item for item in items if isinstance(item, Record)]
    assert [(record.where, *record.fields.values()) for record in records] == [
        ("a.csv:2", "two\nlines", "007"),
        ("a.csv:4", "NA", "1.0"),
        ("a.csv:9", "last", "null"),
    ]
    bad = [item for item in items if isinstance(item, BadRecord)]
    assert [(item.where, item.kind) for item in bad] == [
        ("a.csv:5", "broken CSV"),
        ("a.csv:6", "broken CSV"),
        ("a.csv:7", "invalid UTF-8"),
    ]
    assert bad[0].message == "expected 2 values as in the header, got 1"


def test_csv_needs_a_header_of_distinct_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.csv:1: expected a header line"):
        read(written(tmp_path, "a.csv", b"x,x\n1,2\n"))


def test_parquet_rows_are_numbered_and_structs_kept(tmp_path: Path) -> None:
    rows = [{"extra_info": {"question": str(n), "answer": "y"}, "other": n} for n in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    records = read(tmp_path / "a.parquet", "extra_info")
    assert records[2345] == Record(
        "a.parquet: row 2346", {"extra_info": {"question": "2345", "answer": "y"}}
    )
    # A column that is not there is reported by the record, with all that there are.
    missing = read(tmp_path / "a.parquet", "extra_inf")[0]
    assert isinstance(missing, Record)
    assert set(missing.fields) == {"extra_info", "other"}


def test_parquet_text_that_is_no_utf8_is_one_bad_row(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"prompt": column}), tmp_path / "a.parquet")
    first, bad, last = read(tmp_path / "a.parquet")
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(bad, BadRecord)
    assert (bad.where, bad.kind) == ("a.parquet: row 2", "invalid UTF-8")


def test_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.parquet: not a Parquet file"):
        read(written(tmp_path, "a.parquet", b"prompt,response"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_files_that_unpack_without_measure_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    allowed = readers.UNPACKED_ANYWAY
    monkeypatch.setattr(readers, "UNPACKED_ANYWAY", 2**16)
    text = "a" * 2**20
    if name == "a.parquet":
        pq.write_table(pa.table({"prompt": [text]}), tmp_path / name, compression="zstd")
    else:
        with gzip.open(tmp_path / name, "wt") as file:
            json.dump({"prompt": text}, file)
    with pytest.raises(ValueError, match=rf"{name}: unpacks to more than 200 times its size; "):
        read(tmp_path / name)
    fault(
        f"a data file ({name}) unpacks to more than {allowed // 2**20} MiB and 200 times its size",
        "it is refused and named, before it is unpacked any further",
        seconds="it is mended",
    )


def test_a_value_that_many_rows_share_is_not_held_for_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the value once, in its dictionary, and is no larger unpacked."""
    monkeypatch.setattr(readers, "MAX_BATCH_BYTES", 2**20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000), pa.array(["a" * 2**16]))
    pq.write_table(pa.table({"prompt": column.cast(pa.string())}), tmp_path / "a.parquet")
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    default = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        num_rows = sum(1 for _ in read_records(tmp_path / "a.parquet", "a.parquet", ()))
    finally:
        pa.set_memory_pool(default)
    assert num_rows == 1000
    assert pool.max_memory() < 2**24


def test_tally_names_the_first_of_each_kind_and_counts_the_rest() -> None:
    tally = BadRecordLog()
    for number in range(5):
        tally.add(BadRecord(f"a:{number}", "empty text", "is empty"))
    tally.add(BadRecord("a:9", "wrong type", "is a list"))
    assert tally.message("data", "Mend it.") == (
        "data: 6 bad records (5 empty text, 1 wrong type)\n"
        "  a:0: is empty\n  a:1: is empty\n  a:2: is empty\n  a:9: is a list\n"
        "  and 2 more\nMend it."
    )


def test_nothing_in_the_data_acts_on_the_terminal() -> None:
    assert printable("a\nb é 日本") == "a\nb é 日本"
    assert printable("\x1b[31m\x07\r\t\u202e\u200b\x9b") == (
        "\\x1b[31m\\x07\\r\\t\\u202e\\u200b\\x9b"
    )
    tally = BadRecordLog()
    tally.add(BadRecord("a:1", "missing field", "There are: \x1b[2J."))
    assert "\x1b" not in tally.message("data", "")
