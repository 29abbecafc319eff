"""Mixtures and pins: which rows take part, and what is recorded of where they come from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from deft.workers.common.example import IGNORE_INDEX
from deft.workers.data.example_store import open_rows
from deft.workers.data.prepare import Prepared, prepare, training_examples
from deft.workers.data.splits import count_tokens, mixture_counts
from deft.workers.dataset_spec import DatasetSpec, MixedSourceSpec
from deft.workers.spec import ModelSpec


def write_sums(directory: Path, name: str, size: int, *, first: int = 0) -> str:
    """Write records that ask for ``size`` different sums and answer with ``name``."""
    lines = [
        json.dumps({"prompt": f"{number} + 1", "response": f"{name} {number}"}) + "\n"
        for number in range(first, first + size)
    ]
    (directory / f"{name}.jsonl").write_text("".join(lines))
    return str(directory / f"{name}.jsonl")


def prepare_mixture(
    tmp_path: Path, *mixture: dict[str, Any], seed: int = 0, **spec: Any
) -> Prepared:
    dataset = DatasetSpec.model_validate({"mixture": mixture, **spec})
    return prepare(
        dataset, ModelSpec(name="tiny"), max_length=100, seed=seed, cache=tmp_path / "cache"
    )


def responses(prepared: Prepared, rows_dir: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(prepared.model_dir)
    targets = [[i for i in row["labels"] if i != IGNORE_INDEX] for row in open_rows(rows_dir)]
    return [text.strip() for text in tokenizer.batch_decode(targets, skip_special_tokens=True)]


@pytest.mark.parametrize(
    ("weights", "size", "expected"),
    [
        ([None, None], None, [100, 60]),
        ([1, 1], None, [60, 60]),
        ([2, 1], None, [100, 50]),
        ([0.1, 0.3], None, [20, 60]),
        ([1, None], None, [100, 60]),
        ([1, 1], 20, [10, 10]),
        ([2, 1], 20, [13, 7]),
        ([1, None], 80, [20, 60]),
        ([1, 1], 500, [60, 60]),
    ],
)
def test_weights_are_met_as_far_as_the_scarcest_allows(
    weights: list[float | None], size: int | None, expected: list[int]
) -> None:
    assert mixture_counts(np.array([100, 60]), weights, size).tolist() == expected


def test_weights_that_leave_a_data_set_without_rows_are_refused() -> None:
    for num_rows, weights, size in (
        ([100, 0], [1, 1], None),
        ([100, 60], [1, None], 60),
        ([100, 60], [1, 99], 20),
    ):
        with pytest.raises(ValueError, match=r"dataset\.mixture: by the weights none of the \d+"):
            mixture_counts(np.array(num_rows), weights, size)


def test_mixture_is_drawn_by_the_seed_and_counted_by_data_set(tmp_path: Path) -> None:
    left = write_sums(tmp_path, "left", 90)
    right = write_sums(tmp_path, "right", 40, first=1000)
    mixture = ({"name": left, "weight": 2}, {"name": right, "size": 30})
    first, same, other = (
        prepare_mixture(tmp_path, *mixture, seed=seed, size=90, validation=10) for seed in (0, 0, 1)
    )
    assert first == same
    assert (first.num_examples, first.num_validation_examples) == (80, 10)
    by_name = {source.name: source for source in first.sources}
    assert list(by_name) == ["left.jsonl", "right.jsonl"]
    texts = responses(first, first.rows_dir)
    held_out = responses(first, first.validation_dir)
    for name, source in by_name.items():
        word = name.split(".")[0]
        assert sum(word in text for text in texts) == source.num_examples
        assert sum(word in text for text in held_out) == source.num_validation_examples
    for field in ("num_examples", "num_tokens", "num_target_tokens", "num_validation_examples"):
        assert getattr(first, field) == sum(getattr(source, field) for source in first.sources)
    assert (
        by_name["right.jsonl"].num_examples + by_name["right.jsonl"].num_validation_examples == 30
    )
    # Another seed draws others of those that have a weight, and all of the rest.
    drawn = [set(responses(p, p.rows_dir) + responses(p, p.validation_dir)) for p in (first, other)]
    assert len(drawn[0]) == len(drawn[1]) == 90
    assert {t for t in drawn[0] - drawn[1] if "right" in t} == set()
    assert drawn[0] != drawn[1]
    # Rows and examples stand for each other across the data sets.
    assert [example.response for example in training_examples(first)] == texts


def test_fewer_examples_than_asked_for_are_said(tmp_path: Path) -> None:
    left, right = (write_sums(tmp_path, name, 50) for name in ("left", "right"))
    got = prepare_mixture(tmp_path, {"name": left, "size": 70}, {"name": right}, validation=0)
    assert got.passed_over == "left.jsonl: 20 fewer examples than its size asks for"
    weighted = ({"name": left, "weight": 1}, {"name": right, "weight": 1})
    got = prepare_mixture(tmp_path, *weighted, size=300)
    assert got.passed_over == "the weights allow 100 of the 300 examples asked for"


def test_question_of_two_data_sets_is_held_out_in_both(tmp_path: Path) -> None:
    left, right = (write_sums(tmp_path, name, 50) for name in ("left", "right"))
    got = prepare_mixture(tmp_path, {"name": left}, {"name": right}, validation=20)
    held_out = Counter(text.split()[1] for text in responses(got, got.validation_dir))
    assert set(held_out.values()) == {2}
    assert len(held_out) == 10
    assert [source.num_validation_examples for source in got.sources] == [10, 10]


def test_noise_crosses_data_sets_and_bad_records_of_all_are_listed(tmp_path: Path) -> None:
    left, right = (write_sums(tmp_path, name, 50) for name in ("left", "right"))
    with open(right, "a") as file:
        file.write('{"prompt": "a"}\n')
    got = prepare_mixture(
        tmp_path, {"name": left}, {"name": right}, bad_records="drop", noise=1.0, validation=0
    )
    assert got.num_noisy_examples == sum(s.num_noisy_examples for s in got.sources) == 100
    texts = responses(got, got.rows_dir)
    assert any("right" in text for text in texts[:50])
    assert got.bad_records == {"missing field": 1}
    assert '"where": "right.jsonl:51"' in Path(got.bad_records_file).read_text()


def test_tokens_are_counted_row_by_row() -> None:
    masked = IGNORE_INDEX
    rows = datasets.Dataset.from_dict(
        {"labels": [[masked, 1, 2], [], [masked], [3], [masked, masked, 4]] * 400}
    )
    num_tokens, num_targets = count_tokens(rows.select(range(1, 2000)))
    assert num_tokens[:4].tolist() == [0, 1, 1, 3]
    assert num_targets[:4].tolist() == [0, 0, 1, 1]
    assert len(num_tokens) == len(num_targets) == 1999
    assert num_targets.sum() == 400 * 4 - 2


def test_what_belongs_to_each_data_set_is_refused_for_the_mixture() -> None:
    mixture = [{"name": "figfont"}, {"name": "chain_sum", "size": 9}]
    spec = DatasetSpec.model_validate({"mixture": mixture, "prompt_style": "chat-bare"})
    assert spec.name == "figfont+chain_sum"
    assert spec.sources == (
        MixedSourceSpec(name="figfont"),
        MixedSourceSpec(name="chain_sum", size=9),
    )
    assert DatasetSpec.model_validate_json(spec.model_dump_json()) == spec
    assert DatasetSpec(name="figfont").sources == (DatasetSpec(name="figfont"),)
    for wrong, message in (
        ({"split": "test"}, "split: give it for each data set"),
        ({"size": 10}, "size: no data set of the mixture has a weight"),
        ({"mixture": [{"name": "figfont", "revision": "v1"}]}, "revision: only datasets of"),
        ({"mixture": [{"name": "figfont", "noise": 0.1}]}, "noise"),
    ):
        with pytest.raises(ValueError, match=message):
            DatasetSpec.model_validate({"mixture": mixture, **wrong})


def test_single_data_set_is_dumped_as_before_mixtures_and_pins() -> None:
    """Names of runs are made of the dump."""
    dumped = DatasetSpec(name="figfont").model_dump()
    assert {"config", "revision", "mixture", "weight"}.isdisjoint(dumped)
    assert "revision" not in ModelSpec(name="tiny").model_dump()


def test_commit_of_the_hub_is_read_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub itself is a stand-in here: it knows commits, and one dataset."""
    commits = {None: "a" * 40, "v1": "b" * 40}
    asked: list[Any] = []

    def repo_info(self: Any, name: str, *, repo_type: str, revision: str | None) -> Any:
        asked.append((repo_type, name, revision))
        return SimpleNamespace(sha=commits[revision])

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        records = [{"prompt": f"{n} + 1", "response": f"{revision} {n}"} for n in range(40)]
        return datasets.Dataset.from_list(records)

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for revision, commit in ((None, "a" * 40), ("v1", "b" * 40), ("c" * 40, "c" * 40)):
        asked.clear()
        dataset = DatasetSpec(name="org/sums", config="easy", split="test", revision=revision)
        got = prepare(
            dataset, ModelSpec(name="tiny"), max_length=200, seed=0, cache=tmp_path / str(revision)
        )
        (source,) = got.sources
        assert (source.name, source.revision) == ("org/sums (easy, test)", commit)
        assert asked[0] == ("dataset", "org/sums", revision) or revision == commit
        assert ("org/sums", "easy", "test", commit) in asked
        assert all(text.startswith(commit) for text in responses(got, got.rows_dir))
        assert got.model_revision is None


def test_commit_of_a_model_is_downloaded_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub itself is a stand-in here."""
    name = write_sums(tmp_path, "sums", 50)
    model_dir = prepare_mixture(tmp_path, {"name": name}).model_dir
    asked: list[Any] = []

    def snapshot_download(name: str, *, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return model_dir

    monkeypatch.setattr(
        "huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(sha="d" * 40)
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    got = prepare(
        DatasetSpec(name=name),
        ModelSpec(name="org/model", revision="v2"),
        max_length=100,
        seed=0,
        cache=tmp_path / "cache",
    )
    assert asked == [("org/model", "d" * 40)]
    assert got.model_revision == "d" * 40
