"""The card of a trained model: what the hub indexes, and what made the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from deft.platform.config.loading import load_spec
from deft.platform.records.manifests import EvaluateManifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.model_card import hub_id, metadata, model_card, write_card
from deft.workers.spec import ModelSpec


@pytest.fixture
def run(tmp_path: Path, finished: Any) -> RunDirectory[Any]:
    """Copy the finished run."""
    shutil.copytree(finished.run, tmp_path / finished.run.name, symlinks=True)
    return RunDirectory(tmp_path, finished.spec)


def test_card_says_what_made_the_model(run: RunDirectory[Any]) -> None:
    write_card(run)
    card = ModelCard.load(run.path / "model" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # the tiny model is made here
    assert card.data.tags == ["deft", "sft", "objective:DEFT"]
    (result,) = card.data.eval_results or ()
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        "figfont",
        "avg@1",
        0.5,
    )
    for sentence in (
        "`tiny`, fine-tuned on `figfont` with the objective `DEFT`.",
        "- value of a token: −(exp(αℓ) − 1)/(α + 1e-6)",
        "| held out | nll | 3.000 | 3.000 |",
        "| figfont | avg@1 | 0.500 | 0.500 |",
        "- 4 steps of 8 examples, learning rate",
    ):
        assert sentence in card.text
    assert str(run.path.parent) not in card.content
    assert write_card(run) is None
    assert ModelCard.load(run.path / "model" / "README.md").content == card.content


def test_a_run_without_a_model_has_no_card(run: RunDirectory[Any]) -> None:
    shutil.rmtree(run.path / "model")
    write_card(run)
    assert not (run.path / "model").exists()


def test_hub_models_and_datasets_are_linked(run: RunDirectory[Any]) -> None:
    names = {"dataset": "math", "model": "qwen-2.5-1.5b", "objective": "GeneralFamily-0.5"}
    spec = load_spec(None, names, ["training.lora.rank=8"])
    card = model_card(_like(run, spec))
    assert "[Qwen/Qwen2.5-1.5B](https://huggingface.co/Qwen/Qwen2.5-1.5B), fine-tuned on" in card
    assert "- parameters: alpha = 0.5" in card
    assert "- LoRA of rank 8 on all-linear, merged into the weights" in card
    data = metadata(spec, run.require_manifest(EvaluateManifest).models, "name")
    assert data.base_model == "Qwen/Qwen2.5-1.5B"
    assert data.datasets
    assert hub_id(ModelSpec(name="org/model")) == "org/model"


def test_an_objective_of_ones_own_is_described_by_its_docstring(
    run: RunDirectory[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "described.py").write_text('def own(stats):\n    """−log p, by hand."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"dataset": "figfont", "model": "tiny", "objective": "described:own"}
    assert "\n−log p, by hand.\n" in model_card(_like(run, load_spec(None, names)))


def _like(run: RunDirectory[Any], spec: Any) -> RunDirectory[Any]:
    """Return a run of ``spec`` with the manifests of ``run``."""
    other = RunDirectory(run.path.parent, spec)
    shutil.copytree(run.path / "stages", other.path / "stages")
    return other
