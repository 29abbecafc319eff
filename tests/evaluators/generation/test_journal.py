"""The journal that responses are kept in while they are generated."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.evaluators.generation.journal import Response, ResponseJournal, read_responses


def response(item: str, sample: int = 0, text: str = "x") -> Response:
    return Response(item, sample, text, "gold", {"A": "a"}, "stop", 3)


def test_responses_are_there_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "r.jsonl"
    with ResponseJournal(path) as journal:
        for i in range(3):
            journal.append(response("a", i, f"line\n{i} \ud800 Ω"))
            assert len(read_responses(path, pytest.fail)) == i + 1
    responses = read_responses(path, pytest.fail)
    assert responses[("a", 2)] == response("a", 2, "line\n2 \ud800 Ω")


def test_a_torn_last_line_is_cut_off_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ResponseJournal(path) as journal:
        journal.append(response("a"))
    with path.open("ab") as file:
        file.write(b'{"id": "b", "sam')
    assert list(read_responses(path, pytest.fail)) == [("a", 0)]
    with ResponseJournal(path) as journal:
        journal.append(response("b"))
    assert list(read_responses(path, pytest.fail)) == [("a", 0), ("b", 0)]


def test_no_journal_is_no_response(tmp_path: Path) -> None:
    assert read_responses(tmp_path / "none.jsonl", pytest.fail) == {}
