"""The chain_sum task: add and subtract numbers one after the other, showing every step.

A task that a model of a million parameters can be strong, mediocre or hopeless at, depending on how
long it was trained on the split ``pretrain``. The expressions are those of reasoning-gym's task
``chain_sum``; the response says every intermediate sum, so that it has tokens of all kinds: copied,
computed, and mere form. Each question belongs to one split by its own hash, hence no two splits
share one, however many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

from deft.workers.common.example import Example

SPLIT_OF_EIGHTH: tuple[str, ...] = ("test", "train", "train", *(("pretrain",) * 5))
"""The split of each eighth of all questions."""
TEST_SIZE = 1_000
MAX_REPETITIONS = 20_000
"""Questions drawn in a row, each seen before, after which a split counts as used up."""


def chain_sum_examples(split: str, size: int) -> Iterator[Example]:
    """Yield the first ``size`` examples of a split, or all that there are, none of them twice.

    The prompt is ``7+5-3=``; the response has a line ``7+5=12`` for each operation, the last of
    which ends in the answer.
    """
    yield from islice(_examples(split), size)


def _examples(split: str) -> Iterator[Example]:
    import reasoning_gym

    task = reasoning_gym.create_dataset(
        "chain_sum", size=2**31, seed=42, min_terms=3, max_terms=4, min_digits=1, max_digits=1
    )
    seen, last_new = set(), 0
    for index, item in enumerate(task):
        if index - last_new > MAX_REPETITIONS:
            return
        expression = item["metadata"]["expression"]
        if split_of(expression) == split and expression not in seen:
            seen.add(expression)
            last_new = index
            question = {"role": "user", "content": f"{expression.replace(' ', '')}="}
            yield Example(f"chain_sum/{index}", (question,), working(expression))


def split_of(expression: str) -> str:
    """Return the split that a question belongs to."""
    digest = hashlib.blake2b(expression.encode(), digest_size=1).digest()
    return SPLIT_OF_EIGHTH[digest[0] % len(SPLIT_OF_EIGHTH)]


def working(expression: str) -> str:
    """Work out ``7 + 5 - 3`` from left to right, a line for each operation.

    Without spaces: they are a third of the tokens, and there is nothing to learn about them.
    """
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total}{sign}{term}={result}")
        total = result
    return "\n".join(lines)
