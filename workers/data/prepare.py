"""The prepare stage: model and token ids on disk, each made once and found again by its content."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deft.workers.catalogs.datasets import DATASETS
from deft.workers.catalogs.models import MODELS
from deft.workers.common.checksums import cached_directory, damaged_file_of, hash_parts
from deft.workers.common.example import Example
from deft.workers.common.files import write_atomic
from deft.workers.common.hub import resolve_commit
from deft.workers.data.chat import count_bos, format_hash
from deft.workers.data.datasets import (
    ReadingNotes,
    content_digest,
    describe_notes,
    digest_files,
    read_examples,
)
from deft.workers.data.example_store import (
    BAD_RECORDS_FILE,
    BATCH_SIZE,
    EXAMPLES_OF_ROWS_FILE,
    NOISY_FILE,
    TOO_LONG,
    TRUNCATED,
    iterate_examples,
    link_tables,
    open_rows,
    open_tables,
    read_bad_records,
    write_examples,
)
from deft.workers.data.readers import BadRecord, BadRecordLog
from deft.workers.dataset_spec import BadRecords, DatasetSpec, SourceSpec
from deft.workers.modeling.hub_models import prepare_hub_model
from deft.workers.modeling.model_files import (
    build_smollm2,
    build_tiny,
    resolve_directory,
    resolve_name,
)
from deft.workers.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deft.workers.data.tokenization import RowEncoder

Source = TypeVar("Source", bound=SourceSpec)

STORE_FORMAT = "3"
"""Changes with what is stored of examples and rows: what an older version stored is left alone."""
EXAMPLES_FILE = "examples.arrow"
COUNTS_FILE = "counts.json"
PASSED_OVER_FILE = "passed_over.txt"


@dataclass(frozen=True)
class SourceCounts:
    """What one data set gave to the rows."""

    name: str
    """What it is called, see `deft.workers.dataset_spec.SourceSpec.title`."""
    revision: str | None
    """The commit that was read; None for what is not from the hub, and if the hub did not say."""
    format_hash: str
    """Identifies the format as rendered: data sets differ in the instructions of their tasks."""
    num_examples: int
    """Training examples."""
    num_validation_examples: int
    """Held-out examples."""
    num_noisy_examples: int
    """Training examples with the response of another one."""
    num_tokens: int
    """Tokens in the training examples, prompts included."""
    num_target_tokens: int
    """Tokens among them that carry loss."""

    def __str__(self) -> str:
        return (
            f"{self.name} {self.num_examples:,} examples with {self.num_target_tokens:,} "
            "target tokens"
        )


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation start from."""

    model_dir: str
    examples_dir: str
    """The examples before tokenization, see `deft.workers.data.example_store`."""
    rows_dir: str
    """Training rows, see `deft.workers.data.example_store.open_rows`: input_ids and labels, int32
    lists of equal length, and weights, float32 lists as long or null."""
    validation_dir: str
    """Held-out rows, the same and target_bytes (int64): UTF-8 bytes of the text that a row's target
    tokens spell. No row if nothing is held out."""
    num_examples: int
    """Training examples that fit `max_length`."""
    num_validation_examples: int
    """Examples that are held out; none of them asks what a training example asks."""
    num_too_long: int
    """Examples that were left out because they did not fit."""
    num_truncated: int
    """Examples that were cut on the right to fit."""
    num_noisy_examples: int
    """Training examples with the response of another one, see `deft.workers.data.noise`."""
    bad_records: dict[str, int]
    """Records that were left out because they could not be used, by what was wrong with them."""
    bad_records_file: str
    """A line of JSON for each record that was left out or cut, and why."""
    num_tokens: int
    """Tokens in the training examples, prompts included."""
    num_target_tokens: int
    """Tokens among them that carry loss."""
    prompt_style: str
    """How prompts were rendered."""
    format_hash: str
    """Identifies the format as rendered, see `deft.workers.data.chat.format_hash`; of a mixture
    that of its first data set."""
    num_bos: int
    """BOS tokens that a row starts with."""
    passed_over: str = ""
    """What nothing reads in the records and what they lack, in one line; see `ReadingNotes`."""
    sources: tuple[SourceCounts, ...] = ()
    """The same by data set: one, or those of a mixture."""
    model_revision: str | None = None
    """The commit of a model from the hub; None for others, and if the hub did not say."""


def prepare(
    dataset: DatasetSpec, model: ModelSpec, *, max_length: int, seed: int, cache: Path
) -> Prepared:
    """Build or find the model's directory and the tokenized rows under ``cache``.

    Raises:
        ValueError: the data or the model cannot be used; the message says why.
    """
    _silence_libraries()
    from transformers import AutoTokenizer

    from deft.workers.modeling.loading import require_embeddings, require_trainable

    key = _plan_key(dataset, model, max_length, seed)
    dataset, model = pinned(dataset), pinned_model(model)
    examples_dirs = prepare_examples(dataset, cache / "examples")
    examples_dir = join_examples(examples_dirs, cache / "examples")
    model_dir = prepare_model(model, examples_dir, seed, cache / "models")
    require_trainable(model_dir, max_length=max_length)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    directory = prepare_rows(
        dataset, examples_dirs, tokenizer, max_length=max_length, seed=seed, cache=cache
    )
    require_embeddings(model_dir, directory / "train")
    counts = json.loads((directory / COUNTS_FILE).read_text())
    write_atomic(cache / "counts" / f"{key}.json", json.dumps(counts))
    sources = tuple(
        SourceCounts(source.title, source.revision, prompt_hash, **by_source)
        for source, prompt_hash, by_source in zip(
            dataset.sources, counts.pop("format_hashes"), counts.pop("sources"), strict=True
        )
    )
    return Prepared(
        model_dir=str(model_dir),
        examples_dir=str(examples_dir),
        rows_dir=str(directory / "train"),
        validation_dir=str(directory / "validation"),
        bad_records_file=str(directory / BAD_RECORDS_FILE),
        prompt_style=dataset.prompt_style,
        passed_over=_passed_over(dataset, examples_dirs, sources),
        sources=sources,
        model_revision=model.revision,
        **counts,
    )


def is_whole(prepared: Prepared, cache: Path) -> bool:
    """Tell whether what ``prepared`` names under ``cache`` is there, and as it was written."""
    directories = {Path(prepared.model_dir), Path(prepared.examples_dir)}
    directories |= {Path(rows).parent for rows in (prepared.rows_dir, prepared.validation_dir)}
    return all(
        damaged_file_of(directory, 0) is None
        if directory.is_relative_to(cache)
        else directory.is_dir()
        for directory in directories
    )


def pinned(dataset: DatasetSpec) -> DatasetSpec:
    """Return ``dataset`` with the commit of each data set from the hub as its revision."""
    if dataset.mixture:
        mixture = tuple(map(_pinned_source, dataset.mixture))
        return dataset.model_copy(update={"mixture": mixture})
    return _pinned_source(dataset)


def _pinned_source(source: Source) -> Source:
    if source.hub_id is None:
        return source
    commit = resolve_commit("dataset", source.hub_id, source.revision)
    return source.model_copy(update={"revision": commit or source.revision})


def pinned_model(model: ModelSpec) -> ModelSpec:
    """Return ``model`` with its commit as its revision, if it comes from the hub."""
    name = resolve_name(model.name)
    if model.local_path is not None or (model.name in MODELS and MODELS[model.name].hub is None):
        return model
    commit = resolve_commit("model", name, model.revision)
    return model.model_copy(update={"revision": commit or model.revision})


def _passed_over(
    dataset: DatasetSpec, examples_dirs: Sequence[Path], counts: Sequence[SourceCounts]
) -> str:
    """Say in one line what nothing reads in the records of each data set, and what they lack."""
    lines = [
        f"{source.title}: {line}"
        for source, directory in zip(dataset.sources, examples_dirs, strict=True)
        if (line := (directory / PASSED_OVER_FILE).read_text())
    ]
    num_drawn = sum(each.num_examples + each.num_validation_examples for each in counts)
    if dataset.mixture and num_drawn < (dataset.size or 0):
        lines.append(f"the weights allow {num_drawn:,} of the {dataset.size:,} examples asked for")
    return "; ".join(lines)


def known_counts(
    dataset: DatasetSpec, model: ModelSpec, *, max_length: int, seed: int, cache: Path
) -> dict[str, Any] | None:
    """Return the counts of an earlier `prepare` of the same, without a tokenizer; None if none."""
    file = cache / "counts" / f"{_plan_key(dataset, model, max_length, seed)}.json"
    return dict(json.loads(file.read_text())) if file.is_file() else None


def _plan_key(dataset: DatasetSpec, model: ModelSpec, max_length: int, seed: int) -> str:
    settings = dataset.model_dump_json(exclude={"name", "data_dir"})
    sources = []
    for source in dataset.sources:
        path = source.local_path
        sources += [source.name, ""] if path is None else ["", digest_files(path)]
    name = str(Path(model.name).absolute()) if Path(model.name).is_dir() else model.name
    return hash_parts(
        *sources, settings, name, str(model.revision), str((max_length, seed)), STORE_FORMAT
    )


def prepare_tokenizer(
    dataset: DatasetSpec, model: ModelSpec, *, seed: int, cache: Path
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of ``model``, without its weights where those are on the hub.

    Raises:
        ValueError: it cannot be had.
    """
    _silence_libraries()
    from transformers import AutoTokenizer

    if model.name in MODELS and MODELS[model.name].hub is None:
        # Only the tiny model's tokenizer is trained on the examples.
        needed = model.name == "tiny"
        examples = cache / "examples"
        examples_dir = (
            join_examples(prepare_examples(dataset, examples), examples) if needed else None
        )
        return AutoTokenizer.from_pretrained(
            prepare_model(model, examples_dir, seed, cache / "models")
        )
    name = resolve_name(model.name)
    try:
        # Else a tokenizer with code of its own would ask on the terminal whether to run it.
        return AutoTokenizer.from_pretrained(
            name, revision=model.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer of {name!r} could not be had: {' '.join(str(error).split()):.300} "
            "Copy its files to this machine and give their directory as model."
        ) from None


def prepare_examples(dataset: DatasetSpec, cache: Path) -> list[Path]:
    """Return the directory of the examples of each of ``dataset.sources``, read once.

    Raises:
        ValueError: bad records are refused and there are some, or there is no example at all.
    """
    return [prepare_source(source, dataset.bad_records, cache) for source in dataset.sources]


def join_examples(directories: Sequence[Path], cache: Path) -> Path:
    """Return the directory of the examples in all ``directories``, one after the other."""
    if len(directories) == 1:
        return directories[0]
    joined = cache / hash_parts(*(directory.name for directory in directories))
    return cached_directory(joined, lambda aside: link_tables(aside, directories))


def prepare_source(source: SourceSpec, bad_records: BadRecords, cache: Path) -> Path:
    """Return the directory of the examples of one data set, read under ``cache`` once.

    Raises:
        ValueError: see `prepare_examples`.
    """
    settings = source.model_dump(include={"size", "split", "columns", "config", "keep_whitespace"})
    # Files are named by their content, wherever they are; which columns are read by default by the
    # name of a dataset.
    name = source.name if source.name in DATASETS or source.local_path is None else ""
    key = (STORE_FORMAT, name, json.dumps(settings), content_digest(source))
    directory = cache / hash_parts(*key)

    def build(aside: Path) -> None:
        with (aside / BAD_RECORDS_FILE).open("w", encoding="utf-8") as file:
            log = BadRecordLog(file)
            notes = ReadingNotes()
            write_examples(usable_batches(source, log, notes), aside / EXAMPLES_FILE)
        write_atomic(aside / PASSED_OVER_FILE, describe_notes(notes))
        write_atomic(aside / COUNTS_FILE, json.dumps(log.counts))

    entry = DATASETS.get(source.name)
    was_read = directory.is_dir()
    # In generated data nothing can be bad.
    if not was_read and (entry is None or entry.generate is None):
        require_usable(source, bad_records)
    cached_directory(directory, build)
    if was_read and bad_records == "refuse" and json.loads((directory / COUNTS_FILE).read_text()):
        require_usable(source, bad_records)
    return directory


def require_usable(source: SourceSpec, bad_records: BadRecords) -> None:
    """Read all of ``source`` without writing anything.

    Raises:
        ValueError: there is no example in it, or a bad record and those are refused.
    """
    log = BadRecordLog()
    num_examples = sum(map(len, usable_batches(source, log, ReadingNotes())))
    if log.counts and (bad_records == "refuse" or num_examples == 0):
        remedy = (
            "dataset.columns says what columns are called; dataset.bad_records=drop leaves bad "
            "records out and lists them in a file"
        )
        raise ValueError(log.message(source.label, remedy))
    if num_examples == 0:
        raise ValueError(f"{source.label}: no example in it; give a file with at least one")


def usable_batches(
    source: SourceSpec, log: BadRecordLog, notes: ReadingNotes
) -> Iterator[list[Example]]:
    """Yield the examples of ``source`` in batches; ``log`` gets the records that are none."""
    records = read_examples(source, notes)
    while batch := list(islice(records, BATCH_SIZE)):
        for record in batch:
            if isinstance(record, BadRecord):
                log.add(record)
        yield [record for record in batch if isinstance(record, Example)]


def prepare_tokenized(examples_dir: Path, encoder: RowEncoder, cache: Path) -> Path:
    """Return the directory of one data set's examples as rows, made under ``cache`` once.

    They depend on the examples, the tokenizer and the format alone, so that runs of other seeds,
    objectives, mixtures, noise or held-out sets share them.
    """
    from deft.workers.data.tokenization import tokenize

    tokenizer, row_format = encoder.tokenizer, encoder.row_format
    instruction = open_tables(examples_dir)[0]["instruction"]
    prompt_hash = format_hash(tokenizer, row_format.style, instruction)
    tokenizer_hash = hash_parts(tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template))
    settings = json.dumps(asdict(row_format))
    key = (STORE_FORMAT, examples_dir.name, tokenizer_hash, prompt_hash, settings)

    def build(aside: Path) -> None:
        shutil.copyfile(examples_dir / BAD_RECORDS_FILE, aside / BAD_RECORDS_FILE)
        tokenize(examples_dir, encoder, aside)
        rows = open_tables(aside)
        problems = Counter(bad.kind for bad in read_bad_records(aside / BAD_RECORDS_FILE))
        counts = {
            "problems": problems,
            "format_hash": prompt_hash,
            "num_bos": count_bos(tokenizer, rows[0]["input_ids"]) if len(rows) else 0,
        }
        write_atomic(aside / COUNTS_FILE, json.dumps(counts))

    return cached_directory(cache / hash_parts(*key), build)


def require_accepted(dataset: DatasetSpec, label: str, bad_records_file: Path) -> None:
    """Refuse what tokenizing left out or cut of the data called ``label``, if ``dataset`` does.

    Raises:
        ValueError: there are such examples; the message names some.
    """
    bad, long = BadRecordLog(), BadRecordLog()
    for record in read_bad_records(bad_records_file):
        (long if record.kind in (TOO_LONG, TRUNCATED) else bad).add(record)
    if bad.counts and dataset.bad_records == "refuse":
        remedy = "dataset.bad_records=drop leaves them out and lists them in a file"
        raise ValueError(bad.message(label, remedy))
    if long.counts and dataset.too_long == "refuse":
        remedy = (
            "training.max_length allows more; dataset.too_long may be drop, truncate or "
            "truncate_left"
        )
        raise ValueError(long.message(label, remedy))


def prepare_rows(
    dataset: DatasetSpec,
    examples_dirs: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    cache: Path,
) -> Path:
    """Return the directory with `train`, `validation` and their counts, made under ``cache`` once.

    Raises:
        ValueError: the prompt style does not fit, or examples are refused.
    """
    from deft.workers.data.splits import write_splits
    from deft.workers.data.tokenization import RowEncoder, RowFormat

    row_format = RowFormat(dataset.prompt_style, max_length, dataset.truncation_side)
    encoder = RowEncoder.build(tokenizer, row_format)
    tokenized = [prepare_tokenized(each, encoder, cache / "tokenized") for each in examples_dirs]
    for source, directory in zip(dataset.sources, tokenized, strict=True):
        require_accepted(dataset, source.label, directory / BAD_RECORDS_FILE)
    weights = [getattr(source, "weight", None) for source in dataset.sources]
    drawn = [weights, dataset.size] if dataset.mixture else []
    settings = json.dumps([dataset.validation, dataset.noise, seed, *drawn])
    names = [directory.name for directory in tokenized]

    def build(aside: Path) -> None:
        by_source = write_splits(
            dataset,
            tokenized,
            [len(open_tables(each)) for each in examples_dirs],
            tokenizer,
            max_length=max_length,
            seed=seed,
            directory=aside,
        )
        totals = {name: sum(each[name] for each in by_source) for name in by_source[0]}
        counts = {**totals, **_join_records(tokenized, aside), "sources": by_source}
        write_atomic(aside / COUNTS_FILE, json.dumps(counts))

    return cached_directory(cache / "rows" / hash_parts(STORE_FORMAT, *names, settings), build)


def _join_records(tokenized: Sequence[Path], directory: Path) -> dict[str, Any]:
    """Write all records that were left out or cut to one file; return the counts of `Prepared`."""
    counts = [json.loads((each / COUNTS_FILE).read_text()) for each in tokenized]
    with (directory / BAD_RECORDS_FILE).open("wb") as joined:
        for each in tokenized:
            with (each / BAD_RECORDS_FILE).open("rb") as records:
                shutil.copyfileobj(records, joined)
    kinds = sum((Counter(each["problems"]) for each in counts), Counter[str]())
    return {
        "num_too_long": kinds.pop(TOO_LONG, 0),
        "num_truncated": kinds.pop(TRUNCATED, 0),
        "bad_records": kinds,
        "format_hash": counts[0]["format_hash"],
        "format_hashes": [each["format_hash"] for each in counts],
        "num_bos": counts[0]["num_bos"],
    }


def training_examples(prepared: Prepared) -> Iterator[Example]:
    """Yield the examples behind the training rows, in their order."""
    import numpy as np

    positions = np.load(Path(prepared.rows_dir) / EXAMPLES_OF_ROWS_FILE)
    return iterate_examples(open_tables(Path(prepared.examples_dir)).select(positions))


def training_example_ids(examples_dir: str, rows_dir: str, indices: Sequence[int]) -> list[str]:
    """Name the examples behind some training rows: file and line, where they have them."""
    import numpy as np

    positions = np.load(Path(rows_dir) / EXAMPLES_OF_ROWS_FILE)[indices]
    return list(open_tables(Path(examples_dir)).select(positions)["id"])


def noisy_rows(rows_dir: Path, first: int, number: int) -> dict[int, tuple[list[int], list[int]]]:
    """Return ids and labels of the noisy ones of ``number`` examples from ``first`` on.

    Returns:
        By the position of the example.
    """
    import numpy as np

    positions = np.load(Path(rows_dir) / EXAMPLES_OF_ROWS_FILE)
    is_asked = (positions >= first) & (positions < first + number)
    chosen = np.flatnonzero(np.load(Path(rows_dir) / NOISY_FILE) & is_asked)
    return {
        int(position): (row["input_ids"], row["labels"])
        for position, row in zip(positions[chosen], open_rows(rows_dir).select(chosen), strict=True)
    }


def prepare_model(model: ModelSpec, examples_dir: Path | None, seed: int, cache: Path) -> Path:
    """Return the directory of ``model``: a local one as it is, all others under ``cache``.

    ``examples_dir`` is named after the content of the examples in it; the tiny model needs it.
    """
    if model.name not in MODELS or MODELS[model.name].hub:
        if model.local_path is not None:
            return resolve_directory(model.name)
        return prepare_hub_model(resolve_name(model.name), model.revision, cache)
    if model.name == "tiny":
        assert examples_dir is not None
        directory = cache / f"tiny-{hash_parts(examples_dir.name, str(seed))}"
        examples = open_tables(examples_dir)
        return cached_directory(
            directory, lambda aside: build_tiny(aside, iterate_examples(examples), seed)
        )
    return cached_directory(cache / model.name, build_smollm2)


def _silence_libraries() -> None:
    """Stop the bars and guesses of libraries: the platform's own say what is in progress."""
    import torch

    # Else DeepSpeed, which transformers imports, says that it found no GPU.
    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    import datasets
    from transformers.utils import logging as transformers_logging

    # The hub's client warns at each of many tries; in the end the error says it once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
