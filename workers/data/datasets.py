"""Training examples: where they come from, and what makes a record one.

Without a word from the spec, a record is read by the names that are usual for its kind:

- ``messages``, ``conversations`` or ``conversation``: a whole conversation, turns of ``role`` and
  ``content``, or of ``from`` and ``value`` (ShareGPT);
- ``prompt`` and ``response`` or ``completion``: texts, or the turns before the response and those
  to learn (TRL);
- ``instruction``, perhaps ``input`` or ``context``, ``output`` or ``response`` (Alpaca, Dolly);

and beside them ``system`` or ``system_prompt``, ``tools`` or ``functions``, ``weight``, ``train``.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.workers.catalogs.datasets import (
    DATASETS,
    DatasetEntry,
    data_suffix,
    local_files,
    record_name,
)
from deft.workers.common.checksums import hash_files
from deft.workers.common.example import Example, Message
from deft.workers.common.hub import NotOnThisNodeError
from deft.workers.common.names import import_attribute
from deft.workers.common.text import printable
from deft.workers.data.conversations import (
    BadValueError,
    is_empty,
    read_conversation,
    read_tools,
    read_weight,
    require_key,
    require_text,
    unread_keys,
)
from deft.workers.data.readers import BadRecord, Record, is_index, read_records

if TYPE_CHECKING:
    from deft.workers.dataset_spec import ColumnsSpec, SourceSpec


STORED_TURN = re.compile(
    r"(?:<\|im_start\|>user\n|<\|start_header_id\|>user<\|end_header_id\|>\n\n)"
    r"(.*?)(?:<\|im_end\|>|<\|eot_id\|>)",
    re.DOTALL,
)
"""The user's turn in a prompt that is stored with its control tokens, as in `medical`."""


@dataclass
class ReadingNotes:
    """What was passed over in the records that were read."""

    unread: Counter[str] = field(default_factory=Counter)
    """Fields that nothing reads, by the number of records in which they hold something; those of a
    turn are written ``messages[].field``."""
    num_weightless: int = 0
    """Records of which no turn has weight, which are left out."""
    num_weighted: int = 0
    """Records whose loss is multiplied by another number than 0 or 1 in some turn."""
    num_lacking: int = 0
    """Examples that were asked for and are not there."""


def describe_notes(notes: ReadingNotes) -> str:
    """Say what was passed over in one line; empty if nothing was."""
    fields = ", ".join(f"{name} ({count:,})" for name, count in sorted(notes.unread.items()))
    notices = [f"fields that nothing reads, with their number: {fields}"] * bool(fields)
    if notes.num_weightless:
        notices.append(f"{notes.num_weightless:,} records without a turn of weight are left out")
    if notes.num_weighted:
        notices.append(f"records with weights other than 0 and 1: {notes.num_weighted:,}")
    if notes.num_lacking:
        notices.append(f"{notes.num_lacking:,} fewer examples than its size asks for")
    return printable("; ".join(notices))


def read_examples(
    spec: SourceSpec, notes: ReadingNotes | None = None
) -> Iterator[Example | BadRecord]:
    """Yield the examples that ``spec`` names, in order, and what was found in the place of one.

    Args:
        spec: what to read.
        notes: told what is passed over in records of one's own.

    Raises:
        ValueError: the source as a whole cannot be read.
    """
    notes = notes or ReadingNotes()
    num_examples = 0
    for example in _all_examples(spec, notes):
        yield example
        num_examples += isinstance(example, Example)
        if num_examples == spec.size:
            return
    notes.num_lacking = max(0, (spec.size or 0) - num_examples)


def _all_examples(spec: SourceSpec, notes: ReadingNotes) -> Iterator[Example | BadRecord]:
    entry = DATASETS.get(spec.name)
    if entry is not None and entry.generate is not None:
        generate = import_attribute(entry.generate)
        yield from generate(spec.split, spec.size or entry.size)
        return
    if entry is not None:
        entry = replace(entry, keep_whitespace=spec.keep_whitespace)
    for record in _records(spec, entry):
        if isinstance(record, BadRecord):
            yield record
            continue
        columns = _columns(spec.columns, entry, record.fields)
        example = to_example(record, columns, entry)
        if entry is None and isinstance(example, Example):
            _note_unread(record, columns, notes.unread)
        if example is None:
            notes.num_weightless += 1
            continue
        if isinstance(example, Example) and has_weights(example):
            notes.num_weighted += 1
        yield example


def _note_unread(record: Record, columns: Mapping[str, str], unread: Counter[str]) -> None:
    """Count the fields of a record that hold something and that nothing reads."""
    read = {name for column in columns.values() for name in (column, column.split(".")[0])}
    for name, value in record.fields.items():
        if name not in read and not is_empty(value) and not is_index(name):
            unread[name] += 1
    for name in record.skipped:
        unread[name] += not is_index(name)
    for key in ("messages", "prompt", "response"):
        if key in columns:
            value = record.fields.get(columns[key])
            unread.update({f"{columns[key]}[].{name}" for name in unread_keys(value)})


def _records(spec: SourceSpec, entry: DatasetEntry | None) -> Iterator[Record | BadRecord]:
    path = spec.local_path
    if path is None:
        yield from _read_hub(entry.hub if entry and entry.hub else spec.name, spec)
        return
    has_columns = spec.columns is not None or entry is not None
    columns = _columns(spec.columns, entry, {}).values() if has_columns else ()
    needed = {column.split(".")[0] for column in columns}
    for file in _split_files(path, spec.split):
        records = read_records(file, record_name(file, path), needed)
        yield from map(_without_nulls, records) if data_suffix(file) == ".parquet" else records


def _without_nulls(record: Record | BadRecord) -> Record | BadRecord:
    """Take out the keys below columns that are null: a table has them where rows differ."""
    if isinstance(record, BadRecord):
        return record
    fields = {column: _values_of(value) for column, value in record.fields.items()}
    return Record(record.where, fields, record.skipped)


def _values_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _values_of(inner) for key, inner in value.items() if inner is not None}
    return [_values_of(inner) for inner in value] if isinstance(value, list) else value


def _split_files(path: Path, split: str) -> list[Path]:
    """Return the files of ``split``, told apart by name as the hub does; any name is `train`."""
    if not path.is_dir():
        return [path]
    from datasets.data_files import DataFilesList, get_data_patterns

    patterns: Mapping[Any, list[str]] = get_data_patterns(str(path))
    patterns_by_split = {str(key): value for key, value in patterns.items()}
    if split not in patterns_by_split:
        raise ValueError(
            f"{path}: no files of split {split!r}; there are: {', '.join(patterns_by_split)}"
        )
    split_files = set(
        map(Path, DataFilesList.from_patterns(patterns_by_split[split], base_path=str(path)))
    )
    return [file for file in local_files(path) if file.absolute() in split_files]


def _read_hub(name: str, spec: SourceSpec) -> Iterator[Record | BadRecord]:
    rows = load_hub(name, spec)
    for number, fields in enumerate(rows, start=1):
        yield _without_nulls(Record(f"{name}: row {number}", fields))


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
        missing = isinstance(error, ConnectionError)
        raise (NotOnThisNodeError if missing else ValueError)(
            f"dataset {name!r} ({', '.join(which)}) could not be had from the Hugging Face hub: "
            f"{reason:.300} Copy its files to this machine and give their directory as "
            "dataset.name (for math and medical as dataset.data_dir)."
        ) from None


READING_RULES = 3
"""Number of the rules by which records become examples; another one reads data anew."""


def content_digest(spec: SourceSpec) -> str:
    """Return digits that change with what `read_examples` makes, without making examples."""
    digest = hashlib.sha256(str(READING_RULES).encode())
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
    """Return SHA-256 over the names and contents of the data files at ``path``."""
    return hash_files((record_name(file, path), file) for file in local_files(path))


CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
RESPONSE_COLUMNS = ("response", "completion")
"""What the text to learn is called, beside `output` in records of Alpaca's kind."""


def _columns(
    given: ColumnsSpec | None, entry: DatasetEntry | None, fields: Mapping[str, Any]
) -> dict[str, str]:
    """Return which column holds what; without a word from the spec, by the usual names."""
    if given is not None:
        return given.named
    if entry is not None:
        return {"prompt": entry.prompt, "response": entry.response}

    def first(*names: str) -> str | None:
        return next((name for name in names if not is_empty(fields.get(name))), None)

    response = next((name for name in RESPONSE_COLUMNS if name in fields), None)
    conversation = next((name for name in CONVERSATION_COLUMNS if name in fields), None)
    if conversation is not None and (response is None or "prompt" not in fields):
        columns = {"messages": conversation}
    elif "instruction" in fields and "prompt" not in fields and (response or "output" in fields):
        columns = {"prompt": "instruction", "response": response or "output"}
        context = first("input", "context")
        columns |= {"input": context} if context is not None else {}
    else:
        columns = {"prompt": "prompt", "response": response or "response"}
    beside = {
        "system": first("system", "system_prompt"),
        "tools": first("tools", "functions"),
        "weight": first("weight"),
        "train": first("train"),
    }
    return columns | {key: name for key, name in beside.items() if name is not None}


def to_example(
    record: Record, columns: Mapping[str, str], entry: DatasetEntry | None
) -> Example | BadRecord | None:
    """Return what ``record`` says to learn, what is wrong with it, or None if it has no weight."""
    fields = record.fields
    instruction = entry.instruction if entry is not None else ""
    try:
        weights = {
            key: _value(fields, columns[key]) for key in ("weight", "train") if key in columns
        }
        weight = read_weight(weights, "the record")
        if weight == 0:
            return None
        if "messages" in columns:
            turns = read_conversation(_value(fields, columns["messages"]), columns["messages"])
        else:
            turns = (
                *_prompt_turns(fields, columns, entry),
                *_response_turns(fields, columns),
            )
        system = _value(fields, columns["system"]) if "system" in columns else None
        if not is_empty(system):
            text = require_text(system, repr(columns["system"]))
            turns = ({"role": "system", "content": text}, *turns)
        tools = read_tools(_value(fields, columns["tools"])) if "tools" in columns else ()
        _require_question_and_answer(turns)
        if not any(turn.get("weight", 1) for turn in turns if turn["role"] == "assistant"):
            return None
        if weight != 1:
            turns = tuple(
                {**turn, "weight": turn.get("weight", 1.0) * weight}
                if turn["role"] == "assistant"
                else turn
                for turn in turns
            )
    except BadValueError as error:
        return BadRecord(record.where, error.kind, str(error))
    *prompt, last = turns
    final = {key: value for key, value in last.items() if key not in ("role", "content")}
    return Example(record.where, tuple(prompt), last["content"], instruction, final, tools)


def has_weights(example: Example) -> bool:
    """Tell whether the loss of some turn is multiplied by another number than 0 or 1."""
    turns = (*example.prompt, example.final)
    return any(turn.get("weight", 1) not in (0, 1) for turn in turns)


def _prompt_turns(
    fields: Mapping[str, Any], columns: Mapping[str, str], entry: DatasetEntry | None
) -> tuple[Message, ...]:
    """Read the turns before the response; none of them carries loss."""
    value = _value(fields, columns["prompt"])
    if isinstance(value, list):
        turns = read_conversation(value, columns["prompt"])
        return tuple(
            {**turn, "weight": 0.0} if turn["role"] == "assistant" else turn for turn in turns
        )
    text = require_text(value, repr(columns["prompt"]))
    if "input" in columns:
        text += "\n\n" + require_text(_value(fields, columns["input"]), repr(columns["input"]))
    if entry is not None:
        text = stored_question(text, entry.instruction, keep_whitespace=entry.keep_whitespace)
    return ({"role": "user", "content": text},)


def _response_turns(fields: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Message, ...]:
    value = _value(fields, columns["response"])
    if isinstance(value, list):
        return read_conversation(value, columns["response"])
    return ({"role": "assistant", "content": require_text(value, repr(columns["response"]))},)


def _require_question_and_answer(turns: tuple[Message, ...]) -> None:
    if not turns or turns[-1]["role"] != "assistant":
        got = repr(turns[-1]["role"]) if turns else "none"
        raise BadValueError("no response", f"the last turn must be the assistant's, got {got}")
    if len(turns) == 1:
        raise BadValueError("no prompt", "there is no turn before the assistant's")


def stored_question(text: str, instruction: str, *, keep_whitespace: bool = False) -> str:
    """Return the bare question in a stored prompt, without control tokens and ``instruction``.

    A prompt style adds both again, the control tokens of the model at hand and BOS once.
    """
    turns = STORED_TURN.findall(text)
    question = str(turns[-1] if turns else text)
    if keep_whitespace:
        return question.removesuffix(f"\n{instruction}") if instruction else question
    return question.strip().removesuffix(instruction).rstrip()


def _value(fields: Mapping[str, Any], column: str) -> Any:
    """Return the value at a dotted path; `extra_info.` may be missing, as in flat copies."""
    if column in fields:
        return fields[column]
    value: Any = fields
    parts = column.split(".")
    if parts[0] == "extra_info" and "extra_info" not in fields:
        parts = parts[1:]
    for part in parts:
        value = require_key(value if isinstance(value, Mapping) else {}, part)
    return value
