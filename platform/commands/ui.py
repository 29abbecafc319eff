"""`deft ui`: MLflow's pages on the runs, opened where runs are compared."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path
from typing import NoReturn

from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.tracking.links import address_of, comparison_link
from deft.platform.tracking.uri import why_unreachable

START_TIMEOUT = 60.0
"""Seconds that the server may take until a browser is opened."""


def open_ui(tracking_uri: str, port: int, console: RunConsole, *, browser: bool) -> None:
    """Serve MLflow's pages, and print and open the link to the comparison of runs.

    Does not return where it serves: this process becomes the server. Where the tracking URI is a
    server's, its own pages are opened.

    Raises:
        UserError: the server does not answer.
    """
    if tracking_uri.startswith("http"):
        if problem := why_unreachable(tracking_uri):
            raise UserError(problem)
        link = link_of(tracking_uri, address_of(tracking_uri))
        console.print(f"that server has the UI itself: {link}")
        if browser:
            open_page(link)
        return
    link = link_of(tracking_uri, f"http://127.0.0.1:{port}")
    console.print(f"MLflow UI: {link} (Ctrl-C ends it)")
    sys.stdout.flush()
    if browser and has_screen():
        subprocess.Popen([sys.executable, "-m", __spec__.name, link])
    _serve(tracking_uri, port)


def link_of(tracking_uri: str, address: str) -> str:
    """Return the link to the comparison of runs, or to all experiments if nothing has run yet."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    from mlflow import MlflowClient

    from deft.platform.tracking.charts import share_charts
    from deft.platform.tracking.mlflow_run import EXPERIMENT

    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return f"{address}/#/experiments"
    number = str(experiment.experiment_id)
    # The view is made for the MLflow that is installed here; a server may have another one.
    view = "" if tracking_uri.startswith("http") else share_charts(client, number)
    return comparison_link(address, number, view)


def open_page(link: str) -> None:
    """Open a page in a browser, if there is a screen for it."""
    if has_screen():
        webbrowser.open(link)


def has_screen() -> bool:
    """Tell whether a person sits at a screen on which a browser can be opened."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.stdout.isatty() and (sys.platform == "darwin" or any(map(os.getenv, screens)))


def _serve(tracking_uri: str, port: int) -> NoReturn:
    """Become MLflow's server."""
    arguments = ["--backend-store-uri", tracking_uri, "--host", "127.0.0.1", "--port", str(port)]
    # One person looks at runs and curves: one worker instead of four, no line for each request,
    # and none of the eight processes that judge traces of LLM calls.
    arguments += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *arguments])


def open_when_ready(link: str) -> None:
    """Open a link in the browser as soon as its server answers."""
    health = link.partition("#")[0] + "health"
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(health, timeout=5):
                webbrowser.open(link)
                return
        except OSError:
            time.sleep(0.2)


def find_store(tracking_uri: str | None, root: Path) -> None:
    """Raise UserError if no run has left anything under ``root`` that could be shown."""
    if tracking_uri is None and not (root / "mlflow.db").exists():
        raise UserError(f"{root}: no runs there yet; start one with `deft run`")


if __name__ == "__main__":
    open_when_ready(sys.argv[1])
