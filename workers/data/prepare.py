"""The prepare stage: model and token ids on disk, each made once and found again by its content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.workers.catalogs.datasets import DATASETS
from deft.workers.catalogs.models import MODELS
from deft.workers.common.example import Example
from deft.workers.common.files import atomic_directory, write_atomic
from deft.workers.data.chat import count_bos, format_hash
from deft.workers.data.datasets import content_digest, digest_files, read_examples
from deft.workers.data.example_store import iterate_examples, open_examples, write_examples
from deft.workers.data.readers import BadRecord, Tally
from deft.workers.modeling.model_files import (
    build_smollm2,
    build_tiny,
    resolve_directory,
    resolve_name,
)
from deft.workers.spec import DatasetSpec, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES_FILE = "examples.arrow"
BAD_RECORDS_FILE = "bad_records.jsonl"
COUNTS_FILE = "counts.json"


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation start from."""

    model_dir: str
    examples_dir: str
    """The examples before tokenisation, see `deft.workers.data.example_store`."""
    rows_dir: str
    """Training rows, a `datasets` directory: input_ids and labels, int32 lists of equal length."""
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
    """Identifies the format as rendered, see `deft.workers.data.chat.format_hash`."""
    num_bos: int
    """BOS tokens that a row starts with."""


def prepare(
    dataset: DatasetSpec, model: ModelSpec, *, max_length: int, seed: int, cache: Path
) -> Prepared:
    """Build or find the model's directory and the tokenised rows under ``cache``.

    Raises:
        ValueError: the data or the model cannot be used; the message says why.
    """
    _silence_libraries()
    from transformers import AutoTokenizer

    from deft.workers.modeling.loading import require_embeddings, require_trainable

    examples_dir = prepare_examples(dataset, cache / "examples")
    model_dir = prepare_model(model, examples_dir, seed, cache / "models")
    require_trainable(model_dir, max_length=max_length)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    directory = prepare_rows(
        dataset, examples_dir, tokenizer, max_length=max_length, seed=seed, cache=cache / "rows"
    )
    require_embeddings(model_dir, directory / "train")
    counts = json.loads((directory / COUNTS_FILE).read_text())
    key = _plan_key(dataset, model, max_length, seed)
    write_atomic(cache / "counts" / f"{key}.json", json.dumps(counts))
    return Prepared(
        model_dir=str(model_dir),
        examples_dir=str(examples_dir),
        rows_dir=str(directory / "train"),
        validation_dir=str(directory / "validation"),
        bad_records_file=str(directory / BAD_RECORDS_FILE),
        prompt_style=dataset.prompt_style,
        **counts,
    )


def known_counts(
    dataset: DatasetSpec, model: ModelSpec, *, max_length: int, seed: int, cache: Path
) -> dict[str, Any] | None:
    """The counts of an earlier `prepare` of the same, found without a tokenizer; None if none."""
    file = cache / "counts" / f"{_plan_key(dataset, model, max_length, seed)}.json"
    return dict(json.loads(file.read_text())) if file.is_file() else None


def _plan_key(dataset: DatasetSpec, model: ModelSpec, max_length: int, seed: int) -> str:
    path = dataset.local_path
    content = digest_files(path) if path is not None else dataset.name
    settings = dataset.model_dump_json(exclude={"name", "data_dir"})
    name = str(Path(model.name).absolute()) if Path(model.name).is_dir() else model.name
    return _hash(
        content, dataset.name if path is None else "", settings, name, str((max_length, seed))
    )


def prepare_tokenizer(
    dataset: DatasetSpec, model: ModelSpec, *, seed: int, cache: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer of ``model`` alone, without its weights where those are on the hub.

    Raises:
        ValueError: it cannot be had.
    """
    _silence_libraries()
    from transformers import AutoTokenizer

    if model.name in MODELS and MODELS[model.name].hub is None:
        # Only the tiny model's tokenizer is trained on the examples.
        needed = model.name == "tiny"
        examples_dir = prepare_examples(dataset, cache / "examples") if needed else None
        return AutoTokenizer.from_pretrained(
            prepare_model(model, examples_dir, seed, cache / "models")
        )
    name = resolve_name(model.name)
    try:
        # Else a tokenizer with code of its own would ask on the terminal whether to run it.
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer of {name!r} could not be had: {' '.join(str(error).split()):.300} "
            "Copy its files to this machine and give their directory as model."
        ) from None


def prepare_examples(dataset: DatasetSpec, cache: Path) -> Path:
    """The directory of the examples that ``dataset`` names, read under ``cache`` once.

    Raises:
        ValueError: bad records are refused and there are some, or there is no example at all.
    """
    settings = dataset.model_dump(include={"size", "split", "columns"})
    # Files are named by their content, wherever they are; which columns are read by default by the
    # name of a dataset.
    name = dataset.name if dataset.name in DATASETS or dataset.local_path is None else ""
    directory = cache / _hash(name, json.dumps(settings), content_digest(dataset))
    if not directory.is_dir():
        entry = DATASETS.get(dataset.name)
        if entry is None or entry.generate is None:  # in generated data nothing can be bad
            require_usable(dataset)
        with atomic_directory(directory) as aside:
            with (aside / BAD_RECORDS_FILE).open("w", encoding="utf-8") as file:
                tally = Tally(file)
                good = _without_bad(read_examples(dataset), tally)
                write_examples(good, aside / EXAMPLES_FILE)
            write_atomic(aside / COUNTS_FILE, json.dumps(tally.counts))
    elif dataset.bad_records == "refuse" and json.loads((directory / COUNTS_FILE).read_text()):
        require_usable(dataset)
    return directory


def require_usable(dataset: DatasetSpec) -> None:
    """Read all of ``dataset`` without writing anything.

    Raises:
        ValueError: there is no example in it, or a bad record and those are refused.
    """
    tally = Tally()
    num_examples = sum(1 for _ in _without_bad(read_examples(dataset), tally))
    source = dataset.data_dir or dataset.name
    if tally.counts and (dataset.bad_records == "refuse" or num_examples == 0):
        remedy = (
            "dataset.columns says what columns are called; dataset.bad_records=drop leaves bad "
            "records out and lists them in a file"
        )
        raise ValueError(tally.message(source, remedy))
    if num_examples == 0:
        raise ValueError(f"{source}: there is no example in it")


def _without_bad(found: Iterable[Example | BadRecord], tally: Tally) -> Iterator[Example]:
    for item in found:
        if isinstance(item, BadRecord):
            tally.add(item)
        else:
            yield item


def prepare_rows(
    dataset: DatasetSpec,
    examples_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    cache: Path,
) -> Path:
    """The directory with `train`, `validation` and their counts, tokenised under ``cache`` once.

    Raises:
        ValueError: the prompt style does not fit, or examples are refused.
    """
    import datasets
    import numpy as np

    from deft.workers.data.noise import exchange_responses
    from deft.workers.data.tokenization import (
        add_target_bytes,
        column,
        count_tokens,
        hold_out,
        tokenize,
    )

    examples = open_examples(examples_dir / EXAMPLES_FILE)
    prompt_hash = format_hash(tokenizer, dataset.prompt_style, examples[0]["instruction"])
    rule = ("prompt_style", "bad_records", "too_long", "validation", "noise")
    settings = [*(getattr(dataset, key) for key in rule), max_length, seed, prompt_hash]
    tokenizer_hash = _hash(tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template))
    directory = cache / _hash(examples_dir.name, tokenizer_hash, json.dumps(settings))
    if directory.is_dir():
        return directory
    source = dataset.data_dir or dataset.name
    with atomic_directory(directory) as aside:
        shutil.copyfile(examples_dir / BAD_RECORDS_FILE, aside / BAD_RECORDS_FILE)
        with (aside / BAD_RECORDS_FILE).open("a", encoding="utf-8") as file:
            bad, long = Tally(file), Tally(file)
            rows, lengths = tokenize(
                examples,
                tokenizer,
                style=dataset.prompt_style,
                max_length=max_length,
                too_long=dataset.too_long,
                bad=bad,
                long=long,
                cache_file=str(aside / "all.arrow"),
            )
        if bad.counts and dataset.bad_records == "refuse":
            remedy = "dataset.bad_records=drop leaves them out and lists them in a file"
            raise ValueError(bad.message(source, remedy))
        if long.counts and dataset.too_long == "refuse":
            remedy = "training.max_length allows more; dataset.too_long may be drop or truncate"
            raise ValueError(long.message(source, remedy))
        groups = column(rows, "group")
        held_out = hold_out(groups, dataset.num_validation(len(rows)), seed)
        rows = rows.remove_columns("group")
        train, is_noisy = exchange_responses(
            rows.select(np.flatnonzero(~held_out)),
            share=dataset.noise,
            seed=seed,
            max_length=max_length,
            cache_file=str(aside / "noisy.arrow"),
        )
        if dataset.noise and not is_noisy.any():
            raise ValueError(
                f"dataset.noise: {dataset.noise:g} of {len(train):,} training examples leaves none "
                "that could get another one's response"
            )
        validation = add_target_bytes(rows.select(np.flatnonzero(held_out)), tokenizer)
        for split, name in ((train, "train"), (validation, "validation")):
            np.save(aside / f"{name}_examples.npy", column(split, "example"))
            # Without the number nothing at all is written of a split that has no rows.
            shards = {} if len(split) else {"num_shards": 1}
            split.remove_columns("example").save_to_disk(aside / name, **shards)
        np.save(aside / "train_noisy.npy", is_noisy)
        num_tokens, num_target_tokens = count_tokens(datasets.load_from_disk(str(aside / "train")))
        earlier = Counter(json.loads((examples_dir / COUNTS_FILE).read_text()))
        counts = {
            "num_examples": len(train),
            "num_validation_examples": len(validation),
            **asdict(lengths),
            "num_noisy_examples": int(is_noisy.sum()),
            "bad_records": earlier + bad.counts,
            "num_tokens": num_tokens,
            "num_target_tokens": num_target_tokens,
            "format_hash": prompt_hash,
            "num_bos": count_bos(tokenizer, rows[0]["input_ids"]) if len(rows) else 0,
        }
        write_atomic(aside / COUNTS_FILE, json.dumps(counts))
        (aside / "all.arrow").unlink()
        (aside / "noisy.arrow").unlink(missing_ok=True)
    return directory


def training_examples(prepared: Prepared) -> Iterator[Example]:
    """The examples behind the training rows, in their order."""
    import numpy as np

    examples = open_examples(Path(prepared.examples_dir) / EXAMPLES_FILE)
    return iterate_examples(examples.select(np.load(f"{prepared.rows_dir}_examples.npy")))


def training_example_ids(examples_dir: str, rows_dir: str, indices: Sequence[int]) -> list[str]:
    """Names of the examples behind some training rows: file and line, where they have them."""
    import numpy as np

    examples = open_examples(Path(examples_dir) / EXAMPLES_FILE)
    return list(examples.select(np.load(f"{rows_dir}_examples.npy")[indices])["id"])


def noisy_rows(rows_dir: Path, number: int) -> dict[int, tuple[list[int], list[int]]]:
    """Token ids and labels of the noisy ones among the first ``number`` examples, by position."""
    import datasets
    import numpy as np

    positions = np.load(f"{rows_dir}_examples.npy")
    chosen = np.flatnonzero(np.load(f"{rows_dir}_noisy.npy") & (positions < number))
    rows = datasets.load_from_disk(str(rows_dir)).select(chosen)
    return {
        int(position): (row["input_ids"], row["labels"])
        for position, row in zip(positions[chosen], rows, strict=True)
    }


def prepare_model(model: ModelSpec, examples_dir: Path | None, seed: int, cache: Path) -> Path:
    """The local directory of ``model``, built under ``cache`` if it is one of ours.

    ``examples_dir`` is named after the content of the examples in it; the tiny model needs it.
    """
    if model.name not in MODELS or MODELS[model.name].hub:
        return resolve_directory(model.name)
    if model.name == "tiny":
        assert examples_dir is not None
        directory = cache / f"tiny-{_hash(examples_dir.name, str(seed))}"
        examples = open_examples(examples_dir / EXAMPLES_FILE)
        return _built(directory, lambda aside: build_tiny(aside, iterate_examples(examples), seed))
    return _built(cache / model.name, build_smollm2)


def _built(directory: Path, build: Callable[[Path], None]) -> Path:
    """``directory``, filled by ``build`` if it is not there yet."""
    if not directory.is_dir():
        with atomic_directory(directory) as aside:
            build(aside)
    return directory


def _silence_libraries() -> None:
    """No bars and no guesses of theirs: what is in progress is said by this platform's own."""
    import torch

    # Else DeepSpeed, which transformers imports, says that it found no GPU.
    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    import datasets
    from transformers.utils import logging as transformers_logging

    # The hub's client warns at each of many tries; in the end the error says it once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]
