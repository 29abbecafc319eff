"""Training examples: where they come from, and what makes a record one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.workers.catalogs.datasets import (
    DATASETS,
    DatasetEntry,
    local_files,
    record_name,
)
from deft.workers.common.example import Example, Message
from deft.workers.common.names import import_attribute
from deft.workers.common.text import has_surrogates
from deft.workers.data.readers import BadRecord, Record, read_records

if TYPE_CHECKING:
    from deft.workers.spec import ColumnsSpec, SourceSpec


STORED_TURN = re.compile(
    r"(?:<\|im_start\|>user\n|<\|start_header_id\|>user<\|end_header_id\|>\n\n)"
    r"(.*?)(?:<\|im_end\|>|<\|eot_id\|>)",
    re.DOTALL,
)
"""The user's turn in a prompt that is stored with its control tokens, as in `medical`."""


def read_examples(spec: SourceSpec) -> Iterator[Example | BadRecord]:
    """The examples that ``spec`` names, in order, and what was found in the place of one.

    Raises:
        ValueError: the source as a whole cannot be read.
    """
    num_examples = 0
    for found in _all_examples(spec):
        yield found
        num_examples += isinstance(found, Example)
        if num_examples == spec.size:
            return


def _all_examples(spec: SourceSpec) -> Iterator[Example | BadRecord]:
    entry = DATASETS.get(spec.name)
    if entry is not None and entry.generate is not None:
        generate = import_attribute(entry.generate)
        yield from generate(spec.split, spec.size or entry.size)
        return
    for record in _records(spec, entry):
        if isinstance(record, BadRecord):
            yield record
        else:
            yield to_example(record, spec.columns, entry)


def _records(spec: SourceSpec, entry: DatasetEntry | None) -> Iterator[Record | BadRecord]:
    path = spec.local_path
    if path is None:
        yield from _read_hub(entry.hub if entry and entry.hub else spec.name, spec)
        return
    named = spec.columns is not None or entry is not None
    columns = _columns(spec.columns, entry, {}).values() if named else ()
    needed = {column.split(".")[0] for column in columns}
    for file in _split_files(path, spec.split):
        yield from read_records(file, record_name(file, path), needed)


def _split_files(path: Path, split: str) -> list[Path]:
    """The files of ``split``, told apart by their names as the hub does; any name is `train`."""
    if not path.is_dir():
        return [path]
    from datasets.data_files import DataFilesList, get_data_patterns

    patterns: Mapping[Any, list[str]] = get_data_patterns(str(path))
    named = {str(key): value for key, value in patterns.items()}
    if split not in named:
        raise ValueError(f"{path}: no files of split {split!r}; there are: {', '.join(named)}")
    found = set(map(Path, DataFilesList.from_patterns(named[split], base_path=str(path))))
    return [file for file in local_files(path) if file.absolute() in found]


def _read_hub(name: str, spec: SourceSpec) -> Iterator[Record | BadRecord]:
    rows = load_hub(name, spec)
    for number, fields in enumerate(rows, start=1):
        yield Record(f"{name}: row {number}", fields)


def load_hub(name: str, spec: SourceSpec) -> Any:
    """Return a split of a dataset on the hub as memory-mapped `datasets.Dataset`.

    Raises:
        ValueError: it cannot be had.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return datasets.load_dataset(name, spec.config, split=spec.split, revision=spec.revision)
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        which = [
            f"{key} {value}"
            for key in ("config", "split", "revision")
            if (value := getattr(spec, key))
        ]
        raise ValueError(
            f"dataset {name!r} ({', '.join(which)}) could not be had from the Hugging Face hub: "
            f"{reason:.300} Copy its files to this machine and give their directory as "
            "dataset.name (for math and medical as dataset.data_dir)."
        ) from None


def content_digest(spec: SourceSpec) -> str:
    """Hexadecimal digits that change with what `read_examples` reads, without making examples."""
    digest = hashlib.sha256()
    entry = DATASETS.get(spec.name)
    if entry is not None and entry.generate is not None:
        digest.update(version("reasoning-gym").encode())
    elif spec.local_path is None:
        rows = load_hub(entry.hub if entry and entry.hub else spec.name, spec)
        digest.update(rows._fingerprint.encode())
    else:
        digest.update(digest_files(spec.local_path).encode())
    return digest.hexdigest()


def digest_files(path: Path) -> str:
    """SHA-256 over the names and contents of the data files at ``path``."""
    digest = hashlib.sha256()
    for file in local_files(path):
        digest.update(record_name(file, path).encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _columns(
    given: ColumnsSpec | None, entry: DatasetEntry | None, fields: Mapping[str, Any]
) -> dict[str, str]:
    """Which column holds what; without a word from the spec, by the usual names."""
    if given is not None:
        return given.named
    if entry is not None:
        return {"prompt": entry.prompt, "response": entry.response}
    if "messages" in fields and "prompt" not in fields:
        return {"messages": "messages"}
    usual = {"prompt": "prompt", "response": "response"}
    return usual | ({"system": "system"} if fields.get("system") is not None else {})


def to_example(
    record: Record, given: ColumnsSpec | None, entry: DatasetEntry | None
) -> Example | BadRecord:
    """What ``record`` says to learn, or what is wrong with it."""
    columns = _columns(given, entry, record.fields)
    try:
        if "messages" in columns:
            prompt, response = _conversation(_value(record.fields, columns["messages"]))
        else:
            text = _text(record.fields, columns["prompt"])
            if entry is not None:
                text = stored_question(text, entry.instruction)
            prompt = ({"role": "user", "content": text},)
            response = _text(record.fields, columns["response"])
            if "system" in columns:
                system = _text(record.fields, columns["system"])
                prompt = ({"role": "system", "content": system}, *prompt)
    except _BadValueError as error:
        return BadRecord(record.where, error.kind, str(error))
    return Example(record.where, prompt, response, entry.instruction if entry else "")


def stored_question(text: str, instruction: str) -> str:
    """The bare question in a stored prompt, without control tokens and ``instruction``.

    A prompt style adds both again, the control tokens of the model at hand and BOS once.
    """
    turns = STORED_TURN.findall(text)
    return str(turns[-1] if turns else text).strip().removesuffix(instruction).rstrip()


class _BadValueError(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _value(fields: Mapping[str, Any], column: str) -> Any:
    """The value at a dotted path; `extra_info.` may be missing throughout, as in flat copies."""
    value: Any = fields
    parts = column.split(".")
    if parts[0] == "extra_info" and "extra_info" not in fields:
        parts = parts[1:]
    if column in fields:
        parts = [column]
    for part in parts:
        if not isinstance(value, Mapping) or part not in value:
            known = list(map(str, value)) if isinstance(value, Mapping) else []
            near = get_close_matches(part, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            there = f"There are: {', '.join(known)}." if known else "There is nothing in it."
            raise _BadValueError("missing field", f"key {part!r} is missing; {hint}{there}")
        value = value[part]
    return value


def _text(fields: Mapping[str, Any], column: str) -> str:
    return _require_text(_value(fields, column), repr(column))


def _require_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        got = "null" if value is None else f"{type(value).__name__} {value!r:.80}"
        raise _BadValueError("wrong type", f"{what} must be a text, got {got}")
    if not value.strip():
        raise _BadValueError("empty text", f"{what} must not be empty, got {value!r:.80}")
    if has_surrogates(value):
        raise _BadValueError("invalid UTF-8", f"{what} holds half of a surrogate pair")
    return value


def _conversation(value: Any) -> tuple[tuple[Message, ...], str]:
    """Prompt and response of a list of messages; the last one is the response."""
    if not isinstance(value, list) or not value:
        got = type(value).__name__ if not isinstance(value, list) else "none"
        raise _BadValueError("wrong type", f"'messages' must be a list of turns, got {got}")
    turns: list[Message] = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            got = type(turn).__name__
            raise _BadValueError("wrong type", f"turn {number} must be an object, got {got}")
        role = _require_text(_value(turn, "role"), f"role of turn {number}")
        content = _require_text(_value(turn, "content"), f"content of turn {number}")
        turns.append({"role": role, "content": content})
    if turns[-1]["role"] != "assistant":
        message = f"the last turn must be the assistant's, got {turns[-1]['role']!r}"
        raise _BadValueError("no response", message)
    if len(turns) == 1:
        raise _BadValueError("no prompt", "there is no turn before the assistant's")
    return tuple(turns[:-1]), turns[-1]["content"]
