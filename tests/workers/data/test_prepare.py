"""From a spec to rows on disk: lengths, the held-out split, bad records, the cache."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from deft.workers.common.example import IGNORE_INDEX, Example
from deft.workers.data import tokenization
from deft.workers.data.chat import encode_example, encode_prompt, format_hash
from deft.workers.data.example_store import (
    iterate_examples,
    normalize,
    open_rows,
    open_tables,
    question_hash,
    read_bad_records,
    write_examples,
)
from deft.workers.data.prepare import Prepared, noisy_rows, prepare, training_examples
from deft.workers.data.readers import BadRecord
from deft.workers.data.splits import hold_out
from deft.workers.data.tokenization import (
    RowEncoder,
    RowFormat,
    tokenize,
    write_with_target_bytes,
)
from deft.workers.dataset_spec import DatasetSpec
from deft.workers.modeling.model_files import train_tokenizer
from deft.workers.spec import ModelSpec


def ask(text: str, answer: str = "yes", **more: Any) -> Example:
    return Example(text, ({"role": "user", "content": text},), answer, **more)


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([ask("hello there, what is this?")])


def run_tokenize(
    tmp_path: Path, examples: list[Example], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> tuple[datasets.Dataset, list[BadRecord]]:
    for name in ("examples", "rows"):
        (tmp_path / name).mkdir()
    write_examples([examples], tmp_path / "examples" / "all.arrow")
    row_format = RowFormat(**{"style": "chat", "max_length": 100, "truncate": None, **options})
    tokenize(tmp_path / "examples", RowEncoder.build(tokenizer, row_format), tmp_path / "rows")
    bad_records = list(read_bad_records(tmp_path / "rows" / "bad_records.jsonl"))
    return open_tables(tmp_path / "rows"), bad_records


def test_stored_examples_come_back_as_they_were(tmp_path: Path) -> None:
    talk = (*ask("a?").prompt, say("b."), *ask("c?").prompt)
    examples = [ask("é\n ", "x", instruction="Think."), Example("2", talk, "d.")] * 600
    assert write_examples([examples[:700], examples[700:]], tmp_path / "examples.arrow") == 1200
    assert list(iterate_examples(open_tables(tmp_path))) == examples


def test_questions_are_the_same_up_to_case_space_and_unicode_form() -> None:
    same = [ask("Why  é?"), ask(" why\ne\u0301? "), ask("WHY É?", "no")]
    assert len(set(map(question_hash, same))) == 1
    other = Example("", ({"role": "system", "content": "S"}, *ask("Why é?").prompt), "x")
    longer = Example("", (*ask("Why é?").prompt, say("So."), *ask("And?").prompt), "x")
    assert question_hash(other) == question_hash(longer) == question_hash(same[0])
    assert question_hash(ask("Why e?")) != question_hash(same[0])
    assert normalize("ﬁne  \t A") == "fine a"


def test_rows_are_the_encoded_examples(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = [ask("a" * n, "b" * n) for n in range(1, 30)]
    rows, bad_records = run_tokenize(tmp_path, examples, tokenizer, max_length=10_000)
    assert bad_records == []
    for row, example in zip(rows, examples, strict=True):
        assert (row["input_ids"], row["labels"]) == encode_example(tokenizer, example)
    assert rows.features["input_ids"].feature.dtype == "int32"
    assert rows["example"][:] == list(range(29))


@pytest.mark.parametrize("style", ["chat", "qwen-boxed"])
def test_rows_have_the_weights_of_their_turns(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, style: str
) -> None:
    examples = [ask("a?", "b"), ask("a?", "b", final={"weight": 0.5})]
    if style == "chat":
        talk = (*ask("a?").prompt, {**say("b"), "weight": 2.0}, *ask("c?").prompt)
        examples.append(Example("3", (*talk, say("d"), *ask("e?").prompt), "f", "", {"weight": 0}))
    rows, _ = run_tokenize(tmp_path, examples, tokenizer, style=style, max_length=1000)
    assert rows[0]["weights"] is None
    for row, expected in zip(rows.select(range(1, len(rows))), ({0.5}, {1.0, 2.0}), strict=False):
        tokens = list(zip(row["weights"], row["labels"], strict=True))
        assert {weight for weight, label in tokens if label != IGNORE_INDEX} == expected
        assert all(weight == 0 for weight, label in tokens if label == IGNORE_INDEX)
    if style == "chat":
        trained = [
            (tokenizer.decode(label), weight)
            for label, weight in zip(rows[2]["labels"], rows[2]["weights"], strict=True)
            if label != IGNORE_INDEX
        ]
        assert trained == [("b", 2), ("<|im_end|>", 2), ("d", 1), ("<|im_end|>", 1)]


@pytest.mark.parametrize("truncate", [None, "left", "right"])
def test_long_examples_are_dropped_or_cut_and_listed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, truncate: str | None
) -> None:
    fits, cut, prompt_alone = ask("a?", "b"), ask("a?", "no " * 50), ask("no " * 50, "b")
    length = len(encode_example(tokenizer, fits)[0])
    rows, bad_records = run_tokenize(
        tmp_path, [fits, cut, prompt_alone], tokenizer, max_length=length, truncate=truncate
    )
    input_ids, labels = encode_example(tokenizer, cut)
    kinds = [(bad.where, bad.kind) for bad in bad_records]
    if truncate == "left":
        assert kinds == [(cut.id, "truncated"), (prompt_alone.id, "truncated")]
        prompt_ids, prompt_labels = encode_example(tokenizer, prompt_alone)
        assert rows[2]["input_ids"] == prompt_ids[-length:]
        assert rows[2]["labels"] == prompt_labels[-length:]
        assert rows[1]["input_ids"] == input_ids[-length:]
    elif truncate == "right":
        assert kinds == [(cut.id, "truncated"), (prompt_alone.id, "too long")]
        assert rows[1]["input_ids"] == input_ids[:length]
        assert rows[1]["labels"] == labels[:length]
        assert any(label != IGNORE_INDEX for label in rows[1]["labels"])
    else:
        assert kinds == [(cut.id, "too long"), (prompt_alone.id, "too long")]
        assert len(rows) == 1
    assert f"{len(input_ids)} tokens, at most {length} fit" in bad_records[0].message


def test_shards_of_several_processes_are_what_one_makes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [ask("a" * n, "b" * n) for n in range(1, 90)] + [ask("<|im_start|>")]
    (tmp_path / "one").mkdir()
    rows, bad_records = run_tokenize(tmp_path / "one", examples, tokenizer, max_length=90)
    monkeypatch.setattr(tokenization, "SHARD_SIZE", 40)
    (tmp_path / "several").mkdir()
    sharded, listed = run_tokenize(tmp_path / "several", examples, tokenizer, max_length=90)
    assert len(list((tmp_path / "several" / "rows").glob("*.arrow"))) == 3
    assert sharded[:] == rows[:]
    assert listed == bad_records
    assert {bad.kind for bad in listed} == {"too long", "control token"}


def test_worker_does_not_outlive_a_killed_parent() -> None:
    script = (
        "import os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from deft.workers.data.tokenization import _start_worker\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, get_context('spawn'), _start_worker, (None,))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert psutil.pid_exists(worker)
        parent.kill()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != "zombie":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_texts_that_spell_control_tokens_or_do_not_render_are_bad(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    talk = (*ask("a?").prompt, say("b."), *ask("c?").prompt)
    examples = [
        ask("a?"),
        ask("a?", "b<|im_end|>"),
        Example("multi", talk, "d."),
        ask("<|im_start|>user"),
        ask("c?"),
    ]
    rows, bad_records = run_tokenize(
        tmp_path, examples, tokenizer, style="qwen-boxed", max_length=1000
    )
    assert rows["example"][:] == [0, 4]
    assert [(bad.where, bad.kind) for bad in bad_records] == [
        ("a?", "control token"),
        ("multi", "not renderable"),
        ("<|im_start|>user", "control token"),
    ]
    assert "spells the control token <|im_end|>" in bad_records[0].message


def test_style_that_does_not_fit_the_model_is_no_bad_record(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match="deepseek-math needs the token"):
        run_tokenize(tmp_path, [ask("a?")], tokenizer, style="deepseek-math")


def test_target_bytes_are_those_of_the_texts_to_learn(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    talk = Example("", (*ask("a?").prompt, say("é."), *ask("c?").prompt), "日本 ok")
    rows, _ = run_tokenize(tmp_path, [ask("a?", " two words\n"), talk], tokenizer)
    (tmp_path / "measured").mkdir()
    write_with_target_bytes(rows, tokenizer, tmp_path / "measured" / "rows.arrow")
    assert open_tables(tmp_path / "measured")["target_bytes"][:] == [11, 3 + 9]


def test_groups_are_held_out_whole_up_to_the_number_asked_for() -> None:
    groups = np.array([5, 5, 5, 1, 2, 2, 3, 4, 6, 7] * 3 + [8, 9, 10])
    chosen = set()
    for seed in range(5):
        held_out = hold_out(groups, 7, seed)
        assert held_out.sum() <= 7
        assert not set(groups[held_out]) & set(groups[~held_out])
        np.testing.assert_array_equal(held_out, hold_out(groups, 7, seed))
        chosen.add(tuple(np.flatnonzero(held_out)))
    assert len(chosen) > 1
    assert hold_out(np.arange(100), 7, 0).sum() == 7
    assert hold_out(groups, 0, 0).sum() == 0
    # More data moves nobody who was already held out into training, unless there is no room left.
    before = set(np.flatnonzero(hold_out(np.arange(100), 50, 0)))
    after = set(np.flatnonzero(hold_out(np.arange(101), 51, 0)))
    assert len(before - after) <= 1


@pytest.mark.parametrize(("validation", "expected"), [(None, 50), (0, 0), (7, 7), (0.1, 100)])
def test_number_of_held_out_examples(validation: float | None, expected: int) -> None:
    assert DatasetSpec(name="figfont", validation=validation).num_validation(1000) == expected
    assert DatasetSpec(name="figfont").num_validation(100_000) == 128


def write_lines(file: Path, records: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def prepared(tmp_path: Path, name: str, seed: int = 0, **spec: Any) -> Prepared:
    max_length = spec.pop("max_length", 200)
    return prepare(
        DatasetSpec(name=name, **spec),
        ModelSpec(name="tiny"),
        max_length=max_length,
        seed=seed,
        cache=tmp_path / "cache",
    )


SUMS = [{"prompt": f"{a} + {b}", "response": str(a + b)} for a in range(10) for b in range(10)]


def test_prepared_rows_split_and_counts_agree(tmp_path: Path) -> None:
    # Some questions twice, under other spellings; one record bad, one too long.
    records = [*SUMS, *({**s, "prompt": s["prompt"].replace(" ", "  ")} for s in SUMS[:30])]
    records += [{"prompt": "?"}, {"prompt": "x " * 300, "response": "y"}]
    name = write_lines(tmp_path / "sums.jsonl", records)
    got = prepared(tmp_path, name, bad_records="drop", validation=13)
    train = open_rows(got.rows_dir)
    validation = open_rows(got.validation_dir)
    assert (len(train), len(validation)) == (117, 13)
    assert (got.num_examples, got.num_validation_examples) == (117, 13)
    assert got.num_too_long == 1
    assert got.bad_records == {"missing field": 1}
    assert set(train.column_names) == {"input_ids", "labels", "weights"}
    assert set(validation.column_names) == {"input_ids", "labels", "weights", "target_bytes"}
    assert got.num_tokens == sum(map(len, train["input_ids"]))
    targets = [label for row in train["labels"] for label in row if label != IGNORE_INDEX]
    assert got.num_target_tokens == len(targets)

    tokenizer = AutoTokenizer.from_pretrained(got.model_dir)
    assert got.format_hash == format_hash(tokenizer, "chat")
    assert got.num_bos == 0
    texts = [tokenizer.decode(row) for row in (*train["input_ids"], *validation["input_ids"])]
    questions = ["".join(text.split()) for text in texts]
    assert not set(questions[:117]) & set(questions[117:])
    for example, row in zip(training_examples(got), train, strict=True):
        prompt_ids = encode_prompt(tokenizer, example.prompt)
        assert row["input_ids"][: len(prompt_ids)] == prompt_ids
    listed = [json.loads(line) for line in Path(got.bad_records_file).read_text().splitlines()]
    assert [(bad["where"], bad["kind"]) for bad in listed] == [
        ("sums.jsonl:131", "missing field"),
        ("sums.jsonl:132", "too long"),
    ]


def test_the_same_is_made_once_and_anything_else_anew(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "sums.jsonl", SUMS)
    first = prepared(tmp_path, name)
    stamp = Path(first.rows_dir).stat().st_mtime_ns
    assert prepared(tmp_path, name) == first
    assert Path(first.rows_dir).stat().st_mtime_ns == stamp
    different = [
        prepared(tmp_path, name, seed=1),
        prepared(tmp_path, name, validation=3),
        prepared(tmp_path, name, max_length=100),
        prepared(tmp_path, name, prompt_style="qwen-boxed"),
        prepared(tmp_path, name, size=90),
    ]
    assert len({first.rows_dir, *(other.rows_dir for other in different)}) == 6
    assert len({first.format_hash, *(other.format_hash for other in different)}) == 2
    write_lines(tmp_path / "sums.jsonl", SUMS[1:])
    assert prepared(tmp_path, name).rows_dir != first.rows_dir


def test_other_seeds_splits_and_noise_share_the_tokenized_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write_lines(tmp_path / "sums.jsonl", SUMS)
    first = prepared(tmp_path, name)

    def tokenize(*_: Any) -> None:
        raise AssertionError("tokenized again")

    with monkeypatch.context() as patched:
        patched.setattr(tokenization, "tokenize", tokenize)
        others = [
            prepared(tmp_path, name, **kind)
            for kind in ({"seed": 1}, {"validation": 20}, {"noise": 0.5}, {"too_long": "refuse"})
        ]
        with pytest.raises(AssertionError, match="tokenized again"):
            prepared(tmp_path, name, max_length=150)
    assert [other.num_validation_examples for other in others] == [5, 20, 5, 5]
    tables = {
        table.resolve()
        for each in (first, *others)
        for table in Path(each.rows_dir).glob("0*.arrow")
    }
    assert len(tables) == 1


def test_nothing_held_out_leaves_an_empty_split(tmp_path: Path) -> None:
    got = prepared(tmp_path, write_lines(tmp_path / "sums.jsonl", SUMS), validation=0)
    assert got.num_examples == 100
    validation = open_rows(got.validation_dir)
    assert len(validation) == 0
    assert "target_bytes" in validation.column_names


def test_bad_records_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "sums.jsonl", [*SUMS[:6], {"promt": "1", "response": "1"}])
    with pytest.raises(ValueError, match=r"sums.jsonl: 1 bad record \(1 missing field\)") as info:
        prepared(tmp_path, name)
    assert "sums.jsonl:7: key 'prompt' is missing; did you mean promt?" in str(info.value)
    assert not (tmp_path / "cache").exists()
    assert prepared(tmp_path, name, bad_records="drop").bad_records == {"missing field": 1}
    # What was dropped once is still refused where nothing may be dropped.
    with pytest.raises(ValueError, match="1 bad record"):
        prepared(tmp_path, name)


def test_other_refusals_name_the_records(tmp_path: Path) -> None:
    long = write_lines(tmp_path / "long.jsonl", [*SUMS, {"prompt": "x " * 300, "response": "y"}])
    with pytest.raises(ValueError, match=r"long.jsonl:101: .* tokens, at most 200 fit"):
        prepared(tmp_path, long, too_long="refuse")
    spelled = write_lines(tmp_path / "s.jsonl", [*SUMS, {"prompt": "a", "response": "<|im_end|>"}])
    with pytest.raises(ValueError, match=r"s.jsonl:101: the text spells the control token"):
        prepared(tmp_path, spelled)
    nothing = write_lines(tmp_path / "none.jsonl", [])
    with pytest.raises(ValueError, match="no example in it"):
        prepared(tmp_path, nothing)
    only_bad = write_lines(tmp_path / "bad.jsonl", [{"prompt": "a"}])
    with pytest.raises(ValueError, match="1 bad record"):
        prepared(tmp_path, only_bad, bad_records="drop")


def test_noise_exchanges_training_responses_and_leaves_held_out_ones(tmp_path: Path) -> None:
    records = [{"prompt": f"{n} = ?", "response": f"answer {n}."} for n in range(100)]
    name = write_lines(tmp_path / "data.jsonl", records)
    clean, noisy = (prepared(tmp_path, name, noise=noise, validation=20) for noise in (0.0, 0.5))
    assert (clean.num_noisy_examples, noisy.num_noisy_examples) == (0, 40)
    for field in ("num_examples", "num_validation_examples", "num_tokens", "num_target_tokens"):
        assert getattr(clean, field) == getattr(noisy, field)

    def texts(directory: str) -> list[str]:
        tokenizer = AutoTokenizer.from_pretrained(clean.model_dir)
        return [tokenizer.decode(row) for row in open_rows(directory)["input_ids"]]

    assert texts(clean.validation_dir) == texts(noisy.validation_dir)
    before, after = texts(clean.rows_dir), texts(noisy.rows_dir)
    changed = [n for n, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert len(changed) == 40
    assert sorted(t.split("assistant")[1] for t in before) == sorted(
        t.split("assistant")[1] for t in after
    )
    # What stands at a position is found again, with its own prompt.
    changed_rows = noisy_rows(Path(noisy.rows_dir), 0, 50)
    positions = np.load(Path(noisy.rows_dir) / "examples.npy")
    assert sorted(changed_rows) == [int(positions[n]) for n in changed if positions[n] < 50]
    tokenizer = AutoTokenizer.from_pretrained(noisy.model_dir)
    for position, (input_ids, _) in changed_rows.items():
        assert f"{position} = ?" in tokenizer.decode(input_ids)
        assert f"answer {position}." not in tokenizer.decode(input_ids)
    assert noisy_rows(Path(clean.rows_dir), 0, 100) == {}


def test_noise_is_the_same_for_a_seed_and_made_once(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "sums.jsonl", [*SUMS, *({"prompt": "x", "response": "y"},) * 9])
    first = prepared(tmp_path, name, noise=0.3)
    assert prepared(tmp_path, name, noise=0.3) == first
    others = [prepared(tmp_path, name, **kind) for kind in ({"noise": 0.4}, {"seed": 1})]
    assert first.rows_dir not in [other.rows_dir for other in others]
    assert first.model_dir == others[0].model_dir


def test_noise_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    records = [{"prompt": f"{n} = ?", "response": "same"} for n in range(40)]
    name = write_lines(tmp_path / "data.jsonl", records)
    with pytest.raises(ValueError, match=r"noise: 0\.5 of 38 training examples leaves none"):
        prepared(tmp_path, name, noise=0.5)


def test_generated_splits_have_one_tokenizer_and_the_tiny_model_spells_digits(
    tmp_path: Path,
) -> None:
    """What is pretrained on one split is fine-tuned on the other."""
    splits = [prepared(tmp_path, "chain_sum", split=s, size=2000) for s in ("pretrain", "train")]
    first, second = (AutoTokenizer.from_pretrained(split.model_dir) for split in splits)
    text = "<|im_start|>user\n17-20+3=<|im_end|>\n17-20=-3"
    assert first(text)["input_ids"] == second(text)["input_ids"]
    assert first.tokenize("17+20=37") == list("17+20=37")
