"""The final answer is found however a response announces it."""

from __future__ import annotations

import json

import pytest

from deft.evaluators.grading.math.grader import grade

GOLDS = [
    ("42", "43"), ("-7", "7"), (r"\frac{3}{8}", r"\frac{5}{8}"), ("0.25", "0.35"),
    (r"2\sqrt{3}", r"3\sqrt{2}"), ("x^2-4x+3", "x^2+4x+3"), ("[-2,3)", "(-2,3)"),
    ("(3,-1)", "(-1,3)"), ("5,9", "5,8"), (r"\frac{\pi}{4}", r"\frac{\pi}{3}"),
    ("2+3i", "3+2i"), (r"\{1,2\}", r"\{1,3\}"), ("y=2x+1", "y=2x-1"), (r"60^\circ", r"30^\circ"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
]  # fmt: skip
"""Gold answers, each with a wrong one."""
ENDINGS = [
    r"The answer is $\boxed{%s}$.",
    "So we get\n\\[\n\\boxed{%s}\n\\]",
    r"Therefore \boxed{%s}. This completes the solution.",
    "Final Answer: The final answer is $%s$. I hope it is correct.",
    "Final Answer: The value of $n$ we are looking for is $%s$. I hope it is correct.",
    "**Final Answer:** $%s$",
    "**Final Answer: $%s$**",
    "**Final Answer**\n\n$%s$",
    "### Final Answer\n\n$%s$",
    "### Final Answer\n\n\\[\n%s\n\\]",
    "## Answer\n\n$$\\boxed{%s}$$",
    "The final answer is:\n\n$$\n%s\n$$",
    "So the final answer is:\n\n**$%s$**",
    "### Answer\n\n\\begin{align*}\n&%s\n\\end{align*}",
    "Therefore, we conclude that the result is \\(%s\\).",
    "Combining everything we obtain\n\\[\n%s.\n\\]",
    "After simplification, the expression equals $%s$.",
    "<answer>%s</answer>",
    "<answer>\n%s\n</answer>",
    "<answer>$%s$</answer>",
    "Answer: %s",
    "#### %s",
    "✅ **Answer:** $%s$ 🎉",
    "> **Answer:** $%s$",
    "**Answer:**\n- $%s$",
    "The final answer is:\n```\n%s\n```",
    "$%s$ is the answer.",
    "The answer is **%s**.",
    "The answer is $%s$, not $17$.",
    "The answer is $%s$ (we reject the other root $x=17$).",
    "So the answer is $%s$.\n\nLet's verify: plugging it back in gives $1 + 1 = 2$, which holds.",
    "The answer is $%s$.\n\nNote that $x = 0$ is not allowed: the denominator would be zero.",
    "Final answer: $%s$\nConfidence: 90%%",
    "First I thought the answer is $99$. But that ignores a case. The answer is $%s$.",
    "<think>Maybe it is 17? Or \\boxed{18}.</think>\nThe answer is $%s$.",
    "[THINK]The answer is 17.[/THINK]The answer is $%s$.",
    "<|channel|>analysis<|message|>Is it \\boxed{17}?<|end|><|start|>assistant<|channel|>final"
    "<|message|>The answer is $%s$.<|return|>",
    "analysisIs it \\boxed{17}? No.assistantfinalThe answer is $%s$.",
    "The answer is $%s$.<|im_end|>\n<|im_start|>user\nAnd 2+2?<|im_end|>\n"
    "<|im_start|>assistant\nThe answer is 4.",
    "So the final answer is $%s$.\nuser\nGreat, and what about 17?",
    "The answer is $%s$.\n\nProblem: What is 5+5 if we also count 17 apples?\nThe answer is 27.",
    "The answer is $%s$.\n\nNow a similar problem: 3 rows of 3 make \\boxed{9}.",
    "Die endgültige Antwort ist $%s$.",
    "La respuesta final es $%s$.",
    "La réponse finale est $%s$.",
    "Окончательный ответ: $%s$.",
    "因此，最终答案是 $%s$。",
    "したがって、答えは$%s$です。",
    "ดังนั้น คำตอบคือ $%s$",
    "Kwa hiyo, jibu ni $%s$.",
    "সুতরাং উত্তর হল $%s$।",
    "కాబట్టి సమాధానం $%s$.",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_answer_is_found_in_every_ending(ending: str) -> None:
    for gold, wrong in GOLDS:
        for answer, verdict in ((gold, "correct"), (wrong, "wrong")):
            response = "We simplify and collect terms.\n\n" + ending % answer
            graded = grade({"response": response, "gold": gold})
            assert graded.verdict == verdict, (response, graded)


@pytest.mark.parametrize("gold", [gold for gold, _ in GOLDS])
def test_json_in_a_code_block_is_read(gold: str) -> None:
    answer = json.dumps({"steps": ["we add", "we divide"], "answer": gold})
    assert grade({"response": f"```json\n{answer}\n```", "gold": gold}).verdict == "correct"


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        ("She sells 9 eggs at $2 each, so she makes 9 * $2 = <<9*2=18>>18 every day.", "18"),
        ("He pays $70,000, which is $500 less than before.", "70000"),
        ("So there are 24 chairs: 4 rows of 6.", "24"),
        ("We get $x = 24$ (the other root, $x = -3$, is discarded).", "24"),
        ("x = 24\n\nCheck: 24 + 6 = 30 ✓", "24"),
        ("There are 24 chairs.\n\n**Verification:** 24 / 6 = 4, the number of rows.", "24"),
        ("That is 3 dollars and 75 cents.", "3.75"),
        ("The ratio of cats to dogs is 3 : 4.", "3:4"),
        ("It is approximately 0.143, or exactly 1/7.", "1/7"),
        ("The answer isn't 21; it's 24.", "24"),
        ("合計で24個です。", "24"),
        ("모두 24개입니다.", "24"),
        ("Всего 24 яблока.", "24"),
        ("মোট ২৪টি আপেল।", "24"),
        ("In conclusion, twenty-four.", "24"),
    ],
)  # fmt: skip
def test_a_conclusion_is_read_without_its_remarks(sentence: str, answer: str) -> None:
    graded = grade({"response": f"We count.\n\n{sentence}", "gold": answer})
    assert graded.verdict == "correct", graded
    assert grade({"response": f"We count.\n\n{sentence}", "gold": "6"}).verdict == "wrong"


@pytest.mark.parametrize(
    "response",
    [
        "<think>The answer is \\boxed{24}.",
        "analysisThe answer is \\boxed{24}.",
        "Let me see. That makes \\boxed{24}? Wait, let me count again: 6, 12,",
        "The answer is 24. Wait, maybe",
    ],
)
def test_a_thought_that_was_cut_off_is_no_answer(response: str) -> None:
    record = {"response": response, "gold": "24", "finish_reason": "length"}
    assert grade(record).verdict == "truncated"


def test_a_thought_that_the_prompt_opened_is_no_answer() -> None:
    record = {"response": "So it is \\boxed{24}.", "gold": "24", "opens_thought": True}
    assert grade(record).verdict == "no_answer"
    ended = {**record, "response": "Or \\boxed{20}?</think>The answer is \\boxed{24}."}
    assert grade(ended).verdict == "correct"


def test_a_number_is_a_percentage_only_where_percent_are_asked_for() -> None:
    record = {"response": "It is \\boxed{12\\%}.", "gold": "12"}
    assert grade(record).verdict == "wrong"
    assert grade({**record, "question": "How many percent are red?"}).verdict == "correct"
    assert grade({**record, "question": "How many are red?"}).verdict == "wrong"
    assert grade({**record, "gold": "0.12"}).verdict == "correct"
