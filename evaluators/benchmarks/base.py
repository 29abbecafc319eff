"""What a benchmark is made of. Importing this module loads no model, data or engine library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deft.workers.common.example import Message

if TYPE_CHECKING:
    from deft.evaluators.scores.metrics import Metric

Record = Mapping[str, Any]
"""One row of a data set, with the fields that its authors gave it."""


@dataclass(frozen=True)
class Item:
    """One question, ready to be asked and graded."""

    id: str
    """Unique within the benchmark, and the same wherever its rows were read from."""
    prompt: tuple[Message, ...]
    gold: str
    options: Mapping[str, str] | None = None
    """Letter to text, for multiple choice; `gold` is a letter then."""
    source: str = ""
    """Which of several data sets it is from."""
    grader: str = ""
    """Its own grader, where it is not the benchmark's."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

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
    """What arXiv 2602.11424 does with a benchmark, see `protocol` in `EvaluationSpec`."""

    sampling: Sampling
    styles: Mapping[str, str]
    """Prompt style of each model family, see `deft.evaluators.generation.prompts.model_family`."""


@dataclass(frozen=True)
class Benchmark:
    """Data, prompt, sampling, grader and metrics.

    One of your own is such an object in a module of yours, named ``package.module:object`` in a
    run file or on the command line.
    """

    name: str
    summary: str
    """One line on what is asked and how it is graded."""
    source: str
    """Where the items come from."""
    records: HubTable | Callable[[], Iterable[Record]]
    """The rows: on the hub unless there is a local file of them, or made by a function."""
    read: Callable[[Record, int], Item | None]
    """The item in a row and the row's number from 0; None to leave the row out."""
    grader: str
    """A name in `deft.evaluators.grading.GRADERS`, or ``package.module:function``."""
    sampling: Sampling
    """How to sample where a run file does not say."""
    metrics: tuple[Metric, ...]
    """What is computed of the graded responses."""
    instruction: str = ""
    """What the task asks for beside the question; the prompt style decides where it is said."""
    size: int | None = None
    """Number of items, where it is known beforehand."""
    several_sources: bool = False
    """Whether every source is reported on its own, and a part of the items is taken from each."""
    primary_metric: str = "avg"
    """What runs are compared by: ``avg`` (share of correct responses) or one of the scores."""
    paper: Paper | None = None


def read_generated(record: Record, number: int) -> Item:
    """An item of a benchmark that generates its records: ``id``, ``prompt`` (turns), ``gold``."""
    return Item(record["id"], record["prompt"], record["gold"])
