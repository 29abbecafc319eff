"""The charts that MLflow shows first, as a view that is shared by a link.

MLflow keeps a shared view of an experiment as a tag of it; a link names the view by its key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from mlflow import MlflowClient

from deft.platform.tracking.links import RUNS

VIEW = "deft"
"""Key of the view in links."""

VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"

SECTION = "deft-first"
"""Id of the section with the chosen charts."""

CURVES = ("train/nll", "validation/nll", "train/mean_gate")

PRIMARY = re.compile(r"eval/(?!mean/)[^/]+/(avg_at_\d+|jaro_winkler|bits_per_byte)")
"""Results that get a bar chart: those that models are compared by."""

MAX_BARS = 9

NUM_RUNS = 200
"""Number of latest runs whose metrics are looked at."""


def share_charts(client: MlflowClient, experiment_id: str) -> str:
    """Keep the view of the experiment's runs that begins with the charts that matter.

    Returns:
        The key of the view.
    """
    runs = client.search_runs([experiment_id], max_results=NUM_RUNS)
    metrics = {name for run in runs for name in run.data.metrics}
    client.set_experiment_tag(experiment_id, VIEW_TAG, json.dumps(view_state(metrics)))
    return VIEW


def view_state(metrics: Collection[str]) -> dict[str, object]:
    """Return the state of MLflow's page: chosen charts in a section of their own, at the top."""
    bars = sorted(name for name in metrics if PRIMARY.fullmatch(name))[:MAX_BARS]
    charts = [
        *(_chart("BAR", name) for name in bars),
        *(_chart("LINE", name) for name in CURVES if name in metrics),
    ]
    return {
        "searchFilter": RUNS,
        "compareRunCharts": charts,
        "compareRunSections": [_section()],
        # Sections that MLflow adds for other metrics come after it.
        "isAccordionReordered": True,
        "runListHidden": False,
        "hideEmptyCharts": True,
        "selectedColumns": _columns(["objective", "seed", "model", "dataset"]),
    }


def _chart(kind: str, metric: str) -> dict[str, object]:
    chart: dict[str, object] = {
        "type": kind,
        "uuid": f"{SECTION}-{metric}",
        "metricSectionId": SECTION,
        "metricKey": metric,
        "displayName": metric.removeprefix("eval/"),
        "runsCountToCompare": 20,
        "deleted": False,
        # MLflow does not add a chart of a metric a second time.
        "isGenerated": True,
    }
    if kind == "LINE":
        chart |= {
            "selectedMetricKeys": [metric],
            "xAxisKey": "step",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "scaleType": "linear",
            "xAxisScaleType": "linear",
            "selectedXAxisMetricKey": "",
            "lineSmoothness": 0,
            "range": {},
            "ignoreOutliers": False,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
        }
    return chart


def _section() -> dict[str, object]:
    return {
        "uuid": SECTION,
        "name": "results and losses",
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _columns(params: Sequence[str]) -> list[str]:
    return [f"params.`{name}`" for name in params]
