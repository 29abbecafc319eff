"""Settings of the data to train on. Loads neither torch nor ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from deft.workers.catalogs.datasets import DATASETS, SUFFIXES, data_suffix, local_files
from deft.workers.catalogs.prompt_styles import PROMPT_STYLES
from deft.workers.common.names import unknown_name
from deft.workers.common.settings import Settings, is_none, name_only

MAX_VALIDATION = 128
"""Held-out examples where a run file does not say how many: the paper's number."""


BadRecords = Literal["refuse", "drop"]
MIXED_KEYS = {"split", "data_dir", "columns", "config", "revision", "keep_whitespace"}
"""Settings that every data set of a mixture has for itself."""


def name_or_mixture(value: Any) -> Any:
    """Spell out what a bare name, or a list of data sets, stands for as `dataset`."""
    return {"mixture": value} if isinstance(value, list) else name_only(value)


def name_of(value: Mapping[str, Any]) -> Any:
    """Return the name in settings of a dataset or model; a mixture's is made of its parts'."""
    sources = value.get("mixture")
    if value.get("name") or not isinstance(sources, list | tuple):
        return value.get("name")
    names = (name_of(each) if isinstance(each, Mapping) else each for each in sources)
    files = (str(name).rstrip("/").rsplit("/", 1)[-1] for name in names)
    return "+".join(file.split(".")[0] if file.endswith(SUFFIXES) else file for file in files)


def _is_empty(value: Any) -> bool:
    return not value


class ColumnsSpec(Settings):
    """What columns are called. A dotted path leads into a struct: `extra_info.question`."""

    prompt: str | None = Field(default=None, min_length=1)
    """Column of the user's text, or of the turns before the response."""
    response: str | None = Field(default=None, min_length=1)
    """Column of the text to learn, or of the turns to learn."""
    system: str | None = Field(default=None, min_length=1)
    """Column of a system text, if there is one; where it is empty or null, there is none."""
    messages: str | None = Field(default=None, min_length=1)
    """Column of whole conversations instead of prompt and response: lists of `role` and `content`,
    or of `from` and `value`."""
    tools: str | None = Field(default=None, min_length=1)
    """Column of the JSON schemas of the functions that the model may call."""
    weight: str | None = Field(default=None, min_length=1)
    """Column of what the loss of a record is multiplied by; records of 0 are left out."""

    @model_validator(mode="after")
    def require_pair_or_messages(self) -> ColumnsSpec:
        column_names = set(self.named) - {"tools", "weight", "system"}
        if column_names not in ({"messages"}, {"prompt", "response"}):
            raise ValueError(
                "give prompt and response, or messages alone (and perhaps system, tools, weight)"
            )
        return self

    @property
    def named(self) -> dict[str, str]:
        """Return the columns that are given, by what they hold."""
        return {key: value for key, value in self.model_dump().items() if value is not None}


class SourceSpec(Settings):
    """Where examples come from."""

    name: str
    """A name from `deft list datasets`; a .jsonl, .json, .csv, .tsv or .parquet file; a directory
    of such files; or a Hugging Face hub id (org/name)."""
    size: int | None = Field(default=None, ge=1)
    """Number of examples, taken from the start; all of them if not given."""
    keep_whitespace: bool = Field(default=False, exclude_if=_is_empty)
    """Keep white space around the questions of `math` and `medical`, as arXiv 2602.11424 does."""
    split: str = Field(default="train", min_length=1)
    """Which split of a hub dataset, of a directory or of generated data to train on."""
    data_dir: str | None = None
    """A local copy of `math` or `medical`: a file, or a directory of files."""
    columns: ColumnsSpec | None = None
    """Names of the columns; if not given, the usual ones, see `deft.workers.data.datasets`."""
    config: str | None = Field(default=None, min_length=1, exclude_if=is_none)
    """Configuration (subset) of a hub dataset that has several."""
    revision: str | None = Field(default=None, min_length=1, exclude_if=is_none)
    """Branch, tag or commit of a hub dataset; its newest state if not given. The commit that was
    read is recorded."""

    @model_validator(mode="after")
    def require_known_dataset(self) -> Self:
        self._require_known()
        return self

    def _require_known(self) -> None:
        entry = DATASETS.get(self.name)
        if entry is None and not Path(self.name).exists():
            if self.name.startswith((".", "/", "~")) or data_suffix(Path(self.name)):
                raise ValueError(f"there is no file {self.name}")
            if self.name.count("/") != 1:
                raise ValueError(
                    unknown_name("dataset", self.name, DATASETS)
                    + f" Or give a file ({', '.join(SUFFIXES)}), a directory of such files, or a"
                    " hub id (org/name)."
                )
        generated = entry is not None and entry.generate is not None
        if entry and generated and self.size is not None and self.size > entry.size:
            raise ValueError(f"size: {self.name} has {entry.size} training examples")
        if entry and generated and self.split not in entry.splits:
            raise ValueError(f"split: {unknown_name('split', self.split, entry.splits)}")
        if self.data_dir is not None and (entry is None or entry.hub is None):
            raise ValueError(f"data_dir: only math and medical have one; remove it for {self.name}")
        if generated and self.columns is not None:
            raise ValueError(f"columns: {self.name} is generated and has none")
        if (self.config or self.revision) and (generated or self.local_path is not None):
            key = "config" if self.config else "revision"
            raise ValueError(
                f"{key}: only datasets of the Hugging Face hub have one; remove it for {self.name}"
            )
        path = self.local_path
        if path is not None:
            if not path.exists():
                raise ValueError(f"data_dir: there is no file or directory {path}")
            if not path.is_dir() and not data_suffix(path):
                raise ValueError(
                    f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, all but Parquet "
                    "also gzipped (.gz); unpack or convert it"
                )
            if not local_files(path):
                raise ValueError(f"{path}: no file in it ends in {', '.join(SUFFIXES)}")

    @property
    def local_path(self) -> Path | None:
        """The file or directory to read; None for what is generated or comes from the hub."""
        if self.data_dir is not None:
            return Path(self.data_dir)
        if self.name in DATASETS or not Path(self.name).exists():
            return None
        return Path(self.name)

    @property
    def hub_id(self) -> str | None:
        """The dataset's id on the Hugging Face hub; None for what is generated or a local file."""
        entry = DATASETS.get(self.name)
        if self.local_path is not None or (entry is not None and entry.hub is None):
            return None
        return entry.hub if entry is not None else self.name

    @property
    def label(self) -> str:
        """Name of the data in messages: where they are from."""
        return self.data_dir or self.name

    @property
    def title(self) -> str:
        """Name of the data in reports: a file's or a hub dataset's, and which part of it."""
        name = self.name if self.local_path is None else Path(self.label).name
        parts = [part for part in (self.config, self.split) if part and part != "train"]
        return f"{name} ({', '.join(parts)})" if parts else name

    def absolute(self) -> Self:
        """Return the same with a local path made absolute: Ray's processes work elsewhere."""
        path = self.local_path
        key = "name" if self.data_dir is None else "data_dir"
        return self if path is None else self.model_copy(update={key: str(path.absolute())})


class MixedSourceSpec(SourceSpec):
    """One data set of a mixture. In YAML a bare string stands for ``{name: …}``."""

    weight: float | None = Field(default=None, gt=0)
    """Share of the mixture, relative to the weights of the others: as many examples, drawn by the
    run's seed without repetition, as the scarcest of the weighted data sets allows. If not given,
    all its examples take part, or the first `size`. Examples are counted as they are trained on,
    without those that are bad or too long."""


class DatasetSpec(SourceSpec):
    """Training data. In YAML a bare string stands for ``{name: …}``, and a list for
    ``{mixture: …}``."""

    mixture: tuple[Annotated[MixedSourceSpec, BeforeValidator(name_only)], ...] = Field(
        default=(), exclude_if=_is_empty
    )
    """Data sets to train on together, each with a `weight`, a `size`, or all of it. `name` is then
    made of theirs, and `size` is the number of examples altogether, which the weighted ones fill
    up. Questions that stand in several of them are never on both sides of the held-out split."""
    prompt_style: str = "chat"
    """How prompts are rendered: a name from `deft list prompts`."""
    bad_records: BadRecords = "refuse"
    """What to do about records that cannot be used: say which, and stop; or list and leave them
    out."""
    too_long: Literal["drop", "truncate", "truncate_left", "refuse"] = "drop"
    """What to do about examples of more than `training.max_length` tokens: leave them out, cut on
    the right or on the left (the response stays, the beginning of the prompt goes), or refuse. An
    example of which no target is left is left out."""
    validation: int | float | None = Field(default=None, ge=0)
    """Held-out examples: a number, or a share below 1 such as 0.05; if not given, 5 % and at most
    128. Examples with the same question are never on both sides."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """Label noise: the share of the training examples that get each other's responses instead of
    their own, chosen by the run's seed. Held-out examples keep theirs."""

    @field_validator("validation", mode="before")
    @classmethod
    def require_number(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.replace(".", "", 1).isdecimal():
            raise ValueError(f"give a number of examples, or a share such as 0.05, got {value!r}")
        return value

    @field_validator("validation")
    @classmethod
    def require_number_or_share(cls, value: int | float | None) -> int | float | None:
        if isinstance(value, float) and value >= 1:
            raise ValueError(f"give a whole number or a share below 1, got {value}")
        return value

    @field_validator("prompt_style")
    @classmethod
    def require_known_style(cls, value: str) -> str:
        if value not in PROMPT_STYLES:
            raise ValueError(unknown_name("prompt style", value, PROMPT_STYLES))
        return value

    @model_validator(mode="before")
    @classmethod
    def name_after_the_sources(cls, value: Any) -> Any:
        is_unnamed = isinstance(value, dict) and value.get("mixture") and not value.get("name")
        return {**value, "name": name_of(value)} if is_unnamed else value

    def _require_known(self) -> None:
        if not self.mixture:
            super()._require_known()
            return
        own = MIXED_KEYS & self.model_fields_set
        if any(getattr(self, key) != type(self).model_fields[key].default for key in own):
            raise ValueError(f"{', '.join(sorted(own))}: give it for each data set of the mixture")
        if self.size is not None and all(source.weight is None for source in self.mixture):
            raise ValueError("size: no data set of the mixture has a weight; give each its size")

    @property
    def truncation_side(self) -> Literal["left", "right"] | None:
        """Side on which examples that are too long are cut; None if they are not."""
        if self.too_long == "truncate":
            return "right"
        return "left" if self.too_long == "truncate_left" else None

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """The data sets that are read: those of a mixture, or this one."""
        return self.mixture or (self,)

    @property
    def local_path(self) -> Path | None:
        """As of any source; None for a mixture, whose `sources` have paths of their own."""
        return None if self.mixture else super().local_path

    def absolute(self) -> Self:
        """Return the same with local paths made absolute."""
        if not self.mixture:
            return super().absolute()
        return self.model_copy(update={"mixture": tuple(s.absolute() for s in self.mixture)})

    def num_validation(self, num_examples: int) -> int:
        """Return how many of ``num_examples`` to hold out."""
        if self.validation is None:
            return min(MAX_VALIDATION, num_examples // 20)
        if isinstance(self.validation, float):
            return int(self.validation * num_examples)
        return self.validation


DatasetField = Annotated[DatasetSpec, BeforeValidator(name_or_mixture)]
