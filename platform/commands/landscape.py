"""`deft landscape`: draw how objectives weight a model's tokens, without training it."""

from __future__ import annotations

from pathlib import Path

from deft.objectives import get_objective
from deft.objectives.base import TOP_K
from deft.objectives.diagnostics import LANDSCAPE_STATISTICS, draw_landscapes, landscapes
from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.workers.data.prepare import prepare
from deft.workers.modeling.token_statistics import token_statistics


def draw_landscape(
    spec: ExperimentSpec, objectives: list[str], root: Path, out: Path, console: RunConsole
) -> None:
    """Draw one panel per objective over the tokens of the spec's dataset under its model.

    Args:
        spec: its dataset, model, seed and `training.max_length` say which tokens.
        objectives: names of objectives.
        root: run root, for the cache of prepared models and data.
        out: image file; the suffix decides its format.
        console: where progress is shown.

    Raises:
        UserError: an objective cannot be drawn, or data or model cannot be used.
    """
    try:
        chosen = [get_objective(name) for name in objectives]
        for objective in chosen:
            if not objective.is_described_by_gate or objective.top_k != TOP_K:
                raise ValueError(
                    f"--objectives: {objective.spec} is not described by a gate alone, over the "
                    "model's own prediction; leave it out"
                )
        prepared = prepare(
            spec.dataset,
            spec.model,
            max_length=spec.training.max_length,
            seed=spec.seed,
            cache=root.resolve() / "cache",
        )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    needs = LANDSCAPE_STATISTICS.union(*(objective.needs for objective in chosen))
    with console.progress("examples") as view:
        stats = token_statistics(
            prepared.model_dir,
            prepared.rows_dir,
            needs,
            lambda done, total: view.update("tokens", done, total),
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_landscapes(landscapes(stats, chosen)).savefig(out, dpi=150)
    console.print(f"{len(stats.p):,} tokens under {len(chosen)} objectives: {out}")
