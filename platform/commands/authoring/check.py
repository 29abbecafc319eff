"""`deft check`: what is wrong with an objective, what it does to tokens, and what it costs."""

from __future__ import annotations

from pydantic import BaseModel

from deft.objectives.base import Objective, get_objective
from deft.objectives.behavior import (
    TokenBehavior,
    behavior,
    compared_with_nll,
    describe_limits,
)
from deft.objectives.check import find_problems, unread_statistics
from deft.objectives.gate_curves import CONFLICT, OPEN
from deft.platform.console import RunConsole
from deft.platform.errors import UserError

BUILT_IN = ("logp", "p")
"""Statistics that every objective has."""


class ObjectiveReport(BaseModel):
    """What `deft check` finds out about an objective."""

    objective: str
    reads: list[str]
    """Statistics that it has: log p, p, and what it declares."""
    token_local: bool
    drops_tokens: bool
    problems: list[str] = []
    """What it is refused for, one sentence each."""
    notes: list[str] = []
    """What may be meant, one sentence each."""
    behavior: list[TokenBehavior] = []
    seconds_per_million_tokens: float | None = None
    nll_seconds_per_million_tokens: float | None = None


def check(name: str) -> ObjectiveReport:
    """Check the objective of a name, an import path, or either with parameters.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        objective = get_objective(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    report = ObjectiveReport(
        objective=str(objective.spec),
        reads=[*BUILT_IN, *sorted(objective.needs | objective.context)],
        token_local=objective.token_local,
        drops_tokens=objective.drops_tokens,
        problems=find_problems(objective),
    )
    if report.problems:
        return report
    rows = behavior(objective)
    seconds, nll_seconds = compared_with_nll(objective)
    update = {
        "notes": [*_declaration_notes(objective), *(describe_limits(rows) if rows else ())],
        "behavior": rows,
        "seconds_per_million_tokens": seconds,
        "nll_seconds_per_million_tokens": nll_seconds,
    }
    return report.model_copy(update=update)


def _declaration_notes(objective: Objective) -> list[str]:
    return [
        f"it declares {name} and does not read it; leave it out of @objective(needs=…), so that "
        "it need not be computed"
        for name in unread_statistics(objective)
    ]


def show_check(report: ObjectiveReport, console: RunConsole) -> None:
    """Print what was found out about an objective.

    Raises:
        UserError: it would be refused; the message has a line for each problem.
    """
    if report.problems:
        raise UserError("\n".join(report.problems))
    seconds, nll = report.seconds_per_million_tokens, report.nll_seconds_per_million_tokens
    assert seconds is not None
    assert nll is not None
    scope = "each token on its own" if report.token_local else "all tokens of a micro-batch"
    drops = "may leave tokens out" if report.drops_tokens else "keeps every token"
    rows = [
        ["reads", ", ".join(report.reads)],
        ["sees", f"{scope}; {drops}"],
        ["value and gate", "finite, one entry a token, in float32 and float64"],
        ["gate", "−∂value/∂log p, what it reads else held fixed"],
        ["time", f"{1e3 * seconds:.1f} ms per million tokens on this CPU; NLL {1e3 * nll:.1f} ms"],
    ]
    console.table(report.objective, ["", ""], rows, left=True)
    if report.behavior:
        _show_behavior(report.behavior, console)
    else:
        console.print("it reads other models or examples, so p alone does not describe its gate")
    for note in report.notes:
        console.print(f"note: {note}")


def _show_behavior(rows: list[TokenBehavior], console: RunConsole) -> None:
    conflict, open_question = (
        [row for row in rows if row.rest == rest] for rest in (CONFLICT, OPEN)
    )
    same = [(row.value, row.gate) for row in conflict] == [
        (row.value, row.gate) for row in open_question
    ]
    columns = ["p", "value", "gate"]
    shown = [[f"{row.p:g}", f"{row.value:.4g}", f"{row.gate:.4g}"] for row in conflict]
    title = "from hopeless to certain"
    if not same:
        title += f"; open: the rest on {OPEN}"
        columns += ["value, open", "gate, open"]
        for line, row in zip(shown, open_question, strict=True):
            line += [f"{row.value:.4g}", f"{row.gate:.4g}"]
    console.table(title, columns, shown)
