"""Addresses of runs and of their comparison in MLflow's pages."""

from __future__ import annotations

from urllib.parse import quote

UI_PORT = 5000
"""Port of `deft ui` where none is given."""

RUNS = "params.objective != ''"
"""MLflow's search for runs that train: the parent run of a sweep has no curves."""


def address_of(tracking_uri: str) -> str:
    """Return the address of MLflow's pages; of a store without a server, that of `deft ui`."""
    if tracking_uri.startswith("http"):
        return tracking_uri.rstrip("/")
    return f"http://127.0.0.1:{UI_PORT}"


def run_link(tracking_uri: str, run_id: str) -> str:
    """Return the address of one MLflow run."""
    return f"{address_of(tracking_uri)}/#/runs/{run_id}"


def comparison_link(address: str, experiment_id: str, view: str = "") -> str:
    """Return the address of the runs of an experiment side by side, in charts.

    Args:
        address: of MLflow's pages.
        experiment_id: MLflow's id of the experiment.
        view: key of a shared view, see `deft.platform.tracking.charts`.
    """
    # MLflow ignores the view where a search stands in the address beside it.
    shown = f"viewStateShareKey={view}" if view else f"searchFilter={quote(RUNS)}"
    return (
        f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        f"&compareRunsMode=CHART&{shown}"
    )
