"""Nothing equals everything, and an answer equals itself however it is spelled.

Golds are built from one set of prime numbers and other answers from another set, so that no two of
them can mean the same, whatever kinds they are of.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from sympy import primerange

from deft.evaluators.grading.math.equality import same_answer
from deft.evaluators.grading.math.expressions import warm_up

Source = Callable[[], int]
SMALL, LARGE = list(primerange(101, 500)), list(primerange(503, 1000))
MINUTES = [2, 5, 8, 11, 14, 17, 23, 26, 29], [3, 6, 9, 12, 16, 19, 21, 24, 27]
KINDS: dict[str, Callable[[Source], str]] = {
    "integer": lambda p: str(p()),
    "negative": lambda p: f"-{p()}",
    "large": lambda p: f"{p()}" + "0" * 20 + f"{p()}",
    "decimal": lambda p: f"{p()}.{p()}",
    "fraction": lambda p: rf"\frac{{{p()}}}{{{p()}}}",
    "mixed": lambda p: rf"{p()}\frac{{2}}{{{p()}}}",
    "root": lambda p: rf"{p()}\sqrt{{{p()}}}",
    "power": lambda p: f"{p()}^{{{p()}}}",
    "scientific": lambda p: rf"{p() / 100} \times 10^{{{p() % 40}}}",
    "percent": lambda p: rf"{p()}\%",
    "money": lambda p: rf"\${p()}",
    "length": lambda p: rf"{p()}\text{{ cm}}",
    "speed": lambda p: rf"{p()}\text{{ m/s}}",
    "angle": lambda p: rf"{p()}^\circ",
    "pi": lambda p: rf"\frac{{{p()}\pi}}{{{p()}}}",
    "linear": lambda p: f"{p()}x+{p()}",
    "polynomial": lambda p: f"{p()}x^2-{p()}x+{p()}",
    "rational": lambda p: rf"\frac{{x+{p()}}}{{x-{p()}}}",
    "exponential": lambda p: f"e^{{{p()}t}}",
    "logarithm": lambda p: rf"\ln {p()}",
    "sine": lambda p: rf"\sin({p()}x)",
    "floor": lambda p: rf"\lfloor n/{p()} \rfloor",
    "remainder": lambda p: rf"{p()} - \lceil \frac{{n}}{{{p()}}} \rceil",
    "complex": lambda p: f"{p()}+{p()}i",
    "binomial": lambda p: rf"\binom{{n}}{{{p()}}}",
    "factorial": lambda p: f"{p()}!",
    "base": lambda p: f"{p()}_{{{p() % 5 + 11}}}",
    "ratio": lambda p: f"{p()}:{p()}",
    "pair": lambda p: f"({p()}, {p()})",
    "set": lambda p: rf"\{{{p()}, {p()}\}}",
    "list": lambda p: f"{p()}, {p()}, {p()}",
    "interval": lambda p: f"[{p()}, {p() + 1000})",
    "union": lambda p: rf"(-\infty, {p()}) \cup ({p() + 1000}, \infty)",
    "inequality": lambda p: rf"x \ge {p()}",
    "equation": lambda p: f"y = {p()}x + {p()}",
    "circle": lambda p: f"x^2 + y^2 = {p()}",
    "matrix": lambda p: rf"\begin{{pmatrix}} {p()} & {p()} \\ {p()} & 1 \end{{pmatrix}}",
    "plus or minus": lambda p: rf"{p()} \pm \sqrt{{{p()}}}",
    "words": lambda p: rf"\text{{{'amber' if p() < 500 else 'blue'}}}",
    "huge terms": lambda p: rf"10^{{60}} + {p()} - 10^{{60}}",
    "huge quotient": lambda p: rf"\frac{{2^{{200}}+{p()}}}{{2^{{200}}}}",
}


def clock(source: random.Random, side: int) -> str:
    half = source.choice(["", r"\text{ a.m.}", r"\text{ p.m.}"])
    return f"{source.randint(1, 12)}:{source.choice(MINUTES[side]):02d}{half}"


def answers(seed: int, numbers: list[int], count: int) -> list[str]:
    """Answers of every kind in turn."""
    source = random.Random(seed)
    side = int(numbers is LARGE)
    kinds = [*KINDS.values(), None]
    return [
        clock(source, side) if kind is None else kind(lambda: source.choice(numbers))
        for kind in (kinds[i % len(kinds)] for i in range(count))
    ]


@pytest.fixture(scope="module", autouse=True)
def warm_parser() -> None:
    warm_up()


def test_no_answer_equals_a_random_other_one() -> None:
    golds, others = answers(0, SMALL, 210), answers(1, LARGE, 100)
    assert len(golds) * len(others) >= 20_000
    confused = [(g, o) for g in golds for o in others if same_answer(g, o)]
    assert confused == []


UNDEFINED = [
    r"\frac{1}{0}", r"\frac{2}{0}", "1/0", r"\frac{0}{0}", "0^{-1}", r"\log 0", r"\tan 90^\circ",
    r"\frac{x}{0}", r"\frac{1}{3-3}",
]  # fmt: skip


def test_undefined_equals_nothing() -> None:
    others = [*answers(2, SMALL, 60), "0", "1", r"\infty", "x", r"\emptyset", "12:00"]
    pairs = [(u, o) for u in UNDEFINED for o in [*others, *UNDEFINED] if u != o]
    assert [pair for pair in pairs if same_answer(*pair) or same_answer(*pair[::-1])] == []


MARKS = [
    r"\${}", r"{}\%", r"{}^\circ", r"{}\text{{ cm}}", r"{}\text{{ kg}}", r"{}\text{{ hours}}",
    r"{}\text{{ cents}}", r"{}\text{{ cm}}^2", r"{}\text{{ euros}}", r"{}^\circ\text{{C}}",
]  # fmt: skip


@pytest.mark.parametrize("number", ["7", "36", "1.25", r"\frac{3}{4}"])
def test_marks_that_contradict_differ(number: str) -> None:
    marked = [mark.format(number) for mark in MARKS]
    pairs = [(a, b) for a in marked for b in marked if a != b]
    assert [pair for pair in pairs if same_answer(*pair)] == []
    assert all(same_answer(answer, number) for answer in marked)  # a missing mark is forgiven
    assert not same_answer(number, rf"{number}\%")


SPELLINGS: list[Callable[[str], str]] = [
    lambda t: f"${t}$",
    lambda t: f" {t} ",
    lambda t: f"{t}.",
    lambda t: rf"\boxed{{{t}}}",
    lambda t: rf"\displaystyle {t}",
    lambda t: rf"{{\color{{blue}} {t}}}",
    lambda t: rf"\large {t}",
    lambda t: t.replace(r"\frac", r"\dfrac"),
    lambda t: t.replace("-", "−"),
    lambda t: t.replace("(", r"\left(").replace(")", r"\right)") if "pm" not in t else t,
    lambda t: t.replace(r"\text{", r"\mathrm{"),
    lambda t: t.replace(r"\times", r"\cdot"),
    lambda t: t.replace(r"\ge ", r"\geq ").replace(r"\infty", "∞"),
    lambda t: t.replace(r"\\ ", r"\\").replace(" ", r"\,"),
]


@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
def test_spelling_does_not_change_an_answer(spelling: int) -> None:
    golds = answers(3, SMALL, 3 * (len(KINDS) + 1))
    wrong = [g for g in golds if not same_answer(g, SPELLINGS[spelling](g))]
    assert wrong == []


REWRITINGS: list[tuple[str, str]] = [
    ("{a}/{b}", r"\frac{{{a}}}{{{b}}}"),
    (r"\frac{{{a}}}{{{b}}}", r"\frac{{-{a}}}{{-{b}}}"),
    ("{a}.5", r"\frac{{{a}\cdot 2+1}}{{2}}"),
    (r"{a}\%", r"\frac{{{a}}}{{100}}"),
    (r"{a}\text{{ cm}}", "{a}"),
    (r"{a}\text{{ m}}", r"{a}00\text{{ cm}}"),
    (r"{a}\text{{ hours}}", r"{a}\cdot 60\text{{ minutes}}"),
    (r"\${a}.25", r"{a}25\text{{ cents}}"),
    ("x^2-{a}x+{b}", "{b}+x^2-{a}x"),
    ("(x+{a})(x-{b})", r"x^2+({a}-{b})x-{a}\cdot {b}"),
    (r"\frac{{{a}}}{{\sqrt{{{b}}}}}", r"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}"),
    (r"\ln {a}+\ln {b}", r"\ln({a}\cdot {b})"),
    ("e^{{{a}t}}", r"\exp({a}t)"),
    (r"2\sin({a}x)\cos({a}x)", r"\sin(2\cdot {a}x)"),
    (r"\lfloor (n+{a}+1)/2 \rfloor", r"\lceil (n+{a})/2 \rceil"),
    (r"\lfloor n+{a} \rfloor", r"{a}+\lfloor n \rfloor"),
    (r"\{{{a},{b}\}}", r"\{{{b},{a}\}}"),
    ("({a},{b})", "x={a}, y={b}"),
    ("{a},{b}", r"x={b} \text{{ or }} x={a}"),
    (r"[{a},\infty)", r"x \ge {a}"),
    (r"(-\infty,{a})\cup({a},\infty)", r"x \ne {a}"),
    (r"(-\infty,-{a})\cup({b},\infty)", r"({b},\infty)\cup(-\infty,-{a})"),
    ("y={a}x+{b}", "{a}x-y+{b}=0"),
    (r"x>{a}", r"{a}<x"),
    (r"\begin{{pmatrix}}{a}\\{b}\end{{pmatrix}}", "({a},{b})^T"),
    (r"\begin{{pmatrix}}2\cdot {a}&0\\0&2\cdot {b}\end{{pmatrix}}",
     r"2\begin{{bmatrix}}{a}&0\\0&{b}\end{{bmatrix}}"),
    (r"{a}\pm\sqrt{{{b}}}", r"{a}+\sqrt{{{b}}}, {a}-\sqrt{{{b}}}"),
    (r"\frac{{\pi}}{{{a}}}+2\pi k", r"\frac{{\pi}}{{{a}}}+2\pi n, n\in\mathbb{{Z}}"),
    (r"{a}+{b}i", r"{b}i+{a}"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), REWRITINGS)
def test_rewriting_does_not_change_an_answer(gold: str, answer: str) -> None:
    source = random.Random(gold)
    for _ in range(10):
        a, b = source.sample(SMALL, 2)
        assert same_answer(gold.format(a=a, b=b), answer.format(a=a, b=b)), (a, b)
        assert not same_answer(gold.format(a=a, b=b), answer.format(a=a + 2, b=b + 4))


@pytest.mark.parametrize("time", ["3:00", "12:15", "7:00 \\text{ p.m.}", "00:30"])
def test_a_time_of_day_is_no_quotient(time: str) -> None:
    others = ["5:00", "4:05", "2:30", "1:00", "9:00 \\text{ p.m.}", "6:00", "1:5", "0.8"]
    assert [other for other in others if same_answer(time, other)] == []
    assert same_answer(time, time.replace(r"\text{ p.m.}", "PM"))
