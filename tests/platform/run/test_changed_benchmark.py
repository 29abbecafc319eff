"""A benchmark of one's own that is edited between two commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Deft = Callable[..., CompletedProcess[str]]

BENCHMARK = """
from deft.evaluators.benchmarks.base import Benchmark, Item, Sampling
from deft.evaluators.scores.metrics import accuracy


def rows():
    return ({"question": f"What is {n} + 1?", "gold": str(n + 1)} for n in range(6))


def read(record, number):
    return Item(str(number), ({"role": "user", "content": record["question"]},), record["gold"])


sums = Benchmark(
    name="sums",
    summary="sums with one",
    source="made up",
    records=rows,
    read=read,
    grader="figfont",
    sampling=Sampling(max_tokens=4),
    metrics=(accuracy,),
    instruction="Give a number.",
)
"""


@pytest.fixture
def evaluate(
    deft: Deft,
    tmp_path: Path,
    ray_address: str,
    save_small_model: Callable[[Path], None],
) -> Callable[..., CompletedProcess[str]]:
    """Run `deft evaluate` on the benchmark in `edited_benchmark.py`."""
    save_small_model(tmp_path / "my-model")

    def run(*settings: str) -> CompletedProcess[str]:
        done = deft(
            *("evaluate", "--model", "my-model", "--benchmarks", "edited_benchmark:sums"),
            *("--set", "evaluation.general=false"),
            *("--set", "evaluation.engine.type=transformers"),
            *settings,
            RAY_ADDRESS=ray_address,
            COLUMNS="240",
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_results_of_a_former_definition_are_named(
    deft: Deft, evaluate: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    module, runs = tmp_path / "edited_benchmark.py", tmp_path / "runs"
    module.write_text(BENCHMARK)
    evaluate()
    (first,) = (path.name for path in runs.glob("evaluation-*"))
    again = evaluate().stdout
    assert "finished already" in again
    assert "has changed" not in again

    module.write_text(BENCHMARK.replace("Give a number.", "Give the sum."))
    warned = " ".join(evaluate().stdout.split())
    assert "warning: benchmark edited_benchmark:sums has changed since" in warned
    assert f"delete evaluate.json and record.json in {runs / first / 'stages'}" in warned

    # Results of both definitions side by side, and with other sampling.
    evaluate("--temperature", "0.5")
    (second,) = (path.name for path in runs.glob("evaluation-*") if path.name != first)
    compared = deft("compare", first, second, COLUMNS="240")
    assert compared.returncode == 0, compared.stderr
    assert f"sums, avg@1: {first} and {second} differ in temperature (0 / 0.5), defi" in (
        " ".join(compared.stdout.split())
    )
    assert "seeds are ignored" in compared.stdout

    # The same ids with other questions are not compared at all.
    module.write_text(BENCHMARK.replace("+ 1?", "+ 2?").replace("n + 1)", "n + 2)"))
    evaluate("--temperature", "0.25")
    names = {path.name for path in runs.glob("evaluation-*")} - {first, second}
    (third,) = names
    refused = deft("compare", first, third, COLUMNS="240")
    assert refused.returncode == 2
    assert "different questions or golds for 6 of 6 items" in " ".join(refused.stderr.split())
