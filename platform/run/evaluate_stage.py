"""The evaluate stage of a run: the model that training starts from, and the trained one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from ray.util.queue import Queue

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.definition import content_in, definition_in
from deft.evaluators.harness.tasks import PREFIX
from deft.evaluators.spec import GENERAL_BENCHMARK
from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.records.manifests import (
    EvaluateManifest,
    ModelResult,
    PrepareManifest,
    Timings,
    TrainManifest,
    load_manifest,
    save_manifest,
)
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.contamination import different_formats
from deft.platform.run.context import RunContext
from deft.platform.run.evaluation import (
    Evaluation,
    evaluate_models,
    measure_heldout,
    shown_events,
    with_engines,
)
from deft.workers.common.checksums import (
    FOLDER,
    damaged_file_of,
    hash_parts,
    write_checksums,
)
from deft.workers.common.files import exclusive
from deft.workers.data.prepare import Prepared
from deft.workers.modeling.model_identity import fingerprint


def evaluate_stage(
    run: RunDirectory[ExperimentSpec],
    manifest: PrepareManifest,
    context: RunContext,
    on_measured: Callable[[], None],
) -> None:
    """Evaluate the base model and the trained one, and compare prompts with those of training.

    Args:
        run: the run.
        manifest: what the prepare stage has left.
        context: what the run shares with others.
        on_measured: called when the trained model needs no device but an engine's any more.
    """
    spec, prepared, console = run.spec, manifest.prepared, context.console
    if run.has_finished("evaluate"):
        console.stage("evaluate", "finished already")
        return
    names = [get_benchmark(benchmark.name).name for benchmark in spec.evaluation.suite]
    console.stage("evaluate", f"base and trained model · {', '.join(names) or 'no benchmark'}")
    with with_engines(spec.evaluation, context) as context, shown_events(console) as events:
        base = Evaluation(
            spec=spec.evaluation,
            models={"base": prepared.model_dir},
            items=manifest.items,
            trained_style=prepared.prompt_style,
            out=run.path,
            context=context,
            validation_dir=prepared.validation_dir,
            dtype=trained_dtype(run),
        )
        trained = replace(base, models={"eval": str(run.path / "model")})
        losses = measure_heldout(trained, events)
        on_measured()
        outcome = merge_results(
            evaluate_base(base, events), evaluate_models(trained, losses, events)
        )
    warn_of_other_formats(prepared, outcome.models["eval"], console)
    run.finish(outcome)


def trained_dtype(run: RunDirectory[ExperimentSpec]) -> str:
    """Return the dtype that the training workers agreed on, or else that of what they exported."""
    if (dtype := run.require_manifest(TrainManifest).dtype) is not None:
        return dtype
    return str(json.loads((run.path / "model" / "config.json").read_text())["dtype"])


def evaluate_base(evaluation: Evaluation, events: Queue) -> EvaluateManifest:
    """Evaluate the one model that training starts from, or take the results of another run.

    They are the same for every run that starts there and is evaluated alike, so they are kept in
    the cache, where others wait for them. The predictions are copied into each run.
    """
    inputs = _digest_of_inputs(evaluation)
    definitions = hash_parts(*(definition_in(file) for file in sorted(evaluation.items.values())))
    directory = evaluation.context.cache / "evaluations" / f"{inputs}-{definitions}"
    file = directory / "evaluate.json"
    # Another run may be measuring it.
    events.put({"event": "waiting", "what": "base: awaiting its results"})
    with exclusive(directory / ".lock", patience=math.inf):
        if file.is_file() and not _drop_damaged(directory, evaluation.context.console):
            cached = load_manifest(file, EvaluateManifest)
            results = cached.model_copy(update={"num_generated": 0, "timings": Timings()})
            (label,) = evaluation.models
            evaluation.context.console.print(
                f"          {label}: evaluated already, for another run"
            )
        else:
            # Graded by other graders before: a journal's name says what its responses depend on.
            own = directory / "responses"
            for journals in directory.parent.glob(f"{inputs}-*/responses"):
                if journals != own:  # which an interrupted evaluation has left
                    shutil.copytree(journals, own, dirs_exist_ok=True)
            for_all = replace(evaluation, out=directory)
            measures = evaluation.spec.heldout is not None
            with evaluation.context.training_slot() if measures else nullcontext():
                losses = measure_heldout(for_all, events)
            results = evaluate_models(for_all, losses, events)
            save_manifest(file, results)
            write_checksums(directory, 0)
    predictions = directory / "predictions"
    if predictions.is_dir():
        shutil.copytree(predictions, evaluation.out / "predictions", dirs_exist_ok=True)
    return results


def _drop_damaged(directory: Path, console: RunConsole) -> bool:
    """Remove the results of an evaluation if one of its files is not what was written.

    Responses that are whole are kept: they are graded again.
    """
    damaged = damaged_file_of(directory, 0)
    if damaged is None:
        return False
    console.print(f"warning: {directory / damaged}: damaged; the base model is evaluated anew")
    for path in (directory / "predictions", directory / FOLDER):
        shutil.rmtree(path, ignore_errors=True)
    for name in ("evaluate.json", damaged):
        (directory / name).unlink(missing_ok=True)
    return True


def _digest_of_inputs(evaluation: Evaluation) -> str:
    """Hash everything that the responses of one model depend on, and its held-out losses."""
    ((_, model),) = evaluation.models.items()
    return hash_parts(
        fingerprint(Path(model)),
        evaluation.spec.model_dump_json(),
        evaluation.spec.data_digest(),
        *(content_in(evaluation.items[name]) for name in sorted(evaluation.items)),
        evaluation.trained_style,
        str(evaluation.validation_dir),
        str(evaluation.dtype),
    )


def merge_results(first: EvaluateManifest, second: EvaluateManifest) -> EvaluateManifest:
    """Merge the results of different models, as if it had been one evaluation."""
    return EvaluateManifest(
        models=first.models | second.models,
        num_generated=first.num_generated + second.num_generated,
        num_resumed=first.num_resumed + second.num_resumed,
        timings=first.timings + second.timings,
    )


def warn_of_other_formats(prepared: Prepared, model: ModelResult, console: RunConsole) -> None:
    """Warn of benchmarks whose prompts had another format than the trained model's data.

    `general` and the tasks of lm-evaluation-harness are what the model could do before, and are
    meant to be unlike the training data.
    """
    prompts = {
        name: result.prompt
        for name, result in model.benchmarks.items()
        if name != GENERAL_BENCHMARK and not name.startswith(PREFIX)
    }
    hashes = {name: prompt.hash for name, prompt in prompts.items()}
    trained = {source.format_hash for source in prepared.sources}
    for name in different_formats(trained, hashes):
        prompt = prompts[name]
        console.print(
            f"warning: {name} was asked in another prompt format ({prompt.style}, "
            f"{prompt.num_bos} BOS) than the training data's ({prepared.prompt_style}, "
            f"{prepared.num_bos} BOS)"
        )
