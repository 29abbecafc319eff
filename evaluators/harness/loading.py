"""Load a task of lm-evaluation-harness with its data, and read the items of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from deft.evaluators.benchmarks.base import Benchmark, Item
from deft.evaluators.spec import BenchmarkSpec
from deft.workers.common.hub import NotOnThisNodeError

FEWSHOT_SEED = 1234
"""Seed by which the library chooses solved examples where none is given."""


def load_tasks(benchmark: Benchmark, num_fewshot: int | None) -> dict[str, Any]:
    """Load the task of ``benchmark``, or all tasks of its group; the hub is asked for their data.

    Returns:
        Name → `lm_eval.api.task.Task`.

    Raises:
        ValueError: data cannot be had, or the task cannot be used here.
    """
    from lm_eval.tasks import TaskManager

    harness = benchmark.harness
    assert harness is not None
    try:
        folder = Path(harness.file).parent
        try:
            manager = TaskManager(include_defaults=False, include_path=folder)
            tasks: dict[str, Any] = manager.load(harness.name)["tasks"]
        except KeyError:  # of a group whose tasks lie elsewhere
            tasks = TaskManager(include_path=folder).load(harness.name)["tasks"]
    except Exception as error:
        # A task's own code may raise anything, and so may the library that loads its data.
        reason = " ".join(str(error).split()) or repr(error)
        kind = NotOnThisNodeError if isinstance(error, ConnectionError) else ValueError
        raise kind(f"{benchmark.name}: could not be loaded ({reason:.300})") from None
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise ValueError(f"{benchmark.name}: {task.task_name} runs code or shows pictures")
        if not main_metrics(task):
            raise ValueError(
                f"{benchmark.name}: no metric of {task.task_name} is a mean over items "
                f"({', '.join(task.aggregation())}); leave it out"
            )
        _set_fewshot(benchmark.name, task, num_fewshot)
    return tasks


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    fixed = task.get_config("num_fewshot")
    if num_fewshot and fixed == 0:
        raise ValueError(f"num_fewshot: {name} fixes it at 0 for {task.task_name}; leave it out")
    if num_fewshot is not None or fixed is None:
        task.set_config("num_fewshot", num_fewshot or 0)
    task.set_fewshot_seed(FEWSHOT_SEED)


def main_metrics(task: Any) -> list[str]:
    """Return the metrics of a task that are means over its items, the main one first.

    That is `acc_norm` where there is one, else the first that the task names.
    """
    from lm_eval.api.registry import get_aggregation

    mean, higher = get_aggregation("mean"), task.higher_is_better()
    names = [
        name
        for name, aggregation in task.aggregation().items()
        if aggregation is mean and higher.get(name, True)
    ]
    return sorted(names, key=lambda name: name != "acc_norm")


def harness_items(benchmark: Benchmark, spec: BenchmarkSpec) -> list[Item]:
    """Read as many items as ``spec`` names from the start; of a group, one of each task in turn.

    Raises:
        ValueError: see `load_tasks`.
    """
    tasks = load_tasks(benchmark, spec.num_fewshot)
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    turns = sorted((doc, turn) for turn, n in enumerate(sizes.values()) for doc in range(n))[
        : spec.size
    ]
    limits = Counter(turn for _, turn in turns)
    items = []
    for turn, (name, task) in enumerate(tasks.items()):
        if limits[turn]:
            # The question alone, without solved examples before it.
            task.set_config("num_fewshot", 0)
            task.build_all_requests(limit=limits[turn])
            items += _items_of(benchmark, name, task)
    return items


def item_id(benchmark: Benchmark, task: str, doc: int) -> str:
    """Return the id of a document: its number, after the task's name in a group."""
    assert benchmark.harness is not None
    return f"{task}/{doc}" if benchmark.harness.is_group else str(doc)


def _items_of(benchmark: Benchmark, name: str, task: Any) -> list[Item]:
    by_doc: dict[int, Any] = {}
    for instance in task.instances:
        by_doc.setdefault(instance.doc_id, instance)
    items = []
    for doc_id, instance in by_doc.items():
        options = choices_of(task, instance.doc)
        items.append(
            Item(
                id=item_id(benchmark, name, doc_id),
                prompt=({"role": "user", "content": str(instance.args[0])},),
                gold=_gold(task, instance.doc, options),
                options=options or None,
                source=name if benchmark.several_sources else "",
            )
        )
    return items


def choices_of(task: Any, doc: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a document by letter; nothing where a response is generated."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return {}
    return dict(zip(ascii_uppercase, map(str, task.doc_to_choice(doc)), strict=False))


def _gold(task: Any, doc: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """Return the letters of the right options, or the answer as text."""
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    golds: Sequence[Any] = target if isinstance(target, list) else [target]
    letters = list(options)
    by_text = {text: letter for letter, text in options.items()}
    return ", ".join(
        letters[gold]
        if isinstance(gold, int) and gold < len(letters)
        else by_text.get(str(gold), str(gold))
        for gold in golds
    )
