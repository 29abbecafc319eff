"""`deft run --dry-run`: estimate what a run would do and cost, without starting it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from deft.objectives.spec import ObjectiveSpec
from deft.platform.commands.cost_model import (
    CARDS,
    FITS,
    GIB,
    MFU,
    USABLE,
    DataSize,
    Memory,
    fit,
    gpu_hours,
    itemsize,
    trained_parameters,
    trained_tokens,
    training_flops,
    worker_memory,
)
from deft.platform.config.loading import preset_note
from deft.platform.config.presets import recognized
from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import PrepareManifest
from deft.platform.records.run_directory import RunDirectory
from deft.workers.catalogs.datasets import DATASETS, data_suffix, local_files
from deft.workers.catalogs.models import MODELS, ModelDimensions, read_dimensions
from deft.workers.common.example import Example
from deft.workers.common.text import plural
from deft.workers.data.datasets import read_examples
from deft.workers.data.prepare import known_counts
from deft.workers.dataset_spec import DatasetSpec
from deft.workers.spec import TrainingSpec

SAMPLE = 2000
"""Records of a local file that are read to guess at all of them."""
CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 20


def show_plan(spec: ExperimentSpec, root: Path, console: RunConsole) -> None:
    """Print the plan of ``spec``: data, steps, memory, time and placement.

    Raises:
        ValueError: a local file of data cannot be read, or an objective cannot be used.
    """
    check_own_objectives([spec.objective])
    training = spec.training
    model = dimensions_of(spec.model.name)
    data = data_size(spec, root)
    rows = [["run", f"{spec.run_name} in {root}"]]
    if note := preset_note(spec):
        rows.append(["preset", note])
    if data is None:
        rows.append(["data", "unknown until the data has been read once"])
    else:
        tokens = trained_tokens(training, data)
        steps = training.num_steps(data.num_examples, data.num_tokens)
        rows += [
            ["data", f"{data.num_examples:,} examples, {data.num_tokens:,} tokens ({data.source})"],
            [
                "steps",
                f"{steps:,} of {training.batch_size} examples, {_passes(training, steps, data)}",
            ],
            ["tokens", f"{tokens:,} trained on, prompts included"],
        ]
    if model is None:
        rows.append(["model", "its sizes are unknown here, so memory and time are not planned"])
    else:
        trained = trained_parameters(model, training.lora)
        part = "" if training.lora is None else f", {trained:,} of them trained"
        rows.append(["model", f"{model.num_parameters:,} parameters{part}"])
    rows += placement(spec)
    console.table("plan", ["", ""], rows, left=True)
    if model is not None:
        show_memory(spec, model, console)
        if data is not None:
            show_time(spec, model, trained_tokens(training, data), console)


def show_protocols(
    spec: ExperimentSpec, load_other: Callable[[], ExperimentSpec], console: RunConsole
) -> None:
    """Print line by line what differs between the protocols `paper` and `fair`.

    Args:
        spec: under its own protocol.
        load_other: makes the same experiment under the other one.
        console: where to print.
    """
    try:
        other = load_other()
    except UserError as error:
        console.print(f"the other protocol is no choice here: {error}")
        return
    by_protocol = {each.protocol: _flat(each.model_dump(mode="json")) for each in (spec, other)}
    paper, fair = by_protocol["paper"], by_protocol["fair"]
    rows = [
        [key, *(json.dumps(each[key]) if key in each else "-" for each in (paper, fair))]
        for key in dict.fromkeys((*paper, *fair))
        if key != "protocol" and paper.get(key) != fair.get(key)
    ]
    mark = {spec.protocol: " ←"}
    columns = ["", *(f"{name}{mark.get(name, '')}" for name in ("paper", "fair"))]
    console.table("protocols", columns, rows, left=True)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def check_own_objectives(objectives: Iterable[ObjectiveSpec]) -> None:
    """Check the objectives that are given by import paths; only those need torch."""
    for objective in objectives:
        if objective.info is None:
            from deft.objectives.check import check_own_objective

            check_own_objective(objective)


def placement(spec: ExperimentSpec) -> list[list[str]]:
    """Tabulate which process would run where."""
    workers, stage = spec.training.num_workers, spec.training.resolved_zero_stage
    rows = [
        ["prepare", "1 Ray task; tokenizing takes all CPUs of its node"],
        ["train", f"{plural(workers, 'Ray Train worker')}, a GPU or a CPU each · ZeRO-{stage}"],
    ]
    names = [benchmark.name for benchmark in spec.evaluation.suite]
    where = "vLLM on Ray, a GPU or all CPUs · " + ", ".join(names)
    return [*rows, ["evaluate", where if names else "no benchmark"]]


def show_memory(spec: ExperimentSpec, model: ModelDimensions, console: RunConsole) -> None:
    """Print the memory on each device for every ZeRO stage."""
    training = spec.training
    chosen, other = (
        [
            worker_memory(model, training, spec.objective.name, stage=s, checkpointed=c)
            for s in range(4)
        ]
        for c in (training.gradient_checkpointing, not training.gradient_checkpointing)
    )
    rows = [
        [field.name, *(_gib(getattr(memory, field.name)) for memory in chosen)]
        for field in fields(Memory)
    ]
    rows.append(["total", *(_gib(memory.total) for memory in chosen)])
    label = f"total {'without' if training.gradient_checkpointing else 'with'} recomputation"
    rows.append([label, *(_gib(memory.total) for memory in other)])
    tokens = training.micro_batch_size * training.max_length
    title = (
        f"GiB on each of {training.num_workers} devices, {tokens:,} tokens a forward pass, "
        f"{8 * itemsize(training)}-bit weights"
    )
    mark = {training.resolved_zero_stage: " ←"}
    console.table(title, ["", *(f"ZeRO-{s}{mark.get(s, '')}" for s in range(4))], rows)


def show_time(
    spec: ExperimentSpec, model: ModelDimensions, tokens: int, console: RunConsole
) -> None:
    """Print GPU-hours on cards by name."""
    training = spec.training
    flops = training_flops(model, training, tokens)
    chosen = training.resolved_zero_stage
    needed = {
        stage: worker_memory(model, spec.training, spec.objective.name, stage=stage).total
        for stage in range(chosen, 4)
    }
    rows = []
    for card in CARDS:
        hours = gpu_hours(flops, card)
        fitting = [stage for stage, size in needed.items() if fit(size, card) == FITS]
        fits = fit(needed[chosen], card)
        if fitting and chosen not in fitting:
            fits += f"; zero_stage {fitting[0]} does"
        wall = f"{hours / training.num_workers:,.2f}"
        rows.append([card.name, f"{card.memory:.0f} GiB", fits, f"{hours:,.2f}", wall])
    title = (
        f"training, {flops:.3g} operations at an assumed {MFU:.0%} of the bfloat16 peak; "
        f"{1 - USABLE:.0%} of the memory is kept free"
    )
    columns = ["", "memory", "", "GPU-hours", f"hours on {training.num_workers}"]
    console.table(title, columns, rows)


def data_size(spec: ExperimentSpec, root: Path) -> DataSize | None:
    """Return the size of the training data: as prepared, or from a sample or the catalog.

    None if only the hub knows, and of a mixture that was not prepared yet.
    """
    cache = root.resolve() / "cache"
    manifest = RunDirectory(root.resolve(), spec).manifest(PrepareManifest)
    if manifest is not None:
        prepared = manifest.prepared
        return DataSize(prepared.num_examples, prepared.num_tokens, "as prepared")
    counts = known_counts(
        spec.dataset, spec.model, max_length=spec.training.max_length, seed=spec.seed, cache=cache
    )
    if counts:
        return DataSize(counts["num_examples"], counts["num_tokens"], "as prepared")
    if spec.dataset.mixture:
        return None
    if spec.dataset.local_path is not None:
        return sampled_size(spec.dataset, spec.training.max_length)
    entry = DATASETS.get(spec.dataset.name)
    if entry is None:
        return None
    total = min(spec.dataset.size or entry.size, entry.size)
    left = total - spec.dataset.num_validation(total)
    each = min(entry.mean_tokens, spec.training.max_length)
    return DataSize(left, left * each, f"expected, about {each} tokens each")


def sampled_size(dataset: DatasetSpec, max_length: int) -> DataSize:
    """Estimate the size of local data from its first records and its bytes."""
    sample = list(islice(read_examples(dataset), SAMPLE))
    good = [example for example in sample if isinstance(example, Example)]
    lengths = [sum(len(m["content"]) for m in e.prompt) + len(e.response) for e in good]
    total = len(good)
    if len(sample) == SAMPLE and dataset.local_path is not None:
        characters = max(sum(lengths) // max(len(good), 1), 1)
        records = sum(count_records(file, characters) for file in local_files(dataset.local_path))
        total = min(records * len(good) // SAMPLE, dataset.size or records)
    left = total - dataset.num_validation(total)
    tokens = [
        min(length / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS, max_length) for length in lengths
    ]
    mean = sum(tokens) / max(len(tokens), 1)
    source = f"estimated, {CHARACTERS_PER_TOKEN} characters a token"
    if num_bad := len(sample) - len(good):
        source += f"; {plural(num_bad, 'bad record')} in the first {len(sample):,}"
    return DataSize(left, round(left * mean), source)


def count_records(file: Path, characters: int) -> int:
    """Estimate the number of records in a file from the ``characters`` of a record's texts."""
    suffix = data_suffix(file)
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(file).metadata.num_rows)
    if suffix == ".json":
        return file.stat().st_size // characters
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as content:
        return sum(block.count(b"\n") for block in iter(lambda: content.read(2**20), b""))


def dimensions_of(name: str) -> ModelDimensions | None:
    """Return a model's sizes from the catalog or from its config.json, here or on the hub."""
    if (known := recognized(name)) is not None:
        return MODELS[known].dimensions
    file = Path(name) / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else _hub_config(name)
    return read_dimensions(config)


def _hub_config(name: str) -> dict[str, Any]:
    """Read config.json from the hub's cache, or by one request; empty if neither works at once."""
    from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return dict(json.loads(Path(cached).read_text()))
    if constants.HF_HUB_OFFLINE:
        return {}
    # Not hf_hub_download: it tries for half a minute, and a plan is no reason to wait.
    request = Request(hf_hub_url(name, "config.json"))
    if token := get_token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request, timeout=3) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return {}


def _passes(training: TrainingSpec, steps: int, data: DataSize) -> str:
    if training.tokens is None:
        return plural(training.epochs, "epoch")
    return f"{steps * training.batch_size / max(data.num_examples, 1):.2g} passes over the data"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"
