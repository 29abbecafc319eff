"""The items of a benchmark: read from a local file, the hub or its generator, kept in the cache."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from deft.evaluators.benchmarks.base import Benchmark, HubTable, Item, RecordFields
from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.definition import content_in, items_file_name
from deft.evaluators.grading.records import check_record
from deft.evaluators.spec import BenchmarkSpec
from deft.workers.common.checksums import hash_parts
from deft.workers.common.files import DamageWarning, write_atomic
from deft.workers.common.hub import NotOnThisNodeError
from deft.workers.data.readers import BadRecord, read_records

ITEM_SUFFIXES = (".jsonl", ".json", ".parquet")
"""Suffixes of files in a data folder, in the order in which they are looked for."""


def prepare_items(spec: BenchmarkSpec, data_dir: str | None, cache: Path) -> Path:
    """Write the items that ``spec`` names to a file in ``cache``, see `items_file_name`.

    Raises:
        ValueError: there is no data, or a row of it cannot be read; the message says what to do.
    """
    return write_items(spec, load_items(spec, data_dir), cache)


def write_items(spec: BenchmarkSpec, items: Iterable[Item], cache: Path) -> Path:
    """Write the items of ``spec``, as `load_items` returns them; see `prepare_items`."""
    text = "".join(json.dumps(asdict(item), ensure_ascii=True) + "\n" for item in items)
    name = items_file_name(get_benchmark(spec.name), hash_parts(text))
    path = cache / "items" / name
    if path.exists() and not is_whole_items_file(path):
        warnings.warn(f"{path}: damaged; it is written anew", DamageWarning, stacklevel=2)
        path.unlink()
    if not path.exists():
        write_atomic(path, text)
    return path


def is_whole_items_file(path: Path) -> bool:
    """Tell whether a file of items is there and has the content that its name has the digest of."""
    if not path.is_file():
        return False
    return content_in(str(path)).endswith(hash_parts(path.read_bytes()))


def read_items(path: Path) -> list[Item]:
    """Read the items in a file that `prepare_items` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return [Item(**{**row, "prompt": tuple(row["prompt"])}) for row in rows]


def load_items(spec: BenchmarkSpec, data_dir: str | None) -> list[Item]:
    """Load the items that ``spec`` names; see `prepare_items`."""
    benchmark = get_benchmark(spec.name)
    if benchmark.harness is not None:
        from deft.evaluators.harness.loading import harness_items  # the library is optional

        items, where = iter(harness_items(benchmark, spec)), benchmark.source
    else:
        records, where = _records(benchmark, spec, data_dir)
        items = _read(benchmark, records, where)
    if benchmark.several_sources:
        chosen = take_in_turn(list(items), spec.size)
    else:
        chosen = list(islice(items, spec.size))
    if not chosen or (spec.size is not None and len(chosen) < spec.size):
        requested = "" if spec.size is None else f", and {spec.size} are asked for"
        raise ValueError(f"{benchmark.name}: there are {len(chosen)} items in {where}{requested}")
    seen: set[str] = set()
    for item in chosen:
        if item.id in seen:
            raise ValueError(f"{benchmark.name}: the id {item.id!r} is twice in {where}")
        seen.add(item.id)
    return chosen


def take_in_turn(items: Sequence[Item], size: int | None) -> list[Item]:
    """Choose ``size`` items, one of each source in turn; they keep the order of ``items``."""
    rank: dict[str, int] = {}
    ranked = []
    for position, item in enumerate(items):
        rank[item.source] = rank.get(item.source, -1) + 1
        ranked.append((rank[item.source], position))
    chosen = sorted(position for _, position in sorted(ranked)[:size])
    return [items[position] for position in chosen]


def _read(benchmark: Benchmark, records: Iterable[RecordFields], where: str) -> Iterator[Item]:
    """Turn records into items; a record that cannot be read is a ValueError with its row."""
    for number, record in enumerate(records):
        try:
            item = benchmark.read(record, number)
        except KeyError as error:
            raise ValueError(
                f"{benchmark.name}: row {number + 1} of {where} has no field {error}; "
                f"there are: {', '.join(map(str, record))}"
            ) from None
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{benchmark.name}: row {number + 1} of {where} cannot be read: {error}"
            ) from None
        if item is None:
            continue
        try:
            _check(item, item.grader or benchmark.grader)
        except ValueError as error:
            raise ValueError(f"{benchmark.name}: row {number + 1} of {where}: {error}") from None
        yield item


def _check(item: Item, grader: str) -> None:
    """Raise ValueError if an item asks nothing, has no gold, or one that its grader cannot use."""
    if not item.prompt or not all(str(turn["content"]).strip() for turn in item.prompt):
        raise ValueError("the question is empty")
    if not isinstance(item.gold, str) or not item.gold.strip():
        raise ValueError(f"gold: expected a text that is not empty, found {item.gold!r}")
    check_record(grader, {"response": "", "gold": item.gold, "options": item.options})


def _records(
    benchmark: Benchmark, spec: BenchmarkSpec, data_dir: str | None
) -> tuple[Iterable[RecordFields], str]:
    """Open the rows of a benchmark; returns them and the place they are from."""
    if spec.file is not None:
        return read_file(Path(spec.file)), spec.file
    table = benchmark.records
    if not isinstance(table, HubTable):
        return table(), benchmark.source
    if data_dir is None:
        return _read_hub(benchmark.name, table), table.repo
    for suffix in ITEM_SUFFIXES:
        path = Path(data_dir, benchmark.name + suffix)
        if path.is_file():
            return read_file(path), str(path)
    raise ValueError(
        f"{benchmark.name}: there is no {benchmark.name}{'|'.join(ITEM_SUFFIXES)} in the data "
        f"folder {data_dir}; put the rows of {table.repo} there, or leave data_dir out to load "
        "them from the Hugging Face hub"
    )


def read_file(path: Path) -> Iterator[RecordFields]:
    """Read the rows of a JSONL or Parquet file, or of a JSON file that holds a list.

    A JSON object of lists is read as one list, each row with its key as `source`.

    Raises:
        ValueError: the file or a row of it is not what its suffix says.
    """
    if path.suffix == ".json" and path.read_bytes().lstrip()[:1] == b"{":
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from None
        for source, rows in content.items():
            yield from ({"source": source, **row} for row in rows)
        return
    for record in read_records(path, str(path), ()):
        if isinstance(record, BadRecord):
            raise ValueError(f"{record.where}: {record.message}")
        yield record.fields


def _read_hub(name: str, table: HubTable) -> Iterable[RecordFields]:
    import datasets
    from huggingface_hub import hf_hub_download

    try:
        if table.file is not None:
            return read_file(Path(hf_hub_download(table.repo, table.file, repo_type="dataset")))
        rows: Iterable[RecordFields] = datasets.load_dataset(
            table.repo, table.subset, split=table.split
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        missing = isinstance(error, ConnectionError)
        raise (NotOnThisNodeError if missing else ValueError)(
            f"{name}: could not download {table.repo} from the Hugging Face hub ({reason:.200}). "
            f"Without it, put its rows as {name}.jsonl or {name}.parquet into a folder and name "
            "that folder: evaluation.data_dir in a run file, --data-dir on the command line"
        ) from None
    return rows
