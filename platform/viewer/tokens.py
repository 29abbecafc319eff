"""Single tokens of held-out rows: what models predict there, and what objectives make of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import Any

from deft.evaluators.scores.token_table import HeldoutToken, read_tokens
from deft.evaluators.spec import token_table
from deft.platform.viewer.responses import ShownModel
from deft.workers.common.files import reading
from deft.workers.common.names import describe_import_error

RowKey = tuple[int, str]
"""Number of a held-out row, and digest of its token ids."""
Rows = Mapping[RowKey, Sequence[HeldoutToken]]

DIGITS = 4
"""Significant digits of a number on the page."""


def tokens_as_json(models: Sequence[ShownModel]) -> dict[str, Any]:
    """Return the part of the page's data that is about tokens.

    Every list of an example has an entry for each of its target tokens. Where a statistic over
    tokens, such as a mean, enters a gate, it is over all tokens of the model on the page.
    """
    rows_of = {
        number: rows
        for number, model in enumerate(models)
        if (rows := _read_rows(model, model.label))
    }
    objectives = {number: _objective_of(models[number]) for number in rows_of}
    names = list(dict.fromkeys(objectives.values()))
    problems: dict[str, str] = {}
    examples: dict[RowKey, dict[str, Any]] = {}
    for number, rows in rows_of.items():
        model = models[number]
        before = rows if model.label == "base" else _read_rows(model, "base")
        gates = {name: _gates(name, rows, before, problems) for name in names}
        for key, tokens in rows.items():
            example = examples.setdefault(
                key,
                {
                    "row": tokens[0].row,
                    "before": [token.before for token in tokens],
                    "texts": [token.text for token in tokens],
                    "models": {},
                },
            )
            example["models"][number] = {
                "p": [_rounded(math.exp(token.logp)) for token in tokens],
                "entropy": [_rounded(token.entropy) for token in tokens],
                "gates": {name: by_row[key] for name, by_row in gates.items() if by_row},
            }
    return {
        "objectives": [name for name in names if name not in problems],
        "problems": problems,
        "own": [
            None if model.label == "base" else objectives.get(number)
            for number, model in enumerate(models)
        ],
        "examples": [examples[key] for key in sorted(examples)],
    }


def _read_rows(model: ShownModel, label: str) -> dict[RowKey, list[HeldoutToken]]:
    tokens = read_tokens(model.run / token_table(label))
    return {key: list(row) for key, row in groupby(tokens, lambda each: (each.row, each.digest))}


def _objective_of(model: ShownModel) -> str:
    from deft.objectives import ObjectiveSpec

    file = model.run / "spec.json"
    with reading(file, "run the command of this run again"):
        spec = json.loads(file.read_text(encoding="utf-8"))
        return str(ObjectiveSpec.model_validate(spec["objective"]))


def _gates(
    name: str, rows: Rows, before: Rows, problems: dict[str, str]
) -> dict[RowKey, list[float | None]]:
    """Compute an objective's gate at every token; empty, and a problem, where that fails.

    Args:
        name: of the objective.
        rows: tokens of one model.
        before: tokens of the model that it starts from, which is the reference of objectives.
        problems: objective → why its gates cannot be computed.
    """
    try:
        gates = iter(_gate_column(name, rows, before))
    except Exception as error:
        # An objective of the user's may raise anything, or cannot be imported from here.
        problems[name] = describe_import_error(error)
        return {}
    return {key: [_rounded(next(gates)) for _ in tokens] for key, tokens in rows.items()}


def _gate_column(name: str, rows: Rows, before: Rows) -> list[float]:
    import torch

    from deft.objectives import TokenStats, get_objective
    from deft.objectives.base import TOP_K
    from deft.objectives.head.interface import apply_objective

    objective = get_objective(name)
    tokens = list(chain.from_iterable(rows.values()))

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    logp = column([token.logp for token in tokens])
    # A gate that reads what is not known of tokens is not a number, and not shown.
    unknown = torch.full_like(logp, math.nan)
    start = unknown
    if all(len(before.get(key, ())) == len(row) for key, row in rows.items()):
        start = column([token.logp for key in rows for token in before[key]])
    entropy_top = column([token.entropy_top for token in tokens])
    stats = TokenStats(
        logp=logp,
        p=logp.exp(),
        mask=torch.ones_like(logp, dtype=torch.bool),
        concentration=column([token.concentration for token in tokens]),
        entropy=column([token.entropy for token in tokens]),
        entropy_top=entropy_top if objective.top_k == TOP_K else unknown,
        top_logp=column([token.top_logp for token in tokens]),
        divergence=unknown,
    )
    sizes = [len(row) for row in rows.values()]
    context = {
        "example": torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        "position": torch.cat([torch.arange(size) for size in sizes]),
        "reference_logp": start,
        "initial_logp": start,
    }
    output = apply_objective(objective, stats, context)
    gates: list[float] = output.gate.tolist()
    return gates


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
