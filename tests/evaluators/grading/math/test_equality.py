"""When two answers are the same, case by case."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft.evaluators.grading.math.equality import same_answer
from deft.evaluators.grading.math.grader import gold_answer, grade

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
\frac{4}{5} | \frac{8}{10}
\frac{4}{5} | 4:5
0.8 | 80\%
1.0 | 100\%
\frac{1}{100} | 1\%
12 | 12.0000
5\% | 0.05
\$5 | 5\text{ dollars}
60\text{ mph} | 60
60\text{ mph} | 60\text{ miles per hour}
9\pi\text{ cm}^3 | 9\pi\text{ cubic centimeters}
30^{\circ} | 30
30^{\circ} | \pi/6
\pi/6 | 30^\circ
(1,\infty) | x\in(1,\infty)
(-1,1)\cup(2,3) | (-1,1),(2,3)
[0,1]\cup[2,3] | [2,3]\cup[0,1]
[0,2] | [0,1]\cup[1,2]
\{0\}\cup[1,\infty) | x=0 \text{ or } x\ge1
\{x \mid x \neq 0\} | (-\infty,0)\cup(0,\infty)
\{x\in\mathbb{R} : x>2\} | (2,\infty)
\text{all } x > 2 | x>2
x=1,\ x=2 | 1, 2
x_1=1, x_2=2 | 2, 1
\{1,-1\} | \pm1
-1,1 | x=\pm 1
a=2,b=3 | b=3,a=2
a=2,b=3 | (2,3)
(2,3) | a=2, b=3
\begin{pmatrix}1&0\\0&1\end{pmatrix} | \left[\begin{array}{cc}1&0\\0&1\end{array}\right]
\begin{pmatrix}3\\4\end{pmatrix} | (3,4)
\begin{pmatrix}3\\4\end{pmatrix} | \langle 3,4\rangle
3\mathbf{i}+4\mathbf{j} | 3i+4j
\frac{2\sqrt{3}}{3} | \frac{2}{\sqrt{3}}
\sqrt[3]{16} | 2\sqrt[3]{2}
4^{1/3} | \sqrt[3]{4}
\log_{10}100 | 2
\log 100 | 2
\ln e^2 | 2
\tan\frac{\pi}{4} | 1
\arctan 1 | \frac{\pi}{4}
\sec x | \frac{1}{\cos x}
\sin^{-1}(1/2) | \frac{\pi}{6}
6! | 720
{5 \choose 2} | 10
2^{-1} | 0.5
10^{-3} | 0.001
3\times10^{-3} | 0.003
3e-3 | 0.003
1,234,567 | 1234567
1{,}234{,}567 | 1,234,567
12,345 | 12345
1,2,3,4 | 4,3,2,1
f(x)=2x+3 | y=2x+3
f(x)=2x+3 | 2x+3
f^{-1}(x)=\frac{x-3}{2} | \frac{x-3}{2}
\frac{x-3}{2} | f^{-1}(x)=\frac{x-3}{2}
2x+3y=6 | y=-\frac23x+2
2x+3y=6 | 4x+6y=12
x^2+y^2-2x=0 | (x-1)^2+y^2=1
y=3 | 3
r=2\cos\theta | 2\cos\theta
\frac{dy}{dx}=2x | 2x
P(A)=\frac12 | \frac12
\angle A=40^\circ | 40
AB=5 | 5
|AB|=5 | 5
n=2k+1 | 2k+1
\text{Yes} | Yes
\text{Yes} | \text{Yes, it is.}
\text{isosceles} | \text{an isosceles triangle}
\text{parabola} | parabola
\text{Thursday} | thursday
\text{2 and 3} | 2, 3
\text{(A), (C)} | \text{A and C}
D | \text{(D)}
D | \text{D. } 12
\text{(D)} | D
\textbf{(D) } 12 | 12
\textbf{(D) } 12 | D
0 | -0
0 | -5+5=0
0 | 2^2-4=0
0 | x^2-9=3^2-9=0
-\frac{3}{-4} | \frac34
\frac{-a}{b} | -\frac{a}{b}
\frac{1}{1-x} | -\frac{1}{x-1}
xy | yx
\sqrt{x^2} | |x|
\infty | \text{infinity}
\emptyset | \{\}
AF_{16} | AF_{16}
12_{10} | 12
1\frac12 | 1.5
-2\frac14 | -\frac94
2\frac{1}{3}\text{ cups} | \frac{7}{3}
7\frac{1}{2}\% | 0.075
2.718 | e
0.667 | \frac{2}{3}
0.67 | \frac{2}{3}
1.41 | \sqrt2
33\frac13\% | \frac13
10:30 | 10:30 \text{ AM}
4:3:2 | 8:6:4
z=1+i | 1+i
2e^{i\pi/3} | 1+\sqrt3 i
i^2 | -1
a+bi | a+bj
10^{22} | 10000000000000000000000
2^{64}-1 | 18446744073709551615
\frac{100!}{98!} | 9900
\frac{1}{2}+\frac{1}{3} | \frac56
x(x-1)(x+1) | x^3-x
\lfloor 3.7\rfloor | 3
\lceil 3.2\rceil | 4
|{-5}| | 5
\binom{n}{k} | \frac{n!}{k!(n-k)!}
\sum_{i=1}^{5} i | 15
\prod_{i=1}^{4} i | 24
\cos^2 x-\sin^2 x | \cos 2x
a_n=2n-1 | 2n-1
5\sqrt{2}\approx7.07 | 5\sqrt{2}
5\sqrt{2} | 5\sqrt{2}\approx 7.07
7.07 | 5\sqrt2\approx7.07
\frac{5}{9} | ^5/_9
\frac{5}{9} | \color{red}{\frac{5}{9}}
\frac{5}{9} | \textcolor{green}{\tfrac59}
19 | {\Huge 19}
19 | \colorbox{lime}{19}
19 | 1{9}
\frac{8}{3} | 2⅔
7654321 | 7.654.321
7654321 | 7_654_321
7654321 | 7'654'321
1234567 | 12,34,567
55^\circ | 55^{\text{o}}
55^\circ | 55^o
20.25^\circ | 20^\circ 15'
(2, 7] | ]2; 7]
(2, 7) | ]2, 7[
(-\infty,4)\cup(4,\infty) | \text{all real numbers except } x = 4
(0,\infty) | \text{all positive real numbers}
(0,\infty) | \mathbb{R}_{>0}
(-\infty,0) | \mathbb{R}^-
(-\infty,6] | \text{all real numbers less than or equal to } 6
(-\infty,1)\cup(4,\infty) | \mathbb{R}\setminus[1,4]
x\neq3,x\neq-3 | x\neq\pm3
\begin{pmatrix}4\\-2\end{pmatrix} | (4,-2)^T
\begin{pmatrix}3&0\\0&3\end{pmatrix} | 3I
\begin{pmatrix}1&0&0\\0&1&0\\0&0&1\end{pmatrix} | I_3
\begin{pmatrix}2&6\\4&8\end{pmatrix} | 2\begin{pmatrix}1&3\\2&4\end{pmatrix}
\begin{pmatrix}1&3\end{pmatrix} | \begin{pmatrix}1\\3\end{pmatrix}^T
(3,-1,2) | 3\hat{i}-\hat{j}+2\hat{k}
\begin{cases}x & x>1\\0 & x\le1\end{cases} | \begin{cases}0, & \text{if }x\leq1\\x, & x>1\end{cases}
\begin{cases}2x & x>1\\0 & x\le1\end{cases} | \begin{cases}2x & x>1\\0 & \text{otherwise}\end{cases}
x=4,y=1 | \begin{cases}x=4\\y=1\end{cases}
\{2,4,6,8,10\} | \{2,4,\ldots,10\}
(1,2),(-1,2),(1,-2),(-1,-2) | (\pm1,\pm2)
3.4e-7 | 3.4\text{e-}7
421_6 | (421)_6
2F_{16} | 0x2F
1011_2 | 0b1011
\binom{7}{3} | {}_7C_3
\max(p,q) | \max\{p,q\}
\frac{1+i\sqrt{3}}{2} | \operatorname{cis}60^\circ
1+i\sqrt{3} | 2\operatorname{cis}\left(\frac{\pi}{3}\right)
i | \text{cis}\frac{\pi}{2}
54\text{ km/h} | 15\text{ m/s}
54\text{ km/h} | 54\ \frac{\text{km}}{\text{h}}
2.5\text{ kg} | 2500\text{ g}
150\text{ minutes} | 2.5\text{ hours}
3\text{ hours }15\text{ minutes} | 195\text{ minutes}
3\text{ hours }15\text{ minutes} | 3\tfrac14\text{ hours}
4\text{ dozen} | 4
4\text{ dozen} | 48
\$2.75 | 275\text{ cents}
€8 | 8\text{ euros}
6:20 \text{ p.m.} | 18:20
6:20 \text{ p.m.} | \text{6:20 PM}
\text{May 3} | \text{3 May 2021}
\text{rhombus} | \text{the figure is a rhombus}
\text{Oskar} | \text{Oskar is the youngest}
240 | \text{two hundred forty}
3000000 | three million
\frac{3}{5} | \text{three fifths}
\frac{26\pi}{3} | 8\frac23\pi
m\sqrt{5} | \sqrt{5} m
\frac{5m}{6} | \frac56 m
kqr | k q r
e^{bt} | \exp(b t)
\frac{\pi}{6}+k\pi | \frac{\pi}{6}+n\pi,\ n\in\mathbb{Z}
Ce^{-3x} | ce^{-3x}
3n+2 | a_n = 3n+2 \quad (n \ge 1)
\phi | \varphi
y''-9y=0 | y''=9y
\dot{x}=3x | \frac{dx}{dt}=3x
MR=MC | MC=MR
F=ma | a=\frac{F}{m}
\frac{2}{5}E_1+\frac{3}{5}E_2 | \frac{2E_1+3E_2}{5}
\lfloor (n+3)/2\rfloor | \lceil n/2\rceil+1
\infty | \text{infinitely many}
29 | \text{29 apples}
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
1 | 1\%
12 | 12\%
100 | 100\%
5\% | 0.5
60\text{ mph} | 60\text{ km/h}
9\pi\text{ cm}^3 | 9\pi\text{ cm}^2
\pi/6 | 30
(1,\infty) | [1,\infty)
(0,2) | (0,1)\cup(1,2)
(2,3) | x=2
\begin{pmatrix}1&0\\0&1\end{pmatrix} | \begin{vmatrix}1&0\\0&1\end{vmatrix}
\begin{pmatrix}3\\4\end{pmatrix} | (4,3)
\sin^{-1} x | \frac{1}{\sin x}
C(5,2) | 10
12,345 | 12,354
1,2,3,4 | 1,2,3
2x+3y=6 | 2x+3y=7
y=3 | x=3
\text{No} | \text{Yes}
\text{prime} | \text{not prime}
\text{ellipse} | hyperbola
\text{(A), (C)} | \text{A}
\textbf{(D) } 12 | \textbf{(D) } 13
\frac{a-b}{c} | \frac{b-a}{c}
(a-b)^3 | (b-a)^3
x^{y} | y^{x}
2x | x^2
\infty | \text{diverges}
\text{undefined} | \text{DNE}
\emptyset | \{0\}
1010_2 | 1010
1010_2 | 10
1\frac12 | \frac{1}{2}
\frac{22}{7} | 3.14
3.142 | \frac{22}{7}
0.6 | \frac{2}{3}
\frac23 | 0.667
1.4 | \sqrt2
\frac13 | 33.3\%
10:30 \text{ AM} | 10:30 \text{ PM}
10:30 | 10.30
10000000000000000000001 | 10^{22}
2^{64}-1 | 18446744073709551616
a_1 | a_2
x\to\infty | \infty
0 | x^2-9=0
0 | x^2-9=(x-3)(x+3)=0
3 | 3-3=0
\lfloor n/6\rfloor | \lfloor n/8\rfloor
\lfloor k/2\rfloor | \lfloor n/2\rfloor
\lceil n/3\rceil | \lfloor n/3\rfloor+1
\lfloor\sqrt{n}\rfloor | \lfloor\sqrt{n+2}\rfloor
\lfloor x\rfloor | \lceil x\rceil-1
n \bmod 4 | n \bmod 8
17 | 10^{45}+1-10^{45}
\frac{5}{7} | \frac{10^{50}+3}{10^{50}}
x | 10^{38}+2x-10^{38}
0 | 10^{-70}
1 | 1+10^{-55}
\ln(3^{200}+1) | 4
\sin(10^{50}) | 0
[0,2] | [0,10^{42}+5-10^{42}]
\frac{3}{0} | \frac{7}{0}
4:40 | 2:20
6:00 | 9:00
2:45 | 2.75
7:15 \text{ a.m.} | 7:15 \text{ p.m.}
6:20 \text{ p.m.} | 6:20 \text{ a.m.}
\$44 | 44\%
44\text{ kg} | 44^\circ
44\% | 44^\circ
\$7 | 7\text{ cents}
\$7 | €7
7\text{ kg} | 7\text{ lb}
54\text{ km/h} | 54\text{ m/s}
21 | 21^\circ\text{C}
2.75 | 2.75\%
CD | DC
MR=MC | MR=AC
\sqrt{7} m | \sqrt{7}
\pi s | \pi
(3,8) | 3<x<8
2k+1 | 2n+1
\begin{pmatrix}1&3\\2&4\end{pmatrix} | \begin{pmatrix}1&2\\3&4\end{pmatrix}
3I | \begin{pmatrix}3&3\\3&3\end{pmatrix}
\begin{cases}2x & x>1\\0 & x\le1\end{cases} | \begin{cases}2x & x\ge1\\0 & x<1\end{cases}
\text{May 3} | \text{May 4}
\text{Oskar} | \text{Oskar is not the youngest}
y(x-1)=0 | y=0
a_2 | \text{A}
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
