"""`deft show data` as a person runs it, with and without colors."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from rich.console import Console

from deft.platform.commands.show_data import show_data
from deft.platform.config.loading import load_spec
from deft.platform.console import RunConsole

Deft = Callable[..., CompletedProcess[str]]

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 6 × 7?"},
    {"role": "assistant", "content": "42."},
    {"role": "user", "content": "\x1b[31mred\x1b[0m [bold]x[/bold]?"},
    {"role": "assistant", "content": "No: é."},
]


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    records = [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK[:3]}]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path / "talk.jsonl"


def test_trained_text_stands_between_marks_and_nothing_acts_on_the_terminal(
    deft: Deft, talk: Path
) -> None:
    settings = ["--set", "dataset.bad_records=drop", "--set", "training.max_length=20"]
    done = deft("show", "data", "--dataset", talk.name, "--model", "tiny", *settings)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "⟦42.<|im_end|>⟧\n<|im_start|>user\n\\x1b[31mred\\x1b[0m [bold]x[/bold]?" in done.stdout
    assert "<|im_start|>assistant\n⟦No: é.<|im_end|>⟧" in done.stdout
    assert "talk.jsonl:2 · bad record (no response): the last turn must be" in done.stdout
    assert "chat · hash" in done.stdout
    assert "0 BOS · longer than 20: left out" in done.stdout
    first = next(line for line in done.stdout.splitlines() if line.startswith("talk.jsonl:1"))
    assert "tokens" in first
    assert "trained" in first


def test_on_a_terminal_trained_text_is_green_and_the_rest_dim(talk: Path, tmp_path: Path) -> None:
    names = {"dataset": str(talk), "model": "tiny", "objective": "p"}
    settings = ["dataset.bad_records=drop", "dataset.too_long=truncate", "training.max_length=40"]
    spec = load_spec(None, names, settings)
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system="standard", width=200)
    show_data(spec, tmp_path, 1, RunConsole(terminal))
    shown = screen.getvalue()
    assert "\x1b[1;32m42." in shown
    assert "\x1b[2m<|im_start|>system" in shown
    assert "⟦" not in shown
    assert "longer than 40: cut here" in shown
    assert "é" not in shown.split("cut here")[1]


def test_masks_of_all_turns_are_shown_and_what_nothing_reads(tmp_path: Path) -> None:
    masked = {"role": "assistant", "content": "43.", "weight": 0}
    sure = {"role": "user", "content": "Sure?"}
    record = {"messages": [TALK[1], masked, sure, *TALK[2:]], "source": "x"}
    (tmp_path / "talk.jsonl").write_text(json.dumps(record))
    names = {"dataset": str(tmp_path / "talk.jsonl"), "model": "tiny", "objective": "p"}
    screen = io.StringIO()
    show_data(load_spec(None, names), tmp_path, 1, RunConsole(Console(file=screen, width=200)))
    shown = screen.getvalue()
    assert "<|im_start|>assistant\n43.<|im_end|>\n<|im_start|>user\nSure?" in shown
    assert "⟦42.<|im_end|>⟧" in shown
    assert "⟦No: é.<|im_end|>⟧" in shown
    assert "ends with <|im_end|>" in shown
    assert "talk.jsonl: fields that nothing reads, with their number: source (1)" in shown


def test_noisy_examples_are_shown_with_what_they_are_trained_on(tmp_path: Path) -> None:
    records = [{"prompt": f"{n} = ?", "response": f"answer {n}."} for n in range(20)]
    file = tmp_path / "data.jsonl"
    file.write_text("?\n" + "".join(json.dumps(r) + "\n" for r in records))
    names = {"dataset": str(file), "model": "tiny", "objective": "p"}
    settings = ["dataset.bad_records=drop", "dataset.validation=0", "dataset.noise=0.5"]
    screen = io.StringIO()
    spec = load_spec(None, names, settings)
    show_data(spec, tmp_path, 21, RunConsole(Console(file=screen, width=200)))
    shown = screen.getvalue().split("data.jsonl:")[2:]
    noisy = ["noise: the response of another example" in text for text in shown]
    assert (len(shown), sum(noisy)) == (20, 10)
    for n, (text, is_noisy) in enumerate(zip(shown, noisy, strict=True)):
        assert f"{n} = ?" in text
        assert (f"⟦answer {n}." in text) != is_noisy


def test_every_data_set_of_a_mixture_is_shown(tmp_path: Path) -> None:
    for name in ("left", "right"):
        records = [{"prompt": f"{n} = ?", "response": f"{name} {n}."} for n in range(20)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    mixture = ", ".join(f"{tmp_path}/{name}.jsonl" for name in ("left", "right"))
    names = {"model": "tiny", "objective": "p"}
    settings = [f"dataset.mixture=[{mixture}]", "dataset.validation=0", "dataset.noise=1"]
    screen = io.StringIO()
    spec = load_spec(None, names, settings)
    show_data(spec, tmp_path, 3, RunConsole(Console(file=screen, width=200)))
    shown = re.split(r"\n(?=\S+jsonl:)", screen.getvalue())[1:]
    assert [text.split(" ")[0] for text in shown] == [
        f"{name}.jsonl:{n}" for name in ("left", "right") for n in (1, 2, 3)
    ]
    assert all("noise: the response of another example" in text for text in shown)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "data"], "give a run file"),
        (["show", "data", "--dataset", "none.jsonl", "--model", "tiny"], "there is no file"),
        (["show", "date"], "No such command"),
    ],
)
def test_bad_input_is_one_message(deft: Deft, arguments: list[str], expected: str) -> None:
    done = deft(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
