"""Items out of local files, and what is said when there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft.evaluators.benchmarks.items import load_items, prepare_items, read_items
from deft.evaluators.spec import BenchmarkSpec

ROWS = [{"question": f"{i} + 1?", "answer": f"{i} + 1 = {i + 1} #### {i + 1}"} for i in range(5)]


def spec(name: str, **settings: Any) -> BenchmarkSpec:
    return BenchmarkSpec.model_validate({"name": name, **settings})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_same_items_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"gsm8k{suffix}", ROWS)
    items = load_items(spec("gsm8k", size=3), str(tmp_path))
    assert [(item.id, item.gold) for item in items] == [("0", "1"), ("1", "2"), ("2", "3")]
    own_file = spec("gsm8k", size=3, file=str(tmp_path / f"gsm8k{suffix}"))
    assert load_items(own_file, None) == items


def choice(source: str, number: int) -> dict[str, Any]:
    return {
        "question": f"{source} {number}",
        "options": {"A": "a", "B": "b"},
        "answer_idx": "A",
        "source": source,
    }


def test_a_part_is_taken_from_every_source_in_turn(tmp_path: Path) -> None:
    rows = [
        choice(source, n) for source, size in (("x", 6), ("y", 1), ("z", 3)) for n in range(size)
    ]
    file = write(tmp_path / "medical.jsonl", rows)
    items = load_items(spec("medical", size=6, file=str(file)), None)
    assert [item.prompt[0]["content"].split("\n")[0] for item in items] == [
        "x 0", "x 1", "x 2", "y 0", "z 0", "z 1",
    ]  # fmt: skip


def test_a_json_object_of_lists_names_the_sources(tmp_path: Path) -> None:
    lists = {"NEJM": [choice("", 1)], "Lancet": [choice("", 2), choice("", 3)]}
    for rows in lists.values():
        for row in rows:
            del row["source"]
    (tmp_path / "medical.json").write_text(json.dumps(lists))
    items = load_items(spec("medical"), str(tmp_path))
    assert [item.source for item in items] == ["NEJM", "Lancet", "Lancet"]


def test_prepared_items_read_back_and_are_found_again(tmp_path: Path) -> None:
    write(tmp_path / "medical.jsonl", [choice("x", 0), choice("y", 0)])
    path = prepare_items(spec("medical"), str(tmp_path), tmp_path / "cache")
    assert read_items(path) == load_items(spec("medical"), str(tmp_path))
    written = path.stat().st_mtime_ns
    assert prepare_items(spec("medical"), str(tmp_path), tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == written
    write(tmp_path / "medical.jsonl", [choice("x", 1)])
    assert prepare_items(spec("medical"), str(tmp_path), tmp_path / "cache") != path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there are 0 items in "),
        ('{"question": "?"}', r"row 1 of .*gsm8k.jsonl has no field 'answer'; there are: question"),
        ('{"question": "?", "answer": "#### 1"}\n{', r"gsm8k.jsonl:2: not a line of JSON"),
        ("[1]", r"gsm8k.jsonl:1: expected a JSON object, got list"),
        ('{"question": "?", "answer": "#### 1"}', "there are 1 items in .*, and 2 are asked for"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "gsm8k.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_items(spec("gsm8k", size=2), str(tmp_path))


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        ("math500", {"problem": "x?", "answer": None}, "the field answer is null"),
        ("math500", {"problem": None, "answer": "1"}, "the field problem is null"),
        ("gsm8k", {"question": " ", "answer": "#### 1"}, "the field question is empty"),
        ("gsm8k", {"question": "x?", "answer": "#### "}, "gold: expected a text .* found ''"),
        ("olympiadbench", {"question": "x?", "final_answer": []}, "final_answer is empty"),
        ("medical", choice("x", 0) | {"question": None}, "the field question is null"),
        ("medical", choice("x", 0) | {"answer_idx": "E"}, "gold: expected one of the options A, B"),
    ],
)
def test_what_cannot_be_asked_or_graded_is_named(
    tmp_path: Path, benchmark: str, row: dict[str, Any], message: str
) -> None:
    good = {"question": "1?", "problem": "1?", "answer": "#### 1", "final_answer": ["1"]}
    first = choice("x", 1) if benchmark == "medical" else good
    write(tmp_path / f"{benchmark}.jsonl", [first, row])
    with pytest.raises(ValueError, match=rf"{benchmark}: row 2 of .*jsonl.*: .*{message}"):
        load_items(spec(benchmark), str(tmp_path))


def test_two_items_of_one_id_are_refused(tmp_path: Path) -> None:
    row = {"problem": "?", "answer": "1", "unique_id": "same"}
    write(tmp_path / "math500.jsonl", [row, row])
    with pytest.raises(ValueError, match="the id 'same' is twice"):
        load_items(spec("math500"), str(tmp_path))


def test_missing_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no gsm8k\.jsonl.*put the rows of openai/gsm8k there"):
        load_items(spec("gsm8k"), str(tmp_path))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"could not download .* from the Hugging Face hub.*data_dir"
    ):
        load_items(spec("gsm8k"), None)
