"""The prepare stage of a run: model, tokenized data and benchmarks on disk."""

from __future__ import annotations

import time
from pathlib import Path

from deft.evaluators.benchmarks.definition import changed_benchmarks
from deft.evaluators.benchmarks.items import is_whole_items_file
from deft.evaluators.generation.prepare import (
    load_benchmarks,
    require_prompts,
    with_absolute_paths,
    write_benchmarks,
)
from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import PrepareManifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.cluster import run_task
from deft.platform.run.contamination import overlap_with_benchmarks
from deft.platform.run.context import RunContext
from deft.workers.data.prepare import Prepared, is_whole, prepare
from deft.workers.data.readers import describe_counts
from deft.workers.spec import ModelSpec


def prepare_stage(run: RunDirectory[ExperimentSpec], context: RunContext) -> PrepareManifest:
    """Bring data and model to disk by a Ray task, unless that was done before.

    Raises:
        UserError: data or model cannot be used.
    """
    before = run.manifest(PrepareManifest)
    if before is not None and _is_there(before, context.cache):
        context.console.stage("prepare", f"{summary(before.prepared)}, finished already")
        return before
    spec, cache = run.spec, context.cache
    dataset, model = (
        spec.dataset.absolute(),
        _model_with_absolute_path(spec.model),
    )
    evaluation = with_absolute_paths(spec.evaluation)

    def work() -> PrepareManifest:
        # What is wrong with either is said before anything is written.
        benchmarks = load_benchmarks(evaluation)
        prepared = prepare(
            dataset, model, max_length=spec.training.max_length, seed=spec.seed, cache=cache
        )
        items = write_benchmarks(benchmarks, cache)
        require_prompts(evaluation, items, prepared.model_dir, prepared.prompt_style)
        overlap = overlap_with_benchmarks(prepared, items)
        return PrepareManifest(prepared=prepared, items=items, overlap=overlap)

    started = time.monotonic()
    with context.console.waiting("preparing data and model"):
        manifest = run_task(work, stage="prepare")
    require_a_batch(spec, manifest.prepared)
    seconds = time.monotonic() - started
    context.console.stage("prepare", f"{summary(manifest.prepared)} ({seconds:.0f} s)")
    warn_of_data(manifest, context.console)
    return manifest


def _is_there(manifest: PrepareManifest, cache: Path) -> bool:
    """Return whether the files that ``manifest`` names are whole, and benchmarks are the same."""
    return (
        is_whole(manifest.prepared, cache)
        and all(is_whole_items_file(Path(file)) for file in manifest.items.values())
        and not changed_benchmarks(manifest.items)
    )


def _model_with_absolute_path(spec: ModelSpec) -> ModelSpec:
    path = Path(spec.name)
    return spec.model_copy(update={"name": str(path.absolute())}) if path.exists() else spec


def require_a_batch(spec: ExperimentSpec, prepared: Prepared) -> None:
    """Raise UserError if there are too few examples for a step of training."""
    training = spec.training
    if training.num_steps(prepared.num_examples, prepared.num_tokens) == 0:
        raise UserError(
            f"training.batch_size: only {prepared.num_examples} training examples are at most "
            f"{training.max_length} tokens long, fewer than training.batch_size="
            f"{training.batch_size}; lower it, or raise training.max_length"
        )


def summary(prepared: Prepared) -> str:
    """Summarize the prepared data in one line; zero counts are omitted."""
    parts = [
        f"{prepared.num_examples:,} examples",
        f"{prepared.num_validation_examples:,} held out",
        f"{prepared.num_too_long:,} too long",
        f"{prepared.num_truncated:,} cut to length",
        f"{prepared.num_noisy_examples:,} with another's response",
        f"{sum(prepared.bad_records.values()):,} bad",
        f"{prepared.num_tokens:,} tokens",
    ]
    nonzero = [part for index, part in enumerate(parts) if index == 0 or not part.startswith("0 ")]
    by_source = [f"; {source}" for source in prepared.sources if len(prepared.sources) > 1]
    return (
        f"{', '.join(nonzero)}, {prepared.num_target_tokens:,} of them targets{''.join(by_source)}"
    )


def warn_of_data(manifest: PrepareManifest, console: RunConsole) -> None:
    """Warn of bad records, and of training examples that benchmarks contain."""
    prepared = manifest.prepared
    if prepared.bad_records:
        console.print(
            f"warning: left out {describe_counts(prepared.bad_records)}; listed in "
            f"{prepared.bad_records_file}"
        )
    if prepared.passed_over:
        console.print(f"warning: {prepared.passed_over}")
    for name, overlap in manifest.overlap.items():
        if overlap.num_overlapping:
            console.print(
                f"warning: {overlap.num_overlapping:,} training examples ({overlap.share:.2%}) "
                f"share text with benchmark {name}, the first is {overlap.ids[0]}"
            )
