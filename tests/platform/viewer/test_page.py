"""The page of responses in a real browser: thousands of items, and responses that are hostile."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deft.evaluators.scores.token_table import HeldoutToken, write_tokens
from deft.evaluators.spec import token_table
from deft.platform.viewer.page import render, write_view
from helpers import make_prediction, write_finished_run

NUM_ITEMS = 5000
HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "{{ script }} {{ title }} {{ data }}",
    "<!--<script>",
    '\u2028"];document.title="owned";//',
    "\ud800 half a pair",
    "javascript:document.title='owned'",
)


@pytest.fixture
def page(ui: ModuleType) -> Iterator[Any]:
    with ui.browser_page() as page:
        yield page


def write_runs(root: Path) -> list[Path]:
    """Leave two runs on the same items: one has every 2nd right, the other every 3rd."""
    runs = []
    for objective, period in (("original", 2), ("DEFT", 3)):
        tables = {
            label: {
                "sums": [
                    make_prediction(
                        item,
                        is_correct=label == "eval" and item % period == 0,
                        response=f"{objective} says {item}"
                        if item % 500
                        else HOSTILE[item // 500 % 6],
                    )
                    for item in range(NUM_ITEMS)
                ]
            }
            for label in ("eval", "base")
        }
        runs.append(write_finished_run(root, tables, objective=objective).path)
    return runs


def test_thousands_of_items_are_filtered_and_compared(page: Any, tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    out = tmp_path / "view.html"
    assert write_view(runs, "two runs", out) == NUM_ITEMS
    began = time.monotonic()
    page.goto(out.as_uri())
    assert page.locator("#count").inner_text() == "5,000 of 5,000 items"
    assert time.monotonic() - began < 30
    # The trained models, and the one model before both.
    assert page.locator("#left option").all_inner_texts() == [
        runs[0].name,
        runs[1].name,
        "base: tiny-0123456789ab",
    ]
    # Right in one and wrong in the other: multiples of 2 or 3, but not of 6.
    page.select_option("#which", "differ")
    expected = [n for n in range(NUM_ITEMS) if (n % 2 == 0) != (n % 3 == 0)]
    assert page.locator("#count").inner_text() == f"{len(expected):,} of 5,000 items"
    page.select_option("#which", "right")
    only = [n for n in range(NUM_ITEMS) if n % 3 == 0 and n % 2]
    assert page.locator("#count").inner_text() == f"{len(only):,} of 5,000 items"
    detail = page.locator("#detail").inner_text()
    for text in ("question 3", "gold 3", "original says 3", "DEFT says 3", "extracted 3"):
        assert text in detail
    page.locator("#list").press("ArrowDown")
    assert "question 9" in page.locator("#detail").inner_text()
    # Few rows are in the document, and the last can be reached.
    assert page.locator(".row").count() < 60
    page.evaluate("document.getElementById('list').scrollTop = 1e9")
    page.get_by_text(f"sums item-{only[-1]}", exact=False).click()
    assert f"question {only[-1]}" in page.locator("#detail").inner_text()
    page.select_option("#which", "all")
    page.fill("#search", "DEFT SAYS 4321")
    assert page.locator("#count").inner_text() == "1 of 5,000 items"
    page.select_option("#verdict", "correct")
    assert page.locator("#count").inner_text() == "0 of 5,000 items"


def write_heldout_tokens(run: Path, label: str, probabilities: list[float]) -> None:
    """Leave one held-out row "3 + 4 = 7" of a run's model; every token has the same neighbors."""
    words = ["3 + 4", " =", " 7"]
    tokens = [
        HeldoutToken(
            row=0,
            digest="0123456789ab",
            before="what is the sum?\n" if index == 0 else "",
            text=words[index],
            logp=math.log(p),
            entropy=1.5,
            entropy_top=1.2,
            concentration=0.25,
            top_logp=math.log(max(p, 0.5)),
        )
        for index, p in enumerate(probabilities)
    ]
    write_tokens(tokens, run / token_table(label))


def depths(page: Any) -> list[list[float]]:
    """Return the depths of color of the tokens, model by model."""
    return [
        [
            float(token.evaluate("each => each.style.getPropertyValue('--depth')"))
            for token in side.locator(".token").all()
        ]
        for side in page.locator("#token-sides .side").all()
    ]


def test_held_out_tokens_are_colored_by_what_objectives_make_of_them(
    page: Any, tmp_path: Path
) -> None:
    tables = {label: {"sums": [make_prediction(0, is_correct=True)]} for label in ("eval", "base")}
    runs = [
        write_finished_run(tmp_path, tables, objective=objective).path
        for objective in ("original", "p")
    ]
    for run, probabilities in zip(runs, ([0.5, 0.9, 0.1], [0.25, 1.0, 0.5]), strict=True):
        write_heldout_tokens(run, "eval", probabilities)
        write_heldout_tokens(run, "base", [0.1, 0.1, 0.1])
    out = tmp_path / "view.html"
    write_view(runs, "two runs", out)
    page.goto(out.as_uri())
    page.click("#show-tokens")
    assert page.locator("#responses").is_hidden()
    assert page.locator("#example option").all_inner_texts() == ["row 0: 3 + 4 = 7"]
    texts = page.locator("#token-sides pre").all_inner_texts()
    assert texts == ["what is the sum?\n3 + 4 = 7"] * 3
    deepest = 0.65
    shares = [[0.5, 0.9, 0.1], [0.25, 1.0, 0.5], [0.1] * 3]
    by_p = [[pytest.approx(deepest * p, abs=1e-3) for p in model] for model in shares]
    assert depths(page) == by_p
    # The gate of NLL is 1, that of "p" is p; the untouched model has none of its own.
    page.select_option("#color", "own")
    assert depths(page) == [[deepest] * 3, by_p[1], []]
    assert "not trained" in page.locator("#token-sides .side").nth(2).inner_text()
    page.select_option("#color", label="gate: p")
    page.locator(".token").nth(5).hover()
    told = page.locator("#token").inner_text()
    for number in ('" 7"', runs[1].name, "p 0.5", "entropy 1.5", "gate of original 1"):
        assert number in told
    page.click("#show-responses")
    assert page.locator("#tokens").is_hidden()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_response_runs_script_or_breaks_the_page(page: Any, tmp_path: Path, width: int) -> None:
    answers = {"0": [HOSTILE[0], "wrong", None, 1, "stop", {}]}
    item = {"benchmark": HOSTILE[1], "id": HOSTILE[2], "sample": 0, "source": HOSTILE[3]}
    items = [
        {**item, "prompt": text, "gold": text, "answers": {"0": [text, text, text, 1, text, {}]}}
        for text in HOSTILE
    ] + [{**item, "prompt": "", "gold": "", "answers": answers}]
    numbers = [0.5] * len(HOSTILE)
    measured = {"p": numbers, "entropy": numbers, "gates": {HOSTILE[0]: numbers}}
    tokens = {
        "objectives": [HOSTILE[0]],
        "problems": {HOSTILE[2]: HOSTILE[0]},
        "own": [HOSTILE[0]],
        "examples": [{"row": 0, "before": HOSTILE, "texts": HOSTILE, "models": {"0": measured}}],
    }
    page_data = {"models": [HOSTILE[1]], "items": items, "tokens": tokens}
    data = json.dumps(page_data, ensure_ascii=False)
    out = tmp_path / "hostile.html"
    out.write_text(render(HOSTILE[1], data), encoding="utf-8")
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(out.as_uri())
    assert page.title() == HOSTILE[1]
    for _ in items:
        page.locator("#list").press("ArrowDown")
    page.fill("#search", "owned")
    assert page.locator("#count").inner_text() == f"{len(items)} of {len(items)} items"
    page.locator("#list").press("ArrowUp")
    assert page.locator("#detail pre").nth(0).inner_text().strip() in (*HOSTILE, "")
    assert page.title() == HOSTILE[1]
    page.click("#show-tokens")
    for color in ("p", "own", "0"):
        page.select_option("#color", color)
        page.locator(".token").first.click()
        assert HOSTILE[0] in page.locator("#token").inner_text()
    assert page.locator("#tokens pre").inner_text().count("owned") == 10
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing of it became an element, and the policy had nothing to refuse.
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert messages == []
    # A script that got in after all would not run.
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        "{textContent: 'document.title = 1'}))"
    )
    assert page.title() == HOSTILE[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
