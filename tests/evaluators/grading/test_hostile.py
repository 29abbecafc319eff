"""Responses that want to stall, break or take over the grader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.parsing import sympy_parser

from deft.evaluators.grading.choice import grader as medical
from deft.evaluators.grading.math.grader import grade
from deft.evaluators.grading.sandbox.pool import GraderPool
from deft.evaluators.grading.verdicts import Verdict

NINES = "9" * 100_000
ANSWERS = {
    "tower of powers": "9^{9^{9}}",
    "higher tower": "9^{9^{9^{9^{9}}}}+x",
    "100,000 digits": NINES,
    "root of many digits": rf"\sqrt{{{NINES[:500]}}}",
    "large exponent": "10^{10^{10}}",
    "large negative exponent": "2^{-10^{12}}",
    "large e-notation": "1e999999999",
    "factorial": "(10^{10})!",
    "factorials": "9!!!!!",
    "binomial": r"\binom{1000000000}{500000000}",
    "sum": r"\sum_{k=1}^{10^{9}} \frac{1}{k}",
    "product": r"\prod_{k=1}^{10^{9}} k",
    "integral": r"\int_0^1 \frac{\sin(x^x)}{\sqrt{1+x^{17}}} dx",
    "limit": r"\lim_{x\to 0} \frac{\sin(x^{x^{x}})}{x^{x}}",
    "modulus": r"7^{10^{100}} \bmod 10",
    "huge matrix": r"\operatorname{zeros}(100000,100000)",
    "greatest common divisor": "\\gcd(10^{1000000},2^{1000000})",
    "parentheses": "(" * 5000 + "1" + ")" * 5000,
    "fewer parentheses": "(" * 20 + "x+1" + ")" * 20,
    "nested fractions": r"\frac{1}{" * 2000 + "1" + "}" * 2000,
    "nested roots": r"\sqrt{1+" * 20 + "2" + "}" * 20,
    "nested sines": r"\sin(" * 20 + "x" + ")" * 20,
    "10,000 fractions": r"\frac{1}{2}+" * 10_000 + "1",
    "10,000 bare fractions": r"\frac" * 10_000,
    "nested sets": r"\{" * 500 + "1" + r"\}" * 500,
    "opening braces": "{" * 100_000,
    "closing braces": "}" * 100_000,
    "commas": "," * 4900,
    "long list": "1," * 2400,
    "unions": r"(1,2)\cup" * 400,
    "signs": r"\pm" * 2000 + "1",
    "nested signs": "+".join(r"(1\pm2)" for _ in range(300)),
    "equations": "x=" * 2400,
    "inequalities": "x<" * 2400 + "1",
    "bars": "|x" * 280,
    "texts": r"\text{a }" * 600,
    "matrix": r"\begin{pmatrix}" + r"1&2\\" * 500 + r"\end{pmatrix}",
    "blanks": "1" + " " * 4900 + "2",
    "repeating decimal": "0." + "12" * 2000 + r"\ldots",
    "superscripts": "²" * 4000,
    "letters": "a b " * 1000,
    "lone surrogate": "\ud800",
}
RESPONSES = {
    "boxes": r"\boxed{1}" * 20_000,
    "open boxes": r"\boxed{" * 20_000,
    "the word boxed": "boxed " * 20_000,
    "ten megabytes": "a" * 10_000_000,
    "ten megabytes of blanks": " " * 10_000_000,
    "ten megabytes of dollars": "$" * 10_000_000,
    "ten megabytes of digits": "1" * 10_000_000,
    "prices": "$1 " * 30_000,
    "statements": "the answer is " * 20_000,
    "denials": "the answer is not " * 20_000,
    "headings": "Answer:\n" * 20_000,
    "hashes": "#" * 60_000,
    "stars": "*" * 60_000,
    "null bytes": "\x00" * 10_000,
}


@pytest.fixture(scope="module")
def pool() -> Any:
    with GraderPool("math", workers=2) as pool:
        yield pool


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_answers_are_never_correct(pool: GraderPool, name: str) -> None:
    boxed = rf"So \boxed{{{ANSWERS[name]}}}"
    futures = [
        pool.submit({"response": boxed, "gold": "7"}),
        pool.submit({"response": f"The answer is {ANSWERS[name]}.", "gold": r"\frac{1}{7}"}),
        pool.submit({"response": r"\boxed{7}", "gold": ANSWERS[name]}),
        pool.submit({"response": boxed, "gold": f"{ANSWERS[name]}+7"}),
    ]
    assert Verdict.correct not in [future.result().verdict for future in futures]


@pytest.mark.parametrize("name", RESPONSES)
def test_hostile_responses_are_never_correct(pool: GraderPool, name: str) -> None:
    assert pool.submit({"response": RESPONSES[name], "gold": "7"}).result().verdict != "correct"


def test_hostile_prose_does_not_need_the_kill() -> None:
    options = {"A": "Iron deficiency", "B": "Iron deficiency anemia", "C": "10 mg every 5 hours"}
    pieces = ("iron deficiency ", "most likely ", "if ", "that is not ", "iron, ", "Iron. ", "(A) ")
    with GraderPool("medical", workers=1) as pool:
        futures = [
            pool.submit({"response": piece * 20_000, "options": options, "gold": "B"})
            for piece in pieces
        ]
        verdicts = {future.result().verdict for future in futures}
    assert verdicts <= {Verdict.wrong, Verdict.no_answer}


def test_most_hostile_answers_do_not_even_need_the_kill(pool: GraderPool) -> None:
    verdicts = {
        name: pool.submit({"response": rf"\boxed{{{answer}}}", "gold": "7"}).result().verdict
        for name, answer in ANSWERS.items()
    }
    killed = {name for name, verdict in verdicts.items() if verdict == Verdict.grader_error}
    assert killed <= {"integral", "limit"}


def test_a_hostile_record_leaves_its_neighbors_alone(pool: GraderPool) -> None:
    futures = []
    for answer in ANSWERS.values():
        futures.append(pool.submit({"response": rf"\boxed{{{answer}}}", "gold": "7"}))
        futures.append(pool.submit({"response": r"\boxed{\frac{14}{2}}", "gold": "7"}))
    assert {future.result().verdict for future in futures[1::2]} == {Verdict.correct}


def test_large_numbers_that_differ_in_one_digit_are_different() -> None:
    for digits in (30, 300, 3000):
        gold = "9" * digits
        assert grade({"response": rf"\boxed{{{gold}}}", "gold": gold}).verdict == "correct"
        other = f"{gold[:-1]}8"
        assert grade({"response": rf"\boxed{{{other}}}", "gold": gold}).verdict == "wrong"


PAYLOADS = [
    "__import__('os').system('touch FILE')",
    "__import__('pathlib').Path('FILE').touch()",
    "open('FILE','w')",
    "exec(\"open('FILE','w')\")",
    "eval(\"open('FILE','w')\")",
    "(lambda: open('FILE', 'w'))()",
    "[open('FILE', 'w') for x in [1]]",
    "x.__class__.__base__.__subclasses__()",
    "1 if open('FILE','w') else 2",
    'f\'{open("FILE","w")}\'',
    "sympify(\"open('FILE','w')\")",
    "np.save('FILE', 1)",
]
FRAMES = [
    r"\boxed{%s}", r"$\boxed{\text{%s}}$", r"\boxed{x = %s}", r"\boxed{(1, %s)}", "%s",
    r"\boxed{\{%s\}}", r"\boxed{\frac{%s}{2}}", r"\boxed{\operatorname{%s}(1)}",
    "The answer is %s.", "Answer: %s", "#### %s",
    "The final answer is $%s$. I hope it is correct.", r"\boxed{1 + %s}",
    r"\boxed{\begin{pmatrix} %s & 1 \end{pmatrix}}", r"\boxed{x_{%s}}", r"\boxed{%s < x}",
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_is_evaluated_as_code(
    payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        evaluated.append(arguments)
        raise AssertionError("text reached an evaluator")

    # Everything in SymPy that evaluates text goes through here, `sympify` of a string included.
    evaluated: list[Any] = []
    monkeypatch.setattr(sympy_parser, "eval_expr", refuse)
    monkeypatch.chdir(tmp_path)
    payload = payload.replace("FILE", str(tmp_path / "created"))
    for frame in FRAMES:
        text = frame.replace("%s", payload)
        for response, gold in ((text, "7"), (r"\boxed{7}", text), (text, text), (text, "x + 1")):
            grade({"response": response, "gold": gold})
    options = {"A": payload, "B": "other"}
    medical.grade({"response": payload, "options": options, "gold": "A"})
    assert evaluated == []
    assert list(tmp_path.iterdir()) == []


def test_numbers_do_not_reach_an_evaluator_either(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[Any] = []
    monkeypatch.setattr(sympy_parser, "eval_expr", lambda *given, **_: evaluated.append(given))
    for answer in ("1.5x+2", "3x^{2}+0.25", r"\sqrt{2}+\frac{1}{3}", r"4.5\cdot 10^{3}+x", "50%x"):
        grade({"response": rf"\boxed{{{answer}}}", "gold": f"{answer}+y"})
    assert evaluated == []


LATEX_PIECES = st.sampled_from(
    [*"0123456789xyzabeinR", *"+-*/^_=<>(){}[]|,.;:!%$&~'\" \n", "\\", r"\frac", r"\sqrt", r"\pi",
     r"\boxed{", r"\text{", r"\left(", r"\right)", r"\cup", r"\pm", r"\infty", r"\{", r"\}", r"\\",
     r"\begin{pmatrix}", r"\end{pmatrix}", "the answer is ", "Answer: ", " or ", " and ", "#### ",
     "√", "²", "−", "½", "°", "≤", "∪", "\x00"]
)  # fmt: skip


@settings(max_examples=max(300, settings.default.max_examples), deadline=None)
@given(st.lists(LATEX_PIECES, max_size=25).map("".join))
def test_garbage_raises_nothing_and_is_not_the_answer(garbage: str) -> None:
    assert grade({"response": garbage, "gold": r"\frac{9173}{6421}"}).verdict != "correct"
    assert grade({"response": garbage, "gold": garbage}).verdict in set(Verdict)
    graded = medical.grade({"response": garbage, "options": {"Q": "zebra"}, "gold": "Q"})
    assert graded.verdict != "correct"


@settings(max_examples=max(200, settings.default.max_examples), deadline=None)
@given(st.text(max_size=60))
def test_any_text_raises_nothing(text: str) -> None:
    assert grade({"response": text, "gold": text}).verdict in set(Verdict)
    record = {"response": text, "options": {"A": text, "B": "other"}, "gold": "A"}
    assert medical.grade(record).verdict in set(Verdict)
