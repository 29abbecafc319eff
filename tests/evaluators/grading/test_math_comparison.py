"""When two answers are the same, case by case."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft.evaluators.grading.math import gold_answer, grade
from deft.evaluators.grading.math_comparison import same_answer

SAME = r"""
\frac12 | 0.5
\frac{\sqrt2}{2} | \frac{1}{\sqrt2}
1,000,000 | 1000000
1,3,5 | 5, 3, 1
(3,\infty) | x>3
(-\infty,3)\cup(5,\infty) | (5,\infty)\cup(-\infty,3)
(-\infty,3)\cup(5,\infty) | x<3 \text{ or } x>5
x=2 or x=-3 | -3, 2
1\pm\sqrt2 | 1-\sqrt{2}, 1+\sqrt2
\begin{pmatrix}1\\2\end{pmatrix} | \begin{bmatrix}1\\2\end{bmatrix}
50\% | 50
50\% | 0.5
90^\circ | 90
2516_8 | 2516_{8}
(C) | C
\text{(C)} | (C)\ 15
C | \text{(C)}
Evelyn | \text{Evelyn}
5 | 5\text{ cm}
5 | 5m
3:2 | \frac32
3:30 | 3:30
y=2x+1 | 2x+1
2x+1 | y=2x+1
y=2x+1 | 2x-y+1=0
025 | 25
27.0 | 27
3.14 | 3.14159
3.14 | \pi
4.5e33 | 4.5\times10^{33}
18.90 | \$18.90
\mathbb{R} | (-\infty,\infty)
\text{all real numbers} | (-\infty,\infty)
\emptyset | no solution
1\frac45 | \frac95
1\frac45 | 1.8
np.arcsin(10/13) | \arcsin\left(\frac{10}{13}\right)
-1./3 | -\frac13
3+4i | 4i+3
2\sin x\cos x | \sin 2x
\ln 2 | \log 2
\log_2 8 | 3
5! | 120
\binom{5}{2} | 10
3.5 | 3,5
x\neq 3 | (-\infty,3)\cup(3,\infty)
\mathbb{R}\setminus\{3\} | x \ne 3
(5,3) | x=5, y=3
(5,3) | 5,3
\{1,2\} | 2,1
1<x<2 | (1,2)
\text{east} | east
\frac{1}{3} | 0.\overline{3}
0.33 | \frac13
E=mc^2 | mc^2
\sqrt[3]{2} | 2^{1/3}
e^{2x}+1 | 1+e^{2x}
x^2+y^2=1 | 2x^2+2y^2=2
k\pi, k \in \mathbb{Z} | k\pi, k\in\mathbb Z
five | 5
-\frac{1}{2} | \frac{-1}{2}
-\frac{1}{2} | \frac{1}{-2}
36\pi | V=\frac43\pi r^3=36\pi
\frac{n(n+1)}{2} | \sum_{k=1}^n k
60^\circ | \frac{\pi}{3}
2 | x=2
"""
DIFFERENT = r"""
1,3,5 | 135
1,3,5 | 13,5
(1,2) | (2,1)
[3,\infty) | x>3
3 | \pm 3
\begin{pmatrix}1\\2\end{pmatrix} | \begin{bmatrix}1&2\end{bmatrix}
0.5 | 50
0.5 | 0.5\%
2516_8 | 2516
5\text{ cm} | 5\text{ m}
3:2 | 2:3
y=2x+1 | y=2x-1
x=5 | y=5
27 | 27.3
\pi | 3.14
\sqrt2 | 1.414
3.14159 | 3.14
4.5e33 | 4.5\cdot 10^{32}
(a+5)(b+2) | (c+5)(b+2)
3r^2 | 3R^2
12345678901234567890123 | 12345678901234567890124
3,5 | 3.5
(5,3) | x=3, y=5
\{1,2\} | (1,2)
1<x\le2 | (1,2)
even | odd
\frac{1}{3} | 0.333
12.5 | 12.53
10 | 1000
1 | -1
10\text{ cm}^2 | 10\text{ cm}
36\pi | 113.1
2,3 | x=2
"""


def pairs(table: str) -> list[tuple[str, str]]:
    return [
        (gold, answer)
        for gold, _, answer in (line.partition(" | ") for line in table.strip().splitlines())
    ]


@pytest.mark.parametrize(("gold", "answer"), pairs(SAME))
def test_same(gold: str, answer: str) -> None:
    assert same_answer(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_different(gold: str, answer: str) -> None:
    assert not same_answer(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("$t(0,4]", "(0,4]"),
        ("$y=2^{x}", "y=2^{x}"),
        ("$5$,", "5"),
        ("so it is \\boxed{5}.", "5"),
        ("He has 3 left.\n#### 3", "3"),
        ("The sum is 7, and \\boxed{\\frac{1}{2}} is half.", "\\frac{1}{2}"),
    ],
)
def test_golds_are_found_in_what_holds_them(gold: str, answer: str) -> None:
    assert gold_answer(gold) == answer


values = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(
        lambda f: rf"\frac{{{f[0]}}}{{{f[1]}}}"
    ),
    st.tuples(st.integers(2, 99), st.integers(2, 30)).map(lambda f: rf"{f[0]}\sqrt{{{f[1]}}}"),
    st.tuples(st.integers(1, 99), st.sampled_from("xyzn")).map(lambda f: f"{f[0]}{f[1]}+1"),
)
FRAMES = [
    r"\boxed{%s}", r"$\boxed{%s}$", r"\[\boxed{%s}\]", r"\boxed{ %s }", r"\boxed{$%s$}",
    r"\fbox{%s}", r"\boxed{\boxed{%s}}", "The answer is $%s$.", "Answer: %s",
    r"**Answer:** \(%s\)", "#### %s",
    "Final Answer: The final answer is $%s$. I hope it is correct.", "So we get\n\n$$%s$$",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(values, st.sampled_from(FRAMES))
def test_the_frame_around_an_answer_does_not_matter(value: str, frame: str) -> None:
    response = "We compute.\n\n" + frame % value
    assert grade({"response": response, "gold": value}).verdict == "correct"
    assert grade({"response": response, "gold": f"{value}+1"}).verdict == "wrong"


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_compared_exactly(left: int, right: int) -> None:
    assert same_answer(str(left), f"{right:,}") == (left == right)
