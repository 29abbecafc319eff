"""Data files out of any bytes: examples and bad records with their places, or one message."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deft.workers.common.example import Example
from deft.workers.data.datasets import read_examples
from deft.workers.data.readers import BadRecord, BadRecordLog
from deft.workers.dataset_spec import ColumnsSpec, DatasetSpec

GOOD = {
    "data.jsonl": '{"prompt": "1 + 1", "response": "2"}\n{"prompt": "é", "response": "\\u00e9"}\n',
    "data.json": '[{"prompt": "1 + 1", "response": "2"},\n {"prompt": "é", "response": "3"}]',
    "data.csv": 'prompt,response\n"1\n+ 1",2\n"""é""",3\n',
}
FRAGMENTS = [
    *("", "\n", "\r", "\r\n", "\0", "\x1b[2J", "\ufeff", "\u2028", "\x85", ",", '"', "'", "\\"),
    *("\\ud800", "\\u0000", "{", "}", "[", "]", ":", "null", "NaN", "1e999", "9" * 5000),
    *("[" * 2000, '{"a":' * 2000, "]" * 2000, '{"prompt": ' + "[" * 900 + "]" * 900 + "}"),
    *('"prompt": "again", ', '{"messages": [{"role": "user", "content": []}]}', '{"": ""}', "{}"),
    '{"messages": [{"role": "a\\u0000", "content": "b"}, {"role": "assistant", "content": "c"}]}',
]
per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def contents(name: str) -> st.SearchStrategy[bytes]:
    """Damage a good file: some of it cut out and replaced, or any bytes at all."""
    text = GOOD[name]
    new = st.sampled_from(FRAGMENTS) | st.text() | st.sampled_from(text.splitlines(keepends=True))
    cut = st.tuples(st.integers(0, len(text)), st.integers(0, 30), new)

    def apply(cuts: list[tuple[int, int, str]], noise: bytes) -> bytes:
        edited = text
        for start, length, put in cuts:
            edited = edited[:start] + put + edited[start + length :]
        middle = len(edited) // 2
        return edited[:middle].encode() + noise + edited[middle:].encode()

    edits = st.builds(apply, st.lists(cut, min_size=1, max_size=4), st.binary(max_size=4))
    return edits | st.binary(max_size=200)


def read_all(file: Path, **settings: object) -> tuple[list[Example], list[BadRecord]]:
    """Everything in a file, each with a place; what is said can be written and shown."""
    spec = DatasetSpec.model_validate({"name": str(file), **settings})
    items = list(read_examples(spec))
    examples = [item for item in items if isinstance(item, Example)]
    bad = [item for item in items if isinstance(item, BadRecord)]
    tally = BadRecordLog((file.parent / "bad_records.jsonl").open("w", encoding="utf-8"))
    for item in bad:
        assert item.where.startswith(file.name)
        tally.add(item)
    said = tally.message(file.name, "Mend it.")
    said.encode()
    assert "\x1b" not in said
    for item in examples:
        assert item.id.startswith(file.name)
        for text in (item.response, *(m[key] for m in item.prompt for key in ("role", "content"))):
            assert text.strip()
            text.encode()
    return examples, bad


def require_said(error: ValueError, beginning: str) -> None:
    """One message that can be written and shown."""
    said = str(error)
    said.encode()
    assert said.startswith(beginning)
    assert "\x1b" not in said


@pytest.mark.parametrize("name", GOOD)
def test_what_is_edited_is_good_before(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(GOOD[name], encoding="utf-8")
    examples, bad = read_all(tmp_path / name)
    assert (len(examples), bad) == (2, [])


@per_example
@given(content=contents("data.jsonl"))
@example(content=b'{"prompt": ' + b"[" * 980 + b"]" * 980 + b', "response": "a"}')
@example(content=b'{"prompt": "\\ud800", "response": "a"}')
@example(content=b'{"prompt": ' + b"9" * 5000 + b"}")
@example(content=b'{"prompt": 1e999, "response": NaN}')
def test_json_lines(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    read_all(tmp_path / "data.jsonl")
    read_all(tmp_path / "data.jsonl", columns={"messages": "messages"})


def test_any_depth_is_a_bad_record(tmp_path: Path) -> None:
    depths = range(100, 1100, 7)  # Python's limits lie in between
    lines = [f'{{"prompt": {"[" * n}{"]" * n}, "response": "a"}}' for n in depths]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    examples, bad = read_all(tmp_path / "data.jsonl")
    assert (len(examples), len(bad)) == (0, len(depths))
    assert {item.kind for item in bad} == {"wrong type", "broken JSON"}


@per_example
@given(content=contents("data.json"))
@example(content=b"[" * 100_000)
@example(content=b"[,,,]")
@example(content=b"[")
@example(content=b"")
def test_json_arrays(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(content)
    read_all(tmp_path / "data.json")


@per_example
@given(content=contents("data.csv"))
@example(content=b'"a"b,c\n1,2\n')
@example(content=b'prompt,response\n"never closed,2\n3,4')
@example(content=b"prompt,\xff\n1,2\n")
@example(content=b"prompt,response\0\n1,2\n")
@example(content=b"\x1b[2J,\x1b[2J\n")
def test_csv(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(content)
    try:
        read_all(tmp_path / "data.csv")
    except ValueError as error:  # the header
        require_said(error, f"{tmp_path / 'data.csv'}:1: ")


@per_example
@given(position=st.integers(0, 10_000), bytes_put=st.binary(min_size=1, max_size=8))
def test_parquet(position: int, bytes_put: bytes, tmp_path: Path) -> None:
    file = tmp_path / "data.parquet"
    rows = [{"prompt": f"{n} + 1", "response": str(n + 1)} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    content = file.read_bytes()
    start = position % len(content)
    file.write_bytes(content[:start] + bytes_put + content[start + len(bytes_put) :])
    try:
        read_all(file)
    except ValueError as error:
        require_said(error, f"{file}: not a Parquet file, or damaged: ")


@per_example
@given(
    column=st.text(min_size=1, max_size=5) | st.sampled_from(["a.b", ".", "..", "extra_info.x"]),
    record=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=10,
    ),
)
def test_any_column_of_any_record(column: str, record: object, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    line = json.dumps({"a": record, "extra_info": record, "response": "b"})
    file.write_text(line, encoding="utf-8")
    columns = ColumnsSpec(prompt=column, response="response")
    examples, bad = read_all(file, columns=columns.model_dump())
    assert len(examples) + len(bad) == 1
