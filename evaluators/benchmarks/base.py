"""The parts of a benchmark. Importing this module loads no model, data or engine library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deft.workers.common.checksums import hash_parts
from deft.workers.common.example import Message

if TYPE_CHECKING:
    from deft.evaluators.scores.metrics import Metric

RecordFields = Mapping[str, Any]
"""One row of a data set, with the fields that its authors gave it."""


@dataclass(frozen=True)
class Item:
    """One question, ready to be asked and graded."""

    id: str
    """Identifier, unique within the benchmark, and the same wherever its rows were read from."""
    prompt: tuple[Message, ...]
    gold: str
    options: Mapping[str, str] | None = None
    """Letter to text, for multiple choice; `gold` is a letter then."""
    source: str = ""
    """Name of the data set it is from, where a benchmark has several."""
    grader: str = ""
    """Grader of this item, where it differs from the benchmark's."""

    @property
    def question(self) -> str:
        """The text of the last turn that is not the model's."""
        return next((t["content"] for t in reversed(self.prompt) if t["role"] == "user"), "")

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of a hash of question, gold and options."""
        content = json.dumps([self.prompt, self.gold, self.options], sort_keys=True)
        return hash_parts(content)


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of responses."""

    max_tokens: int
    """Longest response in tokens."""
    samples: int = 1
    """Responses per item."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Only the most likely tokens that hold this probability together are drawn."""
    stop: tuple[str, ...] = ()
    """Strings that end a response, beside the tokens that end a turn."""


@dataclass(frozen=True)
class HubTable:
    """A data set on the Hugging Face hub."""

    repo: str
    split: str = "test"
    subset: str | None = None
    file: str | None = None
    """A JSON file of the repository, where it has no tables."""


@dataclass(frozen=True)
class Paper:
    """Settings of arXiv 2602.11424 for a benchmark, see `protocol` in `EvaluationSpec`."""

    sampling: Sampling
    styles: Mapping[str, str]
    """Prompt style of each model family, see `deft.evaluators.generation.prompts.model_family`."""


@dataclass(frozen=True)
class HarnessTask:
    """A task or a group of tasks of lm-evaluation-harness."""

    name: str
    """Its name there."""
    file: str = field(repr=False)
    """The YAML file that defines it."""
    is_group: bool
    release: str
    """Version of the library."""
    version: str
    """Version that the task gives itself."""
    digest: str
    """Hash of a task of one's own; empty for those that the library brings."""


@dataclass(frozen=True)
class Benchmark:
    """Data, prompt, sampling, grader and metrics.

    One of your own is such an object in a module of yours, named ``package.module:object`` in a
    run file or on the command line.
    """

    name: str
    summary: str
    """Task and grading in one line."""
    source: str
    """Origin of the items."""
    records: HubTable | Callable[[], Iterable[RecordFields]]
    """The rows: on the hub unless there is a local file of them, or made by a function."""
    read: Callable[[RecordFields, int], Item | None]
    """The item in a row and the row's number from 0; None to leave the row out."""
    grader: str
    """A name in `deft.evaluators.grading.GRADERS`, or ``package.module:function``."""
    sampling: Sampling
    """Default sampling, where a run file sets none."""
    metrics: tuple[Metric, ...]
    """Functions that compute metrics from the graded responses."""
    instruction: str = ""
    """Text that the prompt style adds to each question, such as the form of the answer."""
    size: int | None = None
    """Number of items, where it is known in advance."""
    several_sources: bool = False
    """Whether each source is reported on its own, and items are taken from each in turn."""
    primary_metric: str = "avg"
    """Metric that runs are compared by: ``avg`` (share of correct responses) or a score."""
    paper: Paper | None = None
    by_likelihood: bool = False
    """Whether the response is the letter of the option that the model finds most likely, for
    multiple choice: no other token can be generated."""
    harness: HarnessTask | None = None
    """The task of lm-evaluation-harness that this is; prompts and grades are the library's then."""


def required(record: RecordFields, field: str) -> str:
    """Return a field as text, as it is.

    Raises:
        KeyError: there is no such field.
        ValueError: it is null or empty.
    """
    value = record[field]
    if value is None or not str(value).strip():
        raise ValueError(f"the field {field} is {'null' if value is None else 'empty'}")
    return str(value)


def read_generated(record: RecordFields, number: int) -> Item:
    """Read a record of a benchmark that generates them: ``id``, ``prompt`` (turns), ``gold``."""
    return Item(record["id"], record["prompt"], record["gold"])
