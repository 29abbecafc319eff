"""`deft chat` with a model of random weights: what it says is nothing, how it is asked is all."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deft.platform.cli import app
from deft.platform.commands.model.chat import Chat, talk
from deft.platform.errors import UserError
from deft.platform.records.run_directory import RunDirectory
from helpers import make_prediction, write_finished_run


@pytest.fixture
def run(tmp_path: Path, save_small_model: Callable[[Path], None]) -> RunDirectory:
    tables = {"eval": {"figfont": [make_prediction(0, is_correct=True)]}}
    run = write_finished_run(tmp_path, tables, objective="DEFT")
    save_small_model(run.path / "model")
    return run


def greedy(model: Path, *texts: str) -> str:
    """Return what the model answers to turns of user and assistant, by the plain way."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 2, texts, strict=False)
    ]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = AutoModelForCausalLM.from_pretrained(model).generate(
        **prompt, max_new_tokens=8, do_sample=False
    )
    text: str = tokenizer.decode(
        output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text


def test_text_in_a_pipe_gets_one_answer(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 1 + 2?\n"))
    name = run.path.name.rpartition("-")[0]
    arguments = ["chat", name, "--root", str(run.path.parent), "--max-tokens", "8"]
    app(arguments, standalone_mode=False)
    answer = greedy(run.path / "model", "What is 1 + 2?")
    assert answer
    assert capsys.readouterr().out == f"{answer}\n"


def test_conversation_goes_on_until_the_end_of_the_input(run: RunDirectory) -> None:
    chat = Chat(run.path / "model", "chat", max_tokens=8, temperature=0)
    lines = iter(["What is 1 + 2?", " ", "What is 3?"])
    written: list[str] = []

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    talk(chat, read, written.append)
    first = greedy(run.path / "model", "What is 1 + 2?")
    second = greedy(run.path / "model", "What is 1 + 2?", first, "What is 3?")
    assert "".join(written) == f"{first}\n{second}\n"
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant"] * 2
    with pytest.raises(UserError, match="too long for the model's context"):
        chat.answer("1 " * 20_000, written.append)


def test_sampling_is_what_is_asked_for(run: RunDirectory) -> None:
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        chat = Chat(run.path / "model", "chat", max_tokens=16, temperature=1.0)
        answers.append(chat.answer("What is 1 + 2?", str))
    assert answers[0] == answers[1] != answers[2]
