"""Records out of files, each with the place where it stands, and those that are none.

JSON Lines, JSON arrays and CSV are read record by record rather than by a table library: that is
what lets a bad one be named by file and line, and keeps a text such as "NA" or "007" what it is.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, TextIO, cast

from deft.workers.catalogs.datasets import data_suffix
from deft.workers.common.text import has_surrogates, printable

SHOWN_PER_KIND = 3
"""Bad records of each kind that a message names."""
MAX_CSV_FIELD = 2**30
"""Longest value of CSV in characters."""
MAX_UNPACKED = 200
"""Times its size on disk that a file of data may have unpacked; texts have 2 to 20."""
UNPACKED_ANYWAY = 2**28
"""Bytes that any file may have unpacked."""
PARQUET_BATCH = 1000
"""Rows of Parquet that are read at a time, where `MAX_BATCH_BYTES` allows it."""
MAX_BATCH_BYTES = 2**29
"""Bytes that a batch of Parquet has at most, even if each of its rows repeats the largest value."""
INDEX_COLUMN = re.compile(r"Unnamed: \d+(\.\d+)?|__index_level_\d+__")
"""What pandas calls the index of a table where it has no name."""


@dataclass(frozen=True)
class Record:
    """One object or row, as it was found."""

    where: str
    """File and line, or file and row; the first is 1."""
    fields: dict[str, Any]
    skipped: tuple[str, ...] = field(default=(), compare=False)
    """Columns that were not asked for, and hence not read."""


@dataclass(frozen=True)
class BadRecord:
    """What stood where a usable record was expected."""

    where: str
    kind: str
    """One of a few words to count by."""
    message: str
    """What is wrong, and what was expected."""


class BadRecordLog:
    """Counts bad records by kind, remembers the first of each, and writes all of them to a file."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.shown: list[BadRecord] = []
        self._file = file

    def add(self, bad: BadRecord) -> None:
        """Count ``bad``."""
        self.counts[bad.kind] += 1
        if self.counts[bad.kind] <= SHOWN_PER_KIND:
            self.shown.append(bad)
        if self._file is not None:
            self._file.write(json.dumps(asdict(bad)) + "\n")

    def message(self, source: str, remedy: str) -> str:
        """Name the first bad records of ``source``, count the others, and end with ``remedy``."""
        total = self.counts.total()
        records = "record" if total == 1 else "records"
        lines = [f"{source}: {total:,} bad {records} ({describe_counts(self.counts)})"]
        lines += [printable(f"  {bad.where}: {bad.message}") for bad in self.shown]
        if rest := total - len(self.shown):
            lines.append(f"  and {rest:,} more")
        return "\n".join([*lines, remedy])


def describe_counts(counts: dict[str, int]) -> str:
    """Write ``counts`` as ``2 empty, 1 wrong type``."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def read_records(path: Path, name: str, columns: Collection[str]) -> Iterator[Record | BadRecord]:
    """Yield every record of a file, in order; blank lines are passed over.

    Args:
        path: a file whose name ends in one of `SUFFIXES`, gzipped if it ends in .gz besides.
        name: what records call it, followed by the line.
        columns: top-level columns that are needed; Parquet reads no others if it has all of them.
            None at all means every column.

    Raises:
        ValueError: the file as a whole cannot be read.
    """
    try:
        match data_suffix(path):
            case ".parquet":
                yield from _read_parquet(path, name, columns)
            case ".csv":
                yield from _read_csv(path, name, ",")
            case ".tsv":
                yield from _read_csv(path, name, "\t")
            case ".json" if _starts_with_bracket(path):
                yield from _read_json_array(path, name)
            case _:
                yield from _read_json_lines(path, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a gzip file, or damaged: {error}; unpack it") from None


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked if it is gzipped."""
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    return cast("IO[bytes]", io.BufferedReader(_Unpacked(path), 2**20))


class _Unpacked(io.RawIOBase):
    """Content of a gzipped file, as much of it as `require_measure` allows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = gzip.GzipFile(path)
        self._num_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = self._file.readinto(buffer)
        self._num_read += length
        require_measure(self._path, self._num_read)
        return length

    def close(self) -> None:
        self._file.close()
        super().close()


class TooLargeError(ValueError):
    """A file unpacks to more than it may."""


def require_measure(path: Path, unpacked: int) -> None:
    """Raise TooLargeError if ``unpacked`` bytes are more than a file of its size may unpack to."""
    if unpacked > max(UNPACKED_ANYWAY, MAX_UNPACKED * path.stat().st_size):
        raise TooLargeError(
            f"{path}: unpacks to more than {MAX_UNPACKED} times its size; if it shall, unpack it "
            "and give the unpacked file"
        )


def _read_json_lines(path: Path, name: str) -> Iterator[Record | BadRecord]:
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                continue
            where = f"{name}:{number}"
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                yield BadRecord(where, "invalid UTF-8", f"invalid UTF-8 at byte {error.start + 1}")
                continue
            decoder, repeated = _decoder()
            try:
                value = decoder.decode(text)
            except (ValueError, RecursionError) as error:
                yield BadRecord(where, "broken JSON", f"not a line of JSON: {_reason(error)}")
                continue
            yield _object(value, repeated, where)


def _read_json_array(path: Path, name: str) -> Iterator[Record | BadRecord]:
    """Yield one element after the other, so that objects are made one at a time."""
    # Undecodable bytes become lone surrogates, which betray the element that they stand in.
    with _open(path) as file:
        content = file.read()
    text = content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
    position, line = text.index("[") + 1, text.count("\n", 0, text.index("["))
    counted = text.index("[")
    while True:
        while text[position : position + 1] in (" ", "\t", "\r", "\n", ","):
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        where = f"{name}:{line + 1}"
        if text[position : position + 1] == "]":
            return
        decoder, repeated = _decoder()
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            at = getattr(error, "pos", position)
            where = f"{name}:{text.count(chr(10), 0, at) + 1}"
            reason = f"not JSON from here on: {_reason(error)}"
            yield BadRecord(where, "broken JSON", reason)
            return
        if has_surrogates(text[position:end]):
            yield BadRecord(where, "invalid UTF-8", "invalid UTF-8")
        else:
            yield _object(value, repeated, where)
        position = end


def _decoder() -> tuple[json.JSONDecoder, list[str]]:
    """Return a decoder, and the list in which it notes keys that an object gives twice."""
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            repeated.extend(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        return fields

    return json.JSONDecoder(object_pairs_hook=collect), repeated


def _object(value: Any, repeated: list[str], where: str) -> Record | BadRecord:
    if repeated:
        return BadRecord(where, "repeated key", f"key {repeated[0]!r} is given twice")
    if not isinstance(value, dict):
        got = type(value).__name__
        return BadRecord(where, "wrong type", f"expected a JSON object, got {got}")
    return Record(where, value)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _read_csv(path: Path, name: str, delimiter: str) -> Iterator[Record | BadRecord]:
    """Read RFC 4180 with a header line; every value is a text."""
    csv.field_size_limit(MAX_CSV_FIELD)
    with (
        _open(path) as content,
        io.TextIOWrapper(
            content, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file,
    ):
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise ValueError(f"{path}:1: no header line of CSV: {error}") from None
        names = [column for column in header[_num_index_columns(header) :] if not is_index(column)]
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(
                f"{path}:1: expected a header line of distinct column names, got {header!r:.200}"
            )
        while True:
            where = f"{name}:{rows.line_num + 1}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRecord(where, "broken CSV", f"not a row of CSV: {error}")
                continue
            if not row:
                continue
            if len(row) != len(header):
                expected = f"expected {len(header)} values as in the header, got {len(row)}"
                yield BadRecord(where, "broken CSV", expected)
            elif any(map(has_surrogates, row)):
                yield BadRecord(where, "invalid UTF-8", "invalid UTF-8")
            else:
                fields = dict(zip(header, row, strict=True))
                yield Record(where, {column: fields[column] for column in names})


def is_index(column: str) -> bool:
    """Return whether a column is the index of a table of pandas, which says nothing."""
    return INDEX_COLUMN.fullmatch(column) is not None


def _num_index_columns(header: Sequence[str]) -> int:
    """Count the columns without a name before the first one with a name."""
    return next((number for number, column in enumerate(header) if column), len(header))


def _read_parquet(path: Path, name: str, columns: Collection[str]) -> Iterator[Record | BadRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    skipped: tuple[str, ...] = ()

    def batches() -> Iterator[pa.RecordBatch]:
        """Yield every batch; a file may turn out damaged far from its beginning."""
        try:
            nonlocal skipped
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            selected = list(columns) if columns and set(columns) <= set(names) else None
            skipped = tuple(name for name in names if selected and name not in selected)
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            require_measure(path, sum(group.total_byte_size for group in groups))
            # A dictionary has a value once, and rows without number may refer to it.
            largest = max((group.total_byte_size for group in groups), default=0)
            num_rows = max(1, min(PARQUET_BATCH, MAX_BATCH_BYTES // max(largest, 1)))
            yield from file.iter_batches(batch_size=num_rows, columns=selected)
        except (FileNotFoundError, TooLargeError):
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path}: not a Parquet file, or damaged: {error}") from None

    number = 0
    for batch in batches():
        for index in range(len(batch)):
            number += 1
            where = f"{name}: row {number}"
            try:
                (fields,) = batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError:
                yield BadRecord(where, "invalid UTF-8", "invalid UTF-8")
                continue
            except (ValueError, OverflowError, pa.ArrowException) as error:
                yield BadRecord(where, "broken value", f"a value that cannot be read: {error}")
                continue
            yield Record(where, fields, skipped)


def _starts_with_bracket(path: Path) -> bool:
    with _open(path) as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
