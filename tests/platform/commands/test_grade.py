"""`deft grade` as a person runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Deft = Callable[..., CompletedProcess[str]]


def write(path: Path, *records: Any) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_keep_their_order_and_fields(deft: Deft, tmp_path: Path) -> None:
    records = [
        {"id": i, "response": rf"So \boxed{{{i % 7}}} ∎", "gold": "3", "meta": {"seed": i}}
        for i in range(500)
    ]
    write(tmp_path / "in.jsonl", *records)
    done = deft("grade", "math", "in.jsonl", "--out", "out/graded.jsonl")
    assert done.returncode == 0, done.stderr
    graded = read(tmp_path / "out" / "graded.jsonl")
    assert [{k: line[k] for k in records[0]} for line in graded] == records
    assert [line["verdict"] == "correct" for line in graded] == [i % 7 == 3 for i in range(500)]
    assert [line["extracted"] for line in graded] == [str(i % 7) for i in range(500)]
    assert "in.jsonl 500/500 lines" in done.stdout
    assert "429" in done.stdout  # the wrong ones, in the table


def test_every_verdict_reaches_file_and_table(deft: Deft, tmp_path: Path) -> None:
    write(
        tmp_path / "in.jsonl",
        {"response": r"\boxed{3}", "gold": 3},
        {"response": r"\boxed{4}", "gold": "3"},
        {"response": "I do not know.", "gold": "3"},
        {"response": "We begin by", "gold": "3", "finish_reason": "length"},
        {"response": r"\boxed{\int_0^1 \frac{\sin(x^x)}{\sqrt{1+x^{17}}} dx}", "gold": "3"},
    )
    done = deft("grade", "math", "in.jsonl", "--out", "out.jsonl")
    verdicts = [line["verdict"] for line in read(tmp_path / "out.jsonl")]
    assert verdicts == ["correct", "wrong", "no_answer", "truncated", "grader_error"]
    assert all(verdict in done.stdout for verdict in verdicts)


def test_medical_and_figfont(deft: Deft, tmp_path: Path) -> None:
    options = {"A": "Atropine", "B": "Digoxin"}
    write(
        tmp_path / "medical.jsonl",
        {"response": "The answer is Atropine.", "options": options, "gold": "A"},
        {"response": "Either could be given.", "options": options, "gold": "A"},
    )
    assert deft("grade", "medical", "medical.jsonl", "--out", "out.jsonl").returncode == 0
    graded = read(tmp_path / "out.jsonl")
    assert [(line["verdict"], line["extracted"]) for line in graded] == [
        ("correct", "A"),
        ("no_answer", None),
    ]
    write(tmp_path / "figfont.jsonl", {"response": "IGXX\n", "gold": "IGAD"})
    assert deft("grade", "figfont", "figfont.jsonl", "--out", "out.jsonl").returncode == 0
    (line,) = read(tmp_path / "out.jsonl")
    assert line["verdict"] == "wrong"
    assert line["jaro_winkler"] == pytest.approx(2 / 3)
    assert line["jaro_winkler_paper"] == pytest.approx(2 / 3 + 0.2 / 3)


def test_what_json_allows_passes_through(deft: Deft, tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"response": "\\\\boxed{1}", "gold": "1", "odd": "\\ud800"}',
        b"",
        b'{"response": "\\\\boxed{1}", "gold": "1", "verdict": "stale", "extracted": "stale"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))  # no final line feed
    assert deft("grade", "math", "in.jsonl", "--out", "out.jsonl").returncode == 0
    graded = read(tmp_path / "out.jsonl")
    assert [line["verdict"] for line in graded] == ["correct", "correct"]
    assert graded[0]["odd"] == "\ud800"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"response": "x"}', "in.jsonl:3: gold: missing; expected a string or a number"),
        ('{"response": 1, "gold": "x"}', "in.jsonl:3: response: expected a string, found 1"),
        ("[1, 2]", "in.jsonl:3: expected a JSON object, found list"),
        ('{"response": "x", ', "in.jsonl:3: expected a JSON object: "),
        ("[" * 100_000, "in.jsonl:3: "),
        ('{"gold": ' + "1" * 10_000 + "}", "in.jsonl:3: "),
    ],
    ids=["missing", "type", "list", "cut off", "nested", "digits"],
)
def test_a_bad_line_is_refused_before_anything_is_graded(
    deft: Deft, tmp_path: Path, line: str, expected: str
) -> None:
    good = json.dumps({"response": "x", "gold": "x"})
    (tmp_path / "in.jsonl").write_text(f"{good}\n{good}\n{line}\n")
    done = deft("grade", "math", "in.jsonl", "--out", "out.jsonl")
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_unknown_names_and_files_are_refused(deft: Deft, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    for arguments, expected in [
        (["maths", "in.jsonl", "--out", "out.jsonl"], "Did you mean math?"),
        (["math", "none.jsonl", "--out", "out.jsonl"], "none.jsonl: No such file"),
        (["math", "in.jsonl"], "--out"),
        (["math", "in.jsonl", "--out", "in.jsonl/out"], "in.jsonl/out: cannot be written"),
    ]:
        done = deft("grade", *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert expected in done.stderr


def test_an_empty_file_is_graded_to_an_empty_file(deft: Deft, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    assert deft("grade", "math", "in.jsonl", "--out", "out.jsonl").returncode == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_grader_that_fails_on_every_line_ends_with_its_cause(deft: Deft, tmp_path: Path) -> None:
    (tmp_path / "graders_of_mine.py").write_text(
        "from deft.evaluators.benchmarks.base import Benchmark, Sampling\n"
        "def grade(record):\n    return record['golden']\n"
        "own = Benchmark('own', '', '', list, print, 'graders_of_mine:grade', Sampling(1), ())\n"
    )
    write(tmp_path / "in.jsonl", {"response": "r", "gold": "g"}, {"response": "s", "gold": "g"})
    done = deft("grade", "graders_of_mine:own", "in.jsonl", "--out", "out.jsonl")
    assert done.returncode == 2
    cause = "in.jsonl: the grader graders_of_mine:grade failed on all 2 responses: KeyError"
    assert cause in " ".join(done.stderr.split())
    assert not (tmp_path / "out.jsonl").exists()
