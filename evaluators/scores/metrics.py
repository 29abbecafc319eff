"""From graded responses to the numbers of a benchmark.

A metric is a function from `Outcomes` to named values; `avg_at_16` stands for what papers call
avg@16, because MLflow takes no @ in a name. Everything is a mean over all items, so that a model
gains nothing by failing: a response that was cut off, left empty or never asked for counts as not
correct, and its score is that of the text there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deft.evaluators.scores.statistics import Floats


@dataclass(frozen=True)
class Outcomes:
    """Graded responses, S samples of each of I items."""

    ids: Sequence[str]
    """Item ids, [I]."""
    sources: Sequence[str]
    """Data set of each item, [I]."""
    verdicts: Sequence[Sequence[str]]
    """Values of `Verdict`, [I][S]."""
    answers: Sequence[Sequence[str | None]]
    """Answer that was found in each response, [I][S]."""
    scores: Mapping[str, Floats]
    """Score → values, [I, S]."""

    @property
    def num_samples(self) -> int:
        """Number of samples per item."""
        return len(self.verdicts[0])

    def correct(self) -> Floats:
        """Return 1 where a response is correct and 0 elsewhere, float64 [I, S]."""
        import numpy as np

        return np.array([[v == "correct" for v in row] for row in self.verdicts], dtype=np.float64)

    def only(self, source: str) -> Outcomes:
        """Return the outcomes on the items of one source."""
        rows = [i for i, name in enumerate(self.sources) if name == source]
        return Outcomes(
            ids=[self.ids[i] for i in rows],
            sources=[source] * len(rows),
            verdicts=[self.verdicts[i] for i in rows],
            answers=[self.answers[i] for i in rows],
            scores={name: values[rows] for name, values in self.scores.items()},
        )


Metric = Callable[[Outcomes], dict[str, float]]


def accuracy(outcomes: Outcomes) -> dict[str, float]:
    """Compute ``avg_at_n``, the mean over items and samples of being correct, with its error."""
    return _mean(f"avg_at_{outcomes.num_samples}", outcomes.correct())


def pass_at_k(outcomes: Outcomes) -> dict[str, float]:
    """Compute ``pass_at_k`` for k = 2, 4, 8, … up to the number of samples."""
    from deft.evaluators.scores import statistics

    counts, n = outcomes.correct().sum(1).astype(int), outcomes.num_samples
    return {f"pass_at_{k}": statistics.estimate_pass_at_k(counts, n, k) for k in _powers_of_two(n)}


def majority(outcomes: Outcomes) -> dict[str, float]:
    """Compute ``maj_at_k`` for k = 4, 8, … up to the number of samples."""
    from deft.evaluators.scores import statistics

    correct = outcomes.correct().astype(bool)
    return {
        f"maj_at_{k}": statistics.majority_at_k(outcomes.answers, correct, k)
        for k in _powers_of_two(outcomes.num_samples)
        if k > 2  # of two answers that differ, either may win
    }


def score_means(outcomes: Outcomes) -> dict[str, float]:
    """Compute the mean of every score that the grader gives, with its error."""
    means: dict[str, float] = {}
    for name, values in outcomes.scores.items():
        means |= _mean(name, values)
    return means


def paper_accuracy(outcomes: Outcomes) -> dict[str, float]:
    """Compute ``accuracy_paper``, by the paper's reading of choices, and its mean over sources."""
    name = "accuracy_paper"
    if name not in outcomes.scores:
        return {}
    sources = sorted(set(outcomes.sources))
    means = [float(outcomes.only(source).scores[name].mean()) for source in sources]
    return _mean(name, outcomes.scores[name]) | {f"macro_{name}": sum(means) / len(means)}


def by_source(outcomes: Outcomes) -> dict[str, float]:
    """Compute ``<source>/avg_at_n`` of every source and ``macro_avg_at_n``, their plain mean."""
    name = f"avg_at_{outcomes.num_samples}"
    means: dict[str, float] = {}
    for source in sorted(set(outcomes.sources)):
        # MLflow takes letters, digits and a few signs in a name.
        prefix = re.sub(r"[^\w. -]+", "-", source)
        of_source = _mean(name, outcomes.only(source).correct())
        means |= {f"{prefix}/{key}": value for key, value in of_source.items()}
    per_source = [value for key, value in means.items() if key.endswith(f"/{name}")]
    return means | {f"macro_{name}": sum(per_source) / len(per_source)}


def mean_over_benchmarks(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Compute the plain mean over benchmarks, as papers report it; nothing for fewer than two.

    It is called ``avg_at_n`` where all have n samples, else ``avg``. ``num_benchmarks`` is their
    number.
    """
    averages = [
        (name, value)
        for metrics in results.values()
        for name, value in metrics.items()
        if re.fullmatch(r"avg_at_\d+", name)
    ]
    if len(averages) < 2:
        return {}
    names = {name for name, _ in averages}
    mean = sum(value for _, value in averages) / len(averages)
    return {
        names.pop() if len(names) == 1 else "avg": mean,
        "num_benchmarks": float(len(averages)),
    }


def _powers_of_two(n: int) -> list[int]:
    return [2**e for e in range(1, n.bit_length()) if 2**e <= n]


def _mean(name: str, values: Floats) -> dict[str, float]:
    """Compute the mean of ``values`` [I, S], with standard error and 95 % interval over items."""
    from deft.evaluators.scores import statistics

    items = values.mean(1)
    interval = statistics.mean_interval(items)
    return {
        name: float(items.mean()),
        f"{name}_stderr": statistics.standard_error(items),
        f"{name}_ci_low": interval.low,
        f"{name}_ci_high": interval.high,
    }
