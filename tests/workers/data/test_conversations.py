"""Records as people have them: each kind is read without a word about its columns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft.workers.common.example import REASONING_KEYS, Example
from deft.workers.data.datasets import ReadingNotes, describe_notes, read_examples
from deft.workers.data.example_store import iterate_examples, open_tables, write_examples
from deft.workers.data.readers import BadRecord
from deft.workers.dataset_spec import DatasetSpec

QUESTION = {"role": "user", "content": "6*7?"}
ANSWER = {"role": "assistant", "content": "42"}
CALL = {"type": "function", "id": "c1", "function": {"name": "get", "arguments": {"x": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "get", "description": "d"}}
EXPECTED = Example("data.jsonl:1", (QUESTION,), "42")


def read(folder: Path, *records: Any, **spec: Any) -> tuple[list[Example | BadRecord], str]:
    """Read records; return their examples and what is said of their fields."""
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    notes = ReadingNotes()
    spec = {"name": str(file), **spec}
    return list(read_examples(DatasetSpec.model_validate(spec), notes)), describe_notes(notes)


def read_one(folder: Path, record: Any, **spec: Any) -> Example:
    """Return the example in a record, every field of which is read."""
    (example,), said = read(folder, record, **spec)
    assert isinstance(example, Example), example
    assert said == ""
    return example


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "6*7?", "response": "42"},
        {"prompt": "6*7?", "completion": "42"},
        {"instruction": "6*7?", "output": "42"},
        {"instruction": "6*7?", "input": "", "output": "42"},
        {"instruction": "6*7?", "response": "42"},
        {"messages": [QUESTION, ANSWER]},
        {"conversations": [{"from": "human", "value": "6*7?"}, {"from": "gpt", "value": "42"}]},
        {"conversation": [QUESTION, ANSWER]},
        {"messages": json.dumps([QUESTION, ANSWER])},
        {"messages": [{"role": "User", "content": "6*7?"}, {"role": "model", "content": "42"}]},
        {"messages": [{"role": "human", "content": "6*7?"}, ANSWER]},
        {"messages": [{**QUESTION, "content": [{"type": "text", "text": "6*7?"}]}, ANSWER]},
        {"messages": [{**QUESTION, "content": ["6*", {"text": "7?"}]}, ANSWER]},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": [QUESTION], "response": "42"},
        {"messages": [{"role": "system", "content": ""}, QUESTION, ANSWER]},
        {"messages": [{"role": "system", "content": None}, QUESTION, ANSWER]},
        {"system": " ", "prompt": "6*7?", "response": "42"},
        {"system": None, "prompt": "6*7?", "response": "42", "tools": None, "weight": 1},
        {"messages": [QUESTION, {**ANSWER, "weight": 1, "train": True, "tool_calls": []}]},
    ],
)
def test_usual_records_are_read_without_a_mapping(tmp_path: Path, record: Any) -> None:
    assert read_one(tmp_path, record) == EXPECTED


def test_input_follows_the_instruction_and_system_columns_have_two_names(tmp_path: Path) -> None:
    for key in ("input", "context"):
        record = {"instruction": "Add.", key: "1 1", "output": "2", "system_prompt": "Be brief."}
        example = read_one(tmp_path, record)
        assert example.prompt == (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add.\n\n1 1"},
        )


def test_null_system_is_none_where_its_column_is_named(tmp_path: Path) -> None:
    columns = {"prompt": "q", "response": "a", "system": "s"}
    record = {"q": "6*7?", "a": "42", "s": None}
    assert read_one(tmp_path, record, columns=columns) == EXPECTED
    with_text = read_one(tmp_path, {**record, "s": "Be brief."}, columns=columns)
    assert with_text.prompt[0] == {"role": "system", "content": "Be brief."}


def test_any_conversation_is_read_by_one_line_of_mapping(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "6*7?"}]
    record = {"chat": [*turns, {"from": "gpt", "value": "42"}]}
    example = read_one(tmp_path, record, columns={"messages": "chat"})
    assert example.prompt == ({"role": "system", "content": "s"}, QUESTION)


@pytest.mark.parametrize("arguments", [{"x": "Oslo"}, '{"x": "Oslo"}'])
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
def test_tool_calls_and_tools_are_kept(tmp_path: Path, arguments: Any, tools: Any) -> None:
    function = {"name": "get", "arguments": arguments}
    call = {"id": "c1", "type": "function", "function": function}
    turns = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "get", "tool_call_id": "c1", "content": "3"},
        {**ANSWER, "tool_calls": json.dumps([function])},
    ]
    example = read_one(tmp_path, {"messages": turns, "tools": tools})
    assert example.prompt[1:] == (
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "get", "tool_call_id": "c1", "content": "3"},
    )
    anonymous = {"type": "function", "function": CALL["function"]}
    assert example.final == {"tool_calls": [anonymous]}
    assert example.tools == (TOOL,)


def test_sharegpts_calls_and_observations_are_tool_calls(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "6*7?"},
        {"from": "function_call", "value": '{"name": "get", "arguments": {"x": "Oslo"}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "42"},
    ]
    example = read_one(tmp_path, {"conversations": turns})
    call = {"type": "function", "function": CALL["function"]}
    assert example.prompt[1:] == (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    )


def test_openais_first_form_of_calls_and_empty_results_are_read(tmp_path: Path) -> None:
    function = {"name": "get", "arguments": '{"x": "Oslo"}'}
    turns = [
        QUESTION,
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "function", "name": "get", "content": ""},
        ANSWER,
    ]
    example = read_one(tmp_path, {"messages": turns, "functions": [TOOL["function"]]})
    call = {"type": "function", "function": CALL["function"]}
    assert example.prompt[1:] == (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "get", "content": ""},
    )
    assert example.tools == (TOOL,)


def test_keys_that_a_table_adds_to_tool_calls_are_taken_out(tmp_path: Path) -> None:
    calls = [
        {"function": {"name": "get", "arguments": {"x": "Oslo"}}},
        {"function": {"name": "put", "arguments": {"y": 1}}},
    ]
    rows = [
        {"messages": [QUESTION, {**ANSWER, "tool_calls": [call]}, QUESTION, ANSWER]}
        for call in calls
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read_examples(DatasetSpec(name=str(tmp_path / "a.parquet")))
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    called = [example.prompt[1]["tool_calls"][0]["function"] for example in (first, second)]
    assert called == [call["function"] for call in calls]


@pytest.mark.parametrize("key", REASONING_KEYS)
def test_reasoning_has_every_name_that_templates_know(tmp_path: Path, key: str) -> None:
    example = read_one(tmp_path, {"messages": [QUESTION, {**ANSWER, key: "6 times 7"}]})
    assert example.final == dict.fromkeys(REASONING_KEYS, "6 times 7")


@pytest.mark.parametrize(
    "mask", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"train": "false"}]
)
def test_turn_without_weight_is_marked(tmp_path: Path, mask: dict[str, Any]) -> None:
    turns = [QUESTION, {"role": "assistant", "content": "41", **mask}, QUESTION, ANSWER]
    example = read_one(tmp_path, {"messages": turns})
    assert example.prompt[1] == {"role": "assistant", "content": "41", "weight": 0}
    assert example.final == {}


def test_weights_of_record_turn_and_train_multiply(tmp_path: Path) -> None:
    turns = [QUESTION, {**ANSWER, "weight": 0.5}, QUESTION, {**ANSWER, "weight": 4, "train": True}]
    (example,), said = read(tmp_path, {"messages": turns, "weight": "0.25"})
    assert isinstance(example, Example)
    assert example.prompt == (QUESTION, {**ANSWER, "weight": 0.125}, QUESTION)
    assert example.final == {"weight": 1.0}
    assert said == "records with weights other than 0 and 1: 1"
    (example,), _ = read(tmp_path, {"prompt": [QUESTION], "completion": [ANSWER], "weight": 2})
    assert isinstance(example, Example)
    assert example.final == {"weight": 2}


def test_turns_of_a_prompt_carry_no_loss(tmp_path: Path) -> None:
    record = {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]}
    example = read_one(tmp_path, record)
    assert example.prompt == (QUESTION, {**ANSWER, "weight": 0}, QUESTION)


def test_records_without_weight_are_left_out_and_counted(tmp_path: Path) -> None:
    record = {"prompt": "6*7?", "response": "42"}
    masked = {"messages": [QUESTION, {**ANSWER, "weight": 0}]}
    examples, said = read(tmp_path, record, {**record, "weight": 0}, masked)
    assert examples == [EXPECTED]
    assert said == "2 records without a turn of weight are left out"


@pytest.mark.parametrize(
    ("record", "kind", "expected"),
    [
        ({"prompt": "a", "response": "b", "weight": -1}, "weight", "weight of the record is -1"),
        ({"prompt": "a", "response": "b", "weight": 1e9}, "weight", "a number from 0 to 1,000"),
        ({"prompt": "a", "response": "b", "train": "nan"}, "weight", "train of the record is"),
        (
            {"messages": [QUESTION, {**ANSWER, "weight": "x"}]},
            "weight",
            "weight of turn 2 is 'x'; give what the loss is multiplied by",
        ),
        (
            {"messages": [{"role": "narrator", "content": "a"}, ANSWER]},
            "unknown role",
            "role of turn 1 is 'narrator'; there are: system, developer, user",
        ),
        (
            {"messages": [{**QUESTION, "content": [{"type": "image", "url": "x"}]}, ANSWER]},
            "wrong type",
            "content of turn 1 has a part that is no text, 'image'",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "reasoning": "a", "thinking": "b"}]},
            "two reasonings",
            "turn 2 has different texts in reasoning, thinking",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "tool_calls": [{"nme": "x"}]}]},
            "wrong type",
            "must have a function with a name",
        ),
        (
            {"messages": [QUESTION, {**ANSWER, "tool_calls": [{"name": "x", "arguments": "y"}]}]},
            "wrong type",
            "must be an object of JSON",
        ),
        ({"messages": [QUESTION, ANSWER], "tools": ["x"]}, "wrong type", "a list of functions"),
        ({"messages": [QUESTION, {**ANSWER, "content": ""}]}, "empty text", "content of turn 2"),
    ],
)
def test_what_cannot_be_read_says_where_and_why(
    tmp_path: Path, record: Any, kind: str, expected: str
) -> None:
    (record_error,), _ = read(tmp_path, record)
    assert isinstance(record_error, BadRecord)
    assert record_error.kind == kind
    assert expected in record_error.message


def test_fields_that_nothing_reads_are_counted_once(tmp_path: Path) -> None:
    turn = {**ANSWER, "score": 0.5}
    records = [
        {"messages": [QUESTION, turn, QUESTION, turn], "id": 1, "source": "x"},
        {"messages": [QUESTION, turn], "id": 2, "source": None, "Unnamed: 0": 7},
    ]
    _, said = read(tmp_path, *records)
    assert said == (
        "fields that nothing reads, with their number: id (2), messages[].score (2), source (1)"
    )
    _, said = read(tmp_path, {"q": "a", "a": "b", "c": 1}, columns={"prompt": "q", "response": "a"})
    assert said == "fields that nothing reads, with their number: c (1)"
    pq.write_table(pa.table({"q": ["a"], "a": ["b"], "c": [1]}), tmp_path / "a.parquet")
    columns = {"prompt": "q", "response": "a"}
    _, said = read(tmp_path, name=str(tmp_path / "a.parquet"), columns=columns)
    assert said == "fields that nothing reads, with their number: c (1)"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b",prompt,response\n0,6*7?,42\n"),
        ("a.csv", b"Unnamed: 0,prompt,response\n0,6*7?,42\n"),
        ("A.CSV", b"prompt,response\n6*7?,42\n"),
        ("a.tsv", b"prompt\tresponse\n6*7?\t42\n"),
        ("A.JSONL", b'{"prompt": "6*7?", "response": "42"}\n'),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "6*7?", "response": "42"}\n')),
        ("a.json.gz", gzip.compress(b'[{"prompt": "6*7?", "response": "42"}]')),
        ("a.csv.gz", gzip.compress(b"prompt,response\n6*7?,42\n")),
    ],
)
def test_files_as_people_have_them(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, tmp_path):
        (example,) = read_examples(DatasetSpec(name=str(source)))
        assert isinstance(example, Example)
        assert (example.prompt, example.response) == ((QUESTION,), "42")


def test_files_that_are_not_read_say_what_to_do(tmp_path: Path) -> None:
    for name in ("a.jsonl.zst", "a.xlsx", "a.parquet.gz"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=r"also gzipped .*; unpack or convert it"):
            DatasetSpec(name=str(tmp_path / name))
    for content in (b"x", gzip.compress(b'{"prompt": "a"}' * 99)[:-9]):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz: not a gzip file, or damaged"):
            list(read_examples(DatasetSpec(name=str(tmp_path / "a.jsonl.gz"))))


def test_examples_are_stored_with_all_that_they_have(tmp_path: Path) -> None:
    examples = [
        EXPECTED,
        Example(
            "2", (QUESTION, {**ANSWER, "weight": 0.0}, QUESTION), "", "Box.", {"tool_calls": [CALL]}
        ),
        Example("3", (QUESTION,), "b", final=dict.fromkeys(REASONING_KEYS, "t"), tools=(TOOL,)),
    ]
    write_examples([examples], tmp_path / "examples.arrow")
    assert list(iterate_examples(open_tables(tmp_path))) == examples
