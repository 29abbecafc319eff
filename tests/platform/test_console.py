"""Plain lines without a terminal, bars on one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deft.platform.console import RunConsole


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    console = RunConsole(Console(file=out, force_terminal=terminal, width=120, highlight=False))
    with console.progress("steps") as view:
        for step in range(1, 101):
            view.update("train", step, 100, f"nll {step}")
    return out.getvalue()


def test_plain_progress_is_few_whole_lines() -> None:
    lines = shown(terminal=False).splitlines()
    assert len(lines) == 11
    assert lines[0].split() == ["train", "1/100", "steps", "nll", "1"]
    assert "s left" in lines[5]
    assert lines[-1].split() == ["train", "100/100", "steps", "nll", "100"]


def test_terminal_gets_a_bar_with_eta() -> None:
    text = shown(terminal=True)
    assert "100/100" in text
    assert "eta" in text


def test_markup_in_text_is_shown_as_it_is() -> None:
    out = io.StringIO()
    RunConsole(Console(file=out)).print("a [bold]name[/bold]")
    assert out.getvalue() == "a [bold]name[/bold]\n"


HOSTILE = "[red]x[/red] [/] :warning: \x1b[2J\x1b]0;owned\x07\x9b\u202e"
SHOWN = "[red]x[/red] [/] :warning: \\x1b[2J\\x1b]0;owned\\x07\\x9b\\u202e"


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_that_is_said_acts_on_the_terminal(terminal: bool) -> None:
    out = io.StringIO()
    screen = Console(file=out, force_terminal=terminal, color_system=None, width=400)
    console = RunConsole(screen)
    console.print(HOSTILE)
    console.stage(HOSTILE, HOSTILE)
    console.table(HOSTILE, [HOSTILE, "b"], [[HOSTILE, HOSTILE]])
    with console.progress("steps") as view:
        view.update(HOSTILE, 1, 2, HOSTILE)
    printed = out.getvalue()
    # What remains are Rich's own sequences, which draw the bar.
    for sequence in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e"):
        assert sequence not in printed
    assert printed.count(SHOWN) >= 8
