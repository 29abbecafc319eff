"""`deft run --dry-run`: the plan a person reads, at once and without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft.platform.commands.dry_run import data_size, dimensions_of
from deft.platform.config.loading import load_spec
from deft.platform.records.run_directory import RunDirectory
from deft.workers.data.prepare import prepare
from helpers import make_prepare_manifest

Deft = Callable[..., CompletedProcess[str]]


def write_sums(file: Path, number: int) -> None:
    records = [{"prompt": f"{n} + {n}", "response": str(2 * n)} for n in range(number)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_plan_of_a_published_run(deft: Deft) -> None:
    names = ["--dataset", "math", "--model", "qwen-2.5-math-7b", "--objective", "DEFT"]
    done = deft("run", *names, "--dry-run", COLUMNS="100")
    assert done.returncode == 0
    assert json.loads(done.stdout)["training"]["learning_rate"] == 5e-5
    for line in (
        "264 of 256 examples",
        "67,647 examples",
        "7,615,616,512 parameters",
        "2 Ray Train workers",
        "ZeRO-3 ←",
        "H100 80GB SXM",
        "assumed 40%",
        "12,288 tokens a forward pass",
    ):
        assert line in done.stderr


def test_plan_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path\n"
        "from deft.platform.config.loading import load_spec\n"
        "from deft.platform.commands.dry_run import show_plan\n"
        "from deft.platform.console import RunConsole\n"
        "names = {'dataset': 'figfont', 'model': 'llama-3.2-3b', 'objective': 'DEFT'}\n"
        "show_plan(load_spec(None, names), Path('runs'), RunConsole())\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'datasets', 'deepspeed', 'mlflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def spec_for(file: Path, *settings: str) -> Any:
    names = {"dataset": str(file), "model": "tiny", "objective": "DEFT"}
    return load_spec(None, names, settings)


def test_local_data_is_estimated_then_known_as_prepared(tmp_path: Path) -> None:
    write_sums(tmp_path / "sums.jsonl", 100)
    spec = spec_for(tmp_path / "sums.jsonl")
    guessed = data_size(spec, tmp_path)
    assert guessed is not None
    assert guessed.num_examples == 95
    assert guessed.source.startswith("estimated")
    prepared = prepare(
        spec.dataset,
        spec.model,
        max_length=spec.training.max_length,
        seed=spec.seed,
        cache=tmp_path / "cache",
    )
    size_now = data_size(spec, tmp_path)
    assert size_now is not None
    assert (size_now.num_examples, size_now.num_tokens) == (95, prepared.num_tokens)
    assert size_now.source == "as prepared"
    other = data_size(spec_for(tmp_path / "sums.jsonl", "seed=1"), tmp_path)
    assert other == guessed


def test_runs_own_manifest_is_believed_first(tmp_path: Path) -> None:
    write_sums(tmp_path / "sums.jsonl", 100)
    spec = spec_for(tmp_path / "sums.jsonl")
    run = RunDirectory(tmp_path.resolve(), spec)
    run.create()
    run.finish(make_prepare_manifest(num_examples=7, num_tokens=70))
    size_now = data_size(spec, tmp_path)
    assert size_now is not None
    assert size_now.num_examples == 7


def test_large_files_are_judged_by_a_sample(tmp_path: Path) -> None:
    write_sums(tmp_path / "sums.jsonl", 9000)
    settings = ("dataset.validation=0",)
    size = data_size(spec_for(tmp_path / "sums.jsonl", *settings), tmp_path)
    assert size is not None
    assert size.num_examples == 9000
    rows = [json.loads(line) for line in (tmp_path / "sums.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sums.parquet")
    size = data_size(spec_for(tmp_path / "sums.parquet", *settings), tmp_path)
    assert size is not None
    assert size.num_examples == 9000
    limited = data_size(spec_for(tmp_path / "sums.jsonl", "dataset.size=3000"), tmp_path)
    assert limited is not None
    assert limited.num_examples == 3000 - 128


def test_bad_records_are_mentioned_before_anything_starts(tmp_path: Path) -> None:
    write_sums(tmp_path / "sums.jsonl", 100)
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write('{"promt": "1"}\n')
    size = data_size(spec_for(tmp_path / "sums.jsonl"), tmp_path)
    assert size is not None
    assert "1 bad record in the first 101" in size.source


def test_sizes_of_local_models_come_from_their_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=3, hidden_size=64, num_attention_heads=4).save_pretrained(
        tmp_path
    )
    model = dimensions_of(str(tmp_path))
    assert model is not None
    assert (model.num_layers, model.num_kv_heads, model.head_dim) == (3, 4, 16)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert dimensions_of("nobody/nothing") is None
