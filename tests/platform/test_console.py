"""Plain lines without a terminal, bars on one."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from deft.platform import console as deft_console
from deft.platform.console import RunConsole
from helpers import Clock


@pytest.mark.parametrize(("seconds_a_step", "num_lines"), [(0.2, 11), (0.015, 3), (0.0, 2)])
def test_plain_progress_is_few_whole_lines(
    seconds_a_step: float, num_lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(deft_console, "time", clock)
    console = RunConsole(Console(file=out, force_terminal=False, width=120, highlight=False))
    with console.progress("steps") as view:
        for step in range(1, 101):
            clock.now += seconds_a_step
            view.update("train", step, 100, f"nll {step}")
    lines = out.getvalue().splitlines()
    assert len(lines) == num_lines
    assert lines[0].split() == ["train", "1/100", "steps", "nll", "1"]
    assert num_lines < 11 or "s left" in lines[5]
    assert lines[-1].split() == ["train", "100/100", "steps", "nll", "100"]


def test_terminal_gets_a_bar_with_eta() -> None:
    out = io.StringIO()
    console = RunConsole(Console(file=out, force_terminal=True, width=120))
    with console.progress("steps") as view:
        for step in range(1, 51):
            view.update("train", step, 100)
            time.sleep(0.001)
        view.bars.refresh()
        assert "eta 0:" in out.getvalue()
        out.truncate(0)
        view.update("train", 100, 100)
        view.bars.refresh()
        assert "100/100 steps" in out.getvalue()
        assert "eta" not in out.getvalue()


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


def test_what_has_no_steps_is_said_and_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deft_console, "HEARTBEAT", 0.05)
    out = io.StringIO()
    console = RunConsole(Console(file=out, width=120))
    with console.progress("steps") as view:
        view.wait("2 workers start")
        first = out.getvalue()
        while "so far" not in out.getvalue():
            time.sleep(0.01)
        view.update("train", 1, 100)
        view.update("train", 2, 100)
        while "2/100" not in out.getvalue():
            time.sleep(0.01)
    assert first == "          2 workers start …\n"
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert "2 workers start, 0 s so far" in lines
    # No tenth of the steps is done: it is the time that makes it speak.
    assert any(line.startswith("train 2/100 steps, ") for line in lines)


def test_terminal_shows_what_is_waited_for_and_takes_it_away() -> None:
    out = io.StringIO()
    console = RunConsole(Console(file=out, force_terminal=True, width=120))
    with console.progress("steps") as view:
        view.wait("2 workers start")
        view.bars.refresh()
        assert "2 workers start" in out.getvalue()
        view.update("train", 1, 2)
        out.truncate(0)
        view.bars.refresh()
        assert "2 workers start" not in out.getvalue()
        assert "1/2 steps" in out.getvalue()


def test_a_narrow_terminal_keeps_the_numbers() -> None:
    out = io.StringIO()
    console = RunConsole(Console(file=out, force_terminal=True, width=80))
    with console.progress("steps") as view:
        view.show(
            "original, dataset.noise 0.0, training.learning_rate 0.0001",
            40,
            200,
            "40/200 steps",
            "objective 0.7696  nll 3.829  mean_p 0.4528",
            seconds_left=7384,
        )
        view.bars.refresh()
    lines = [line for line in out.getvalue().splitlines() if "200" in line]
    assert "40/200 steps" in lines[-1]
    assert "eta 2:03:04" in lines[-1]
    assert "original, dat" in lines[-1]


def test_a_terminal_breaks_lines_between_words() -> None:
    out = io.StringIO()
    console = RunConsole(Console(file=out, force_terminal=True, color_system=None, width=40))
    name = "chain_sum-smollm2-135m-original-5a6747592a"
    console.stage("prepare", f"320 examples, 12,800 tokens, of run {name}")
    console.print("  differences are told from noise  below 0.05")
    assert out.getvalue().splitlines() == [
        "prepare   320 examples, 12,800 tokens,",
        "          of run",
        f"          {name}",
        "  differences are told from noise  below",
        "  0.05",
    ]


def test_names_in_a_table_are_broken_at_hyphens() -> None:
    out = io.StringIO()
    console = RunConsole(Console(file=out, width=44))
    console.table("", ["", "score"], [["chain_sum-tiny-original-2eb08af141", "0.894 ± 0.012"]])
    names = [line.split("│")[1].strip() for line in out.getvalue().splitlines() if "│" in line]
    assert names == ["chain_sum-tiny-original-", "2eb08af141"]
