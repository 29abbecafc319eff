"""From records to examples: columns, conversations, named datasets, directories, the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft.workers.catalogs.datasets import DATASETS
from deft.workers.catalogs.prompt_styles import BOXED_INSTRUCTION, PROMPT_STYLES
from deft.workers.common.example import Example
from deft.workers.data.datasets import content_digest, read_examples, stored_question
from deft.workers.data.readers import BadRecord
from deft.workers.dataset_spec import DatasetSpec


def lines(tmp_path: Path, *records: Any, name: str = "data.jsonl") -> str:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(tmp_path / name)


def examples(**spec: Any) -> list[Example]:
    read = list(read_examples(DatasetSpec.model_validate(spec)))
    good = [item for item in read if isinstance(item, Example)]
    assert read == good
    return good


def bad(**spec: Any) -> BadRecord:
    (bad_record,) = read_examples(DatasetSpec.model_validate(spec))
    assert isinstance(bad_record, BadRecord)
    return bad_record


def pairs(found: list[Example]) -> list[tuple[str, str]]:
    return [(example.prompt[-1]["content"], example.response) for example in found]


def test_prompt_response_and_system_are_read_in_order_up_to_size(tmp_path: Path) -> None:
    record = {"prompt": "1+1", "response": "2", "id": 7}
    name = lines(tmp_path, record, {**record, "system": "Add."}, {**record, "prompt": "é"})
    first, second, third = examples(name=name)
    assert first == Example("data.jsonl:1", ({"role": "user", "content": "1+1"},), "2")
    assert second.prompt[0] == {"role": "system", "content": "Add."}
    assert third.prompt == ({"role": "user", "content": "é"},)
    assert len(examples(name=name, size=2)) == 2


def test_size_counts_usable_records(tmp_path: Path) -> None:
    name = lines(tmp_path, {"prompt": "a"}, *[{"prompt": "a", "response": "b"}] * 3)
    items = list(read_examples(DatasetSpec(name=name, size=2)))
    assert [type(item) for item in items] == [BadRecord, Example, Example]


def test_columns_have_other_names_and_may_lie_in_structs(tmp_path: Path) -> None:
    name = lines(tmp_path, {"row": {"q": "1+1", "deep": {"a": "2"}}, "sys": "Add."})
    (example,) = examples(
        name=name, columns={"prompt": "row.q", "response": "row.deep.a", "system": "sys"}
    )
    assert pairs([example]) == [("1+1", "2")]
    assert example.prompt[0]["content"] == "Add."


def test_conversations_are_read_with_every_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b."},
        {"role": "user", "content": "c?"},
        {"role": "assistant", "content": "d."},
    ]
    expected = [Example("data.jsonl:1", tuple(turns[:-1]), "d.")]
    assert examples(name=lines(tmp_path, {"messages": turns})) == expected
    name = lines(tmp_path, {"chat": turns})
    assert examples(name=name, columns={"messages": "chat"}) == expected
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "a.parquet")
    assert examples(name=str(tmp_path / "a.parquet"))[0].prompt == tuple(turns[:-1])


@pytest.mark.parametrize(
    ("record", "kind", "expected"),
    [
        (
            {"promt": "a", "response": "b"},
            "missing field",
            "'prompt' is missing; did you mean promt",
        ),
        ({"prompt": "a"}, "missing field", "key 'response' is missing; There are: prompt."),
        ({}, "missing field", "There is nothing in it"),
        ({"prompt": "a", "response": 3}, "wrong type", "'response' must be a text, got int 3"),
        ({"prompt": None, "response": "b"}, "wrong type", "'prompt' must be a text, got null"),
        ({"prompt": "a", "response": " \n"}, "empty text", "'response' must not be empty"),
        ({"prompt": "a", "response": "\ud800"}, "invalid UTF-8", "half of a surrogate pair"),
        ({"messages": "a"}, "wrong type", "must be a list of turns, got str"),
        ({"messages": []}, "wrong type", "must be a list of turns, got none"),
        ({"messages": ["a"]}, "wrong type", "turn 1 must be an object, got str"),
        (
            {"messages": [{"role": "user", "text": "a"}]},
            "missing field",
            "key 'content' is missing",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "no response",
            "the last turn must be the assistant's, got 'user'",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no prompt", "no turn before"),
    ],
)
def test_unusable_records_have_kind_place_and_expectation(
    tmp_path: Path, record: dict[str, Any], kind: str, expected: str
) -> None:
    bad_record = bad(name=lines(tmp_path, record))
    assert (bad_record.where, bad_record.kind) == ("data.jsonl:1", kind)
    assert expected in bad_record.message


def test_math_reads_the_papers_fields_from_local_copies(tmp_path: Path) -> None:
    row = {"question": "What is 6 × 7?", "answer": "It is \\boxed{42}."}
    lines(tmp_path, {"extra_info": row}, name="nested/a.jsonl")
    lines(tmp_path, row, name="flat/a.jsonl")
    (tmp_path / "parquet").mkdir()
    table = pa.Table.from_pylist([{"data_source": "x", "extra_info": {**row, "index": 3}}])
    pq.write_table(table, tmp_path / "parquet" / "train.parquet")
    for folder in ("nested", "flat", "parquet"):
        (example,) = examples(name="math", data_dir=str(tmp_path / folder))
        assert pairs([example]) == [(row["question"], row["answer"])]
        assert example.instruction == BOXED_INSTRUCTION


@pytest.mark.parametrize("style", ["qwen-medical", "llama-medical"])
def test_medical_takes_the_bare_question_out_of_stored_prompts(tmp_path: Path, style: str) -> None:
    template = PROMPT_STYLES[style].template
    assert template is not None
    question = "Which vitamin?\nA. C\nB. D"
    # The original stores Llama's prompt with two BOS strings.
    stored = template.replace("{input}", question).replace(
        "<|begin_of_text|>", "<|begin_of_text|><|begin_of_text|>"
    )
    row = {"qwen_prompt": stored, "qwen_reponse_no_thinking": "\\boxed{A}"}
    name = lines(tmp_path, {"extra_info": row})
    (example,) = examples(name="medical", data_dir=name)
    assert pairs([example]) == [(question, "\\boxed{A}")]
    assert stored_question(question, BOXED_INSTRUCTION) == question


def test_llamas_columns_of_medical_can_be_chosen(tmp_path: Path) -> None:
    row = {"llama_prompt": "Which?", "llama_reponse_no_thinking": "C"}
    columns = {
        "prompt": "extra_info.llama_prompt",
        "response": "extra_info.llama_reponse_no_thinking",
    }
    name = lines(tmp_path, {"extra_info": row})
    assert pairs(examples(name="medical", data_dir=name, columns=columns)) == [("Which?", "C")]


def test_directories_give_the_files_of_their_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(text: str) -> dict[str, str]:
        return {"prompt": text, "response": text}

    lines(tmp_path, record("b"), name="plain/b.jsonl")
    lines(tmp_path, record("a"), name="plain/deep/a.jsonl")
    (tmp_path / "plain" / "README.md").write_text("words")
    plain = examples(name=str(tmp_path / "plain"))
    assert [example.id for example in plain] == ["b.jsonl:1", "deep/a.jsonl:1"]

    lines(tmp_path, record("train"), name="hub/data/train-00000-of-00001.jsonl")
    lines(tmp_path, record("test"), name="hub/data/test-00000-of-00001.jsonl")
    assert pairs(examples(name=str(tmp_path / "hub"))) == [("train", "train")]
    assert pairs(examples(name=str(tmp_path / "hub"), split="test")) == [("test", "test")]
    with pytest.raises(ValueError, match="no files of split 'dev'; there are: train, test"):
        examples(name=str(tmp_path / "hub"), split="dev")
    monkeypatch.chdir(tmp_path)
    assert pairs(examples(name="hub")) == [("train", "train")]


def test_hub_that_does_not_answer_is_one_sentence_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^dataset 'gaotang/.*data_dir\)\.$") as caught:
        examples(name="math")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ValueError, match=r"dataset 'nobody/nothing' \(split dev\) could not be had"
    ):
        examples(name="nobody/nothing", split="dev")


def test_what_the_hubs_loader_gives_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader is the real one; that it is given a directory is all that differs from the hub."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"extra_info": {"question": f"{n}?", "answer": str(n)}} for n in range(3)]
    (tmp_path / "repository").mkdir()
    for split, chosen in (("train", rows), ("test", rows[:1])):
        file = tmp_path / "repository" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(chosen), file)
    hub = str(tmp_path / "repository")
    monkeypatch.setitem(DATASETS, "math", replace(DATASETS["math"], hub=hub))
    hub_examples = examples(name="math")
    assert pairs(hub_examples) == [("0?", "0"), ("1?", "1"), ("2?", "2")]
    assert hub_examples[1].id == f"{hub}: row 2"
    assert pairs(examples(name="math", split="test")) == [("0?", "0")]
    spec = DatasetSpec(name="math")
    assert content_digest(spec) == content_digest(spec)
    assert content_digest(spec) != content_digest(DatasetSpec(name="math", split="test"))
    with pytest.raises(ValueError, match="could not be had"):
        examples(name="math", split="dev")


def test_digest_follows_content_not_place(tmp_path: Path) -> None:
    record = {"prompt": "a", "response": "b"}
    one = lines(tmp_path, record, name="one/data.jsonl")
    same = lines(tmp_path, record, name="two/data.jsonl")
    digest = content_digest(DatasetSpec(name=one))
    assert digest == content_digest(DatasetSpec(name=same))
    lines(tmp_path, record, record, name="one/data.jsonl")
    assert digest != content_digest(DatasetSpec(name=one))


def test_a_link_out_of_a_directory_of_data_is_refused(
    tmp_path: Path, fault: Callable[..., None]
) -> None:
    """But for those of the hub's cache, from a snapshot to the blobs beside it."""
    line = '{"prompt": "1 + 1", "response": "2"}\n'
    snapshot = tmp_path / "datasets--a" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "datasets--a" / "blobs").mkdir()
    (tmp_path / "datasets--a" / "blobs" / "4567").write_text(line)
    (snapshot / "train.jsonl").symlink_to("../../blobs/4567")
    assert pairs(examples(name=str(snapshot))) == [("1 + 1", "2")]

    (tmp_path / "elsewhere.jsonl").write_text(line)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").symlink_to("../elsewhere.jsonl")
    refusal = rf"{tmp_path}/data/train.jsonl: a link to {tmp_path}/elsewhere.jsonl, which lies outs"
    with pytest.raises(ValueError, match=refusal):
        examples(name=str(tmp_path / "data"))
    fault(
        "a link leads out of a directory of data",
        "it is refused, and named with its target",
        seconds="it is mended",
    )
