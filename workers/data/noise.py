"""Label noise: a share of the training examples gets the response of another one.

The responses are exchanged among those examples, so that what is written stays fluent, of the right
form and as long as ever, and only its relation to the prompt is wrong: a model cannot tell a noisy
example by its response alone. Which examples they are depends on the seed and not on the objective.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from deft.workers.common.example import IGNORE_INDEX
from deft.workers.data.example_store import BATCH_SIZE, map_batches

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray


def exchange_responses(
    rows: Dataset, *, share: float, seed: int, max_length: int, cache_file: str
) -> tuple[Dataset, NDArray[np.bool_]]:
    """Exchange the responses of ``share`` of ``rows`` among themselves.

    A row keeps its own response if the other one would not fit into ``max_length`` tokens, and if
    more than half of the chosen rows have the same.

    Args:
        rows: columns input_ids and labels, as `deft.workers.data.tokenization.tokenize` returns
            them; of the labels the last run of targets is the response.
        share: between 0 and 1.
        seed: changes the choice; a larger share only adds to it.
        max_length: most tokens of a row.
        cache_file: Arrow file that the new rows are written to.

    Returns:
        The rows in the same order, and which of them have another's response, bool [N].
    """
    if share == 0:
        return rows, np.zeros(len(rows), dtype=np.bool_)
    starts, responses, lengths = _responses(rows, seed)
    donors = choose_donors(responses, share, seed)
    fits = starts + (lengths - starts)[donors] <= max_length
    is_noisy = (responses != responses[donors]) & fits

    def exchange(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        chosen = [place for place, index in enumerate(indices) if is_noisy[index]]
        received = rows[[int(donors[indices[place]]) for place in chosen]] if chosen else {}
        for column in ("input_ids", "labels"):
            for place, other in zip(chosen, received.get(column, ()), strict=True):
                index = indices[place]
                own = batch[column][place][: starts[index]]
                batch[column][place] = own + other[starts[donors[index]] :]
        return batch

    noisy = map_batches(rows, exchange, features=rows.features, cache_file=cache_file, name="noisy")
    return noisy, is_noisy


def choose_donors(responses: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """From which row each row gets its response: from itself unless it is noisy.

    The chosen rows are a prefix of a random order. Sorted by their responses and rotated by the
    size of the largest group of equal ones, none of them gets its own back while no group is more
    than half of them.

    Args:
        responses: int64 [N], the same number for equal responses, in random order otherwise.
        share: of the rows to choose.
        seed: of the random order.

    Returns:
        int64 [N].
    """
    donors = np.arange(len(responses))
    order = np.random.default_rng(seed).permutation(len(responses))
    chosen = order[: round(share * len(responses))]
    if len(chosen):
        chosen = chosen[np.argsort(responses[chosen], kind="stable")]
        _, counts = np.unique(responses[chosen], return_counts=True)
        donors[chosen] = np.roll(chosen, counts.max())
    return donors


def _responses(rows: Dataset, seed: int) -> tuple[NDArray[np.int64], ...]:
    """Where the response of each row starts, 64 bits of it and of ``seed``, and the row's length.

    Each int64 [N].
    """
    starts, responses, lengths = [], [], []
    for batch in rows.select_columns("labels").with_format("numpy").iter(batch_size=BATCH_SIZE):
        for labels in batch["labels"]:
            masked = np.flatnonzero(labels == IGNORE_INDEX)
            start = int(masked[-1]) + 1 if len(masked) else 0
            digest = hashlib.blake2b(
                labels[start:].tobytes(), digest_size=8, salt=seed.to_bytes(8, "big")
            ).digest()
            starts.append(start)
            responses.append(int.from_bytes(digest, "big", signed=True))
            lengths.append(len(labels))
    return tuple(np.array(values, dtype=np.int64) for values in (starts, responses, lengths))
