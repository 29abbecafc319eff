"""The chain_sum benchmark: 1,000 questions that no example to train on asks."""

from __future__ import annotations

from collections.abc import Iterator

from deft.evaluators.benchmarks.base import Benchmark, RecordFields, Sampling, read_generated
from deft.evaluators.scores.metrics import accuracy, majority, pass_at_k
from deft.workers.data.chain_sum import TEST_SIZE, chain_sum_examples


def chain_sum_records() -> Iterator[RecordFields]:
    """Generate all test items; of the worked response only the answer is the gold."""
    for example in chain_sum_examples("test", TEST_SIZE):
        answer = example.response.rpartition("=")[2]
        yield {"id": example.id, "prompt": example.prompt, "gold": answer}


CHAIN_SUM = Benchmark(
    name="chain_sum",
    summary="add and subtract numbers one after the other; correct is the right answer in the last "
    "line, whatever the steps before",
    source="reasoning-gym chain_sum, questions of a split of their own",
    records=chain_sum_records,
    read=read_generated,
    grader="chain_sum",
    sampling=Sampling(max_tokens=64),
    metrics=(accuracy, pass_at_k, majority),
    size=TEST_SIZE,
)
