"""Ordinary ways of naming an option, and of turning one down."""

from __future__ import annotations

import pytest

from deft.evaluators.grading.choice.grader import grade

ITEMS = [
    {"A": "Lisinopril", "B": "Amlodipine", "C": "Metoprolol", "D": "Furosemide"},
    {"A": "Superior mesenteric artery", "B": "Inferior mesenteric artery", "C": "Celiac trunk"},
    {"A": "Hypernatremia", "B": "Hyponatremia", "C": "Hypermagnesemia", "D": "Hypomagnesemia"},
    {"A": "yes", "B": "no", "C": "maybe"},
    {"A": "5 mL", "B": "15 mL", "C": "25 mL", "D": "35 mL", "E": "45 mL"},
]
NAMED = [
    "The correct answer is {X}.",
    "The answer is ({X}) {x}.",
    "**{X}. {x}**",
    "{X}",
    "Answer: {X}",
    "**Answer:** {X}. {x}\n\n**Explanation:** Option {Y} ({y}) is less likely.",
    "### Final Answer\n\n{X}",
    "### Final Answer\n\n**{X}. {x}**\n\n### Explanation\n\nOption {Y} ({y}) is wrong.",
    "{X}\n\nOption {Y} ({y}) is not correct.",
    "The best option is {x}.",
    r"\boxed{{{X}}}",
    "<answer>{X}</answer>",
    '{{"answer": "{X}", "confidence": 0.9}}',
    "<think>Maybe {Y}?</think>\n\nThe answer is {X}.",
    "[THINK]It is {Y}.[/THINK]{X}",
    "The answer is {X}.<|im_end|>\n<|im_start|>user\nNext<|im_end|>\nThe answer is {Y}.",
    "It is not {y} but {x}.",
    "Most likely: {X}\nSecond most likely: {Y}",
    "Most likely: {X} ({x})\nLess likely: {Y} ({y})",
    "First choice: {x}. Second choice: {y}.",
    "Ranking: {X} > {Y}",
    "Option {Y} is less likely than {X}.",
    "**Correct answer: {X}**\n\nWhy not {Y}? {y} is not suitable.",
    "The correct answer is:\n\n**{X}) {x}**\n\nThe others are wrong:\n- {Y}) {y}: not indicated.",
    "Die richtige Antwort ist {X} ({x}).",
    "La respuesta correcta es {X}.",
    "La bonne réponse est {X}.",
    "Правильный ответ: {X}.",
    "正确答案是{X}。",
    "{Y}选项错误，{X}选项正确。",
    "正解は{X}です。",
    "정답은 {X}입니다.",
]
NOT_CHOSEN = [
    "Option {X} ({x}) is wrong.",
    "Option {X} is incorrect.",
    "{X}. {x} is contraindicated.",
    "({X}) {x} should be avoided.",
    "{X}: {x} - not effective.",
    "{X} ({x}) may be used in pregnancy.",
    "{X} ({x}) is less likely.",
    "{X}) {x}: second-line.",
    "{X}. {x}: incorrect, because it does not fit.",
    "{X}. {x} ❌",
    "Alternative: {X}. {x}",
    "The answer is not {X}.",
    "It could be {X} or {Y}.",
    "Rule out {X}.",
]


@pytest.mark.parametrize("style", NAMED)
def test_the_named_option_is_chosen(style: str) -> None:
    for options in ITEMS:
        letters = list(options)
        for letter, other in zip(letters, letters[1:] + letters[:1], strict=True):
            response = style.format(X=letter, x=options[letter], Y=other, y=options[other])
            for gold, verdict in ((letter, "correct"), (other, "wrong")):
                graded = grade({"response": response, "options": options, "gold": gold})
                assert graded.verdict == verdict, (response, graded)


@pytest.mark.parametrize("style", NOT_CHOSEN)
def test_an_option_that_is_turned_down_is_not_chosen(style: str) -> None:
    for options in ITEMS:
        letters = list(options)
        for letter, other in zip(letters, letters[1:] + letters[:1], strict=True):
            response = style.format(X=letter, x=options[letter], Y=other, y=options[other])
            graded = grade({"response": response, "options": options, "gold": letter})
            assert graded.verdict == "no_answer", (response, graded)
