"""A photograph of MLflow's charts on a run root: curves side by side, one for each objective.

    python tests/ui_screenshot.py runs examples/comparison.png
    python tests/ui_screenshot.py runs examples/comparison.png --filter "params.model = 'tiny'"

Starts `deft ui` and Chromium, groups the runs by objective (mean over seeds, a band from the least
to the greatest) and shows `CHARTS`. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Page, expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox: it needs privileges that containers do not give. The pages are our own.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHARTS = ("train/nll", "train/mean_gate")
RUNS = "params.objective != ''"
"""Leaves out the parent run of a sweep, which has no curves."""
PAGE_TIMEOUT = 60
"""Seconds until the server has to answer, or the page to show what is waited for."""


def find_browser() -> str | None:
    """Find the Chromium of this machine, if it has one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def mlflow_ui(root: Path) -> Iterator[str]:
    """`deft ui` on a run root; the address at which it answers."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [Path(sys.executable).with_name("deft"), "ui", "--root", str(root), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(f"{address}/health", server)
        yield address
    finally:
        # The server's workers are processes of their own.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of them are gone
                os.killpg(server.pid, signal.SIGKILL)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PAGE_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")


@contextlib.contextmanager
def browser_page() -> Iterator[Page]:
    """Open a page of a headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 800})
            page.set_default_timeout(PAGE_TIMEOUT * 1000)
            expect.set_options(timeout=PAGE_TIMEOUT * 1000)
            yield page
        finally:
            browser.close()


def open_runs(page: Page, address: str, query: str = RUNS) -> None:
    """Open the charts of all runs, as a person does who trains models."""
    page.goto(f"{address}/#/experiments")
    page.get_by_text("Model training", exact=True).click()
    page.get_by_title("deft", exact=True).click()
    page.get_by_label("Select all runs").wait_for()
    experiment = page.url.split("/experiments/")[1].split("/")[0]
    page.goto(
        f"{address}/#/experiments/{experiment}/runs"
        f"?compareRunsMode=CHART&searchFilter={quote(query)}"
        # In order of time MLflow would add the parent of what is found.
        f"&orderByKey={quote('params.`objective`')}&orderByAsc=true"
    )
    close = page.get_by_role("button", name="Close", exact=True)  # MLflow's assistant
    close.or_(page.get_by_label("Select all runs")).first.wait_for()
    if close.is_visible():
        close.click()


def group_by_objective(page: Page) -> None:
    """Have one curve for each objective instead of one for each run."""
    page.get_by_role("button", name="Group by").click()
    page.get_by_placeholder("Search", exact=True).fill("objective")
    page.get_by_role("menuitemcheckbox", name="objective", exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_text("Group: ").first.wait_for()


def show_charts(page: Page, metrics: Sequence[str]) -> None:
    """Show the charts of two metrics alone, large and side by side."""
    search = page.get_by_placeholder("Search metric charts")
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    expect(cards.nth(len(metrics))).to_be_attached()
    search.fill(f"^({'|'.join(metrics)})$")
    expect(cards).to_have_count(len(metrics))
    expect(page.locator(".js-plotly-plot .scatterlayer")).to_have_count(len(metrics))
    handle = page.get_by_test_id("draggable-card-resize-handle").first.bounding_box()
    assert handle is not None
    page.mouse.move(handle["x"] + 5, handle["y"] + 5)
    page.mouse.down()
    page.mouse.move(handle["x"] + 90, handle["y"] + 60, steps=5)
    page.mouse.move(handle["x"] + 180, handle["y"] + 80, steps=5)
    page.mouse.up()
    page.mouse.move(5, 5)


def curves(page: Page) -> list[list[dict[str, Any]]]:
    """Return each chart's curves on the page, with ``name`` and ``y``."""
    charts: list[list[dict[str, Any]]] = page.evaluate(
        """() => [...document.querySelectorAll('.js-plotly-plot')].map(
            chart => chart.data.map(curve => ({...curve, y: curve.y && [...curve.y]})))"""
    )
    return charts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="run root")
    parser.add_argument("out", type=Path, help="PNG file")
    parser.add_argument("--filter", default=RUNS, help="which runs, in MLflow's search syntax")
    arguments = parser.parse_args()
    if find_browser() is None:
        sys.exit(f"error: no Chromium here (looked for {', '.join(BROWSERS)})")
    with mlflow_ui(arguments.root) as address, browser_page() as page:
        open_runs(page, address, arguments.filter)
        group_by_objective(page)
        show_charts(page, CHARTS)
        page.wait_for_timeout(3000)  # until the curves are drawn anew in their size
        page.screenshot(path=arguments.out)


if __name__ == "__main__":
    main()
