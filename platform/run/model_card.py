"""The model card of a trained model: `model/README.md`, as Hugging Face's hub reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from deft.objectives.base import get_objective
from deft.objectives.spec import ObjectiveSpec
from deft.platform.config.spec import ExperimentSpec
from deft.platform.records.manifests import (
    EvaluateManifest,
    ModelResult,
    PrepareManifest,
    TrainManifest,
)
from deft.platform.records.results import main_metrics, with_interval
from deft.platform.records.run_directory import RunDirectory
from deft.platform.tracking.provenance import git_state
from deft.workers.catalogs.models import MODELS
from deft.workers.common.files import write_atomic
from deft.workers.dataset_spec import DatasetSpec
from deft.workers.spec import ModelSpec

CARD = "README.md"
HELDOUT_METRICS = ("nll", "bits_per_byte")
"""Metrics on held-out examples that the card has, beside the first one of each benchmark."""


def write_card(run: RunDirectory[ExperimentSpec]) -> None:
    """Write the card of the model of ``run``, whose evaluation has finished, if the model is there.

    The same run gives the same card, but for the commit of the code.
    """
    if (run.path / "model").is_dir():
        write_atomic(run.path / "model" / CARD, model_card(run))


def model_card(run: RunDirectory[ExperimentSpec]) -> str:
    """Return the card: metadata as YAML, and what made the model as Markdown."""
    spec, models = run.spec, run.require_manifest(EvaluateManifest).models
    return "\n".join(
        [
            "---",
            metadata(spec, models, run.path.name).to_yaml(),
            "---",
            f"# {run.path.name}",
            "",
            f"{_base(spec.model)}, fine-tuned on {_data(spec.dataset)} with the objective "
            f"`{spec.objective}`.",
            "",
            "## Objective",
            "",
            *_objective(spec.objective),
            "",
            "## Results",
            "",
            "95 % intervals in brackets.",
            "",
            *results_table(models),
            "",
            "## Training",
            "",
            *(f"- {line}" for line in _training(run)),
            "",
            "The run's `spec.json` has every setting; `deft run spec.json` repeats the run.",
            "",
        ]
    )


def metadata(spec: ExperimentSpec, models: Mapping[str, ModelResult], name: str) -> ModelCardData:
    """Return what the hub indexes: base model, data, results."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=main.benchmark,
            dataset_name=main.benchmark,
            metric_type=main.name,
            metric_value=main.after[main.key],
        )
        for main in main_metrics(models)
        if main.key in main.after
    ]
    hub_data = [source.hub_id for source in spec.dataset.sources if source.hub_id is not None]
    return ModelCardData(
        base_model=hub_id(spec.model),
        datasets=hub_data or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["deft", "sft", f"objective:{spec.objective.name}"],
        model_name=name,
        eval_results=results or None,
    )


def hub_id(model: ModelSpec) -> str | None:
    """Return the id of a model on the hub; None for one that is made here or lies here."""
    if model.name in MODELS:
        return MODELS[model.name].hub
    return model.name if model.local_path is None else None


def _base(model: ModelSpec) -> str:
    """Name the base model, without the path that it has on this machine."""
    if (name := hub_id(model)) is not None:
        return f"[{name}](https://huggingface.co/{name})"
    path = Path(model.name)
    return f"`{path.parent.name if path.name == 'model' else path.name}`"


def _data(dataset: DatasetSpec) -> str:
    return " and ".join(
        f"[{source.hub_id}](https://huggingface.co/datasets/{source.hub_id})"
        if source.hub_id is not None
        else f"`{source.title}`"
        for source in dataset.sources
    )


def _objective(objective: ObjectiveSpec) -> Iterator[str]:
    info = objective.info
    if info is None:
        yield f"An objective of the author's own, `{objective}`."
        if documentation := (get_objective(objective).function.__doc__ or "").strip():
            yield ""
            yield documentation.splitlines()[0]
        return
    yield f"{info.summary} ({info.source})"
    yield ""
    yield f"- value of a token: {info.value}"
    yield f"- gate, the weight of P − e_y in the logit gradient: {info.gate}"
    if objective.params:
        values = ", ".join(f"{name} = {value}" for name, value in objective.params.items())
        yield f"- parameters: {values}"
    yield ""
    yield (
        "p is the target's probability, ℓ = log p, P the softmax, e_y the one-hot target, "
        "c = Σ P², H the entropy; sg(·) is held fixed in differentiation."
    )


def results_table(models: Mapping[str, ModelResult]) -> Iterator[str]:
    """Yield a Markdown table: the first metric of each benchmark, before and after."""
    base, trained = models.get("base"), models["eval"]
    yield "| benchmark | metric | before | after |"
    yield "|---|---|---|---|"
    before = base.heldout if base is not None else {}
    for metric in HELDOUT_METRICS:
        if metric in trained.heldout:
            values = (with_interval(each, metric) for each in (before, trained.heldout))
            yield f"| held out | {metric} | {' | '.join(values)} |"
    for main in main_metrics(models):
        values = (with_interval(each, main.key) for each in (main.before, main.after))
        yield f"| {main.benchmark} | {main.name} | {' | '.join(values)} |"


def _training(run: RunDirectory[ExperimentSpec]) -> Iterator[str]:
    spec, training = run.spec, run.spec.training
    prepared = run.require_manifest(PrepareManifest).prepared
    yield (
        f"{prepared.num_examples:,} examples, {prepared.num_target_tokens:,} target tokens, prompt "
        f"style `{prepared.prompt_style}`, {prepared.num_validation_examples:,} examples held out"
    )
    for source in prepared.sources:
        if source.revision is not None:
            yield f"{source.name} at commit {source.revision}"
    if prepared.model_revision is not None:
        yield f"base model at commit {prepared.model_revision}"
    yield (
        f"{run.require_manifest(TrainManifest).step:,} steps of {training.batch_size} examples, "
        f"learning rate {training.learning_rate:g} ({training.schedule}), seed {spec.seed}, "
        f"protocol {spec.protocol}"
    )
    if training.lora is not None:
        targets = ", ".join(training.lora.targets)
        yield f"LoRA of rank {training.lora.rank} on {targets}, merged into the weights"
    if commit := git_state().get("commit"):
        yield f"deft at commit {commit}"
