"""Mathematics: a question, and an answer that is compared as mathematics.

Questions and golds are taken from the fields that arXiv 2602.11424's evaluation takes them from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deft.evaluators.benchmarks.base import (
    Benchmark,
    HubTable,
    Item,
    Paper,
    RecordFields,
    Sampling,
    required,
)
from deft.evaluators.scores.metrics import accuracy, majority, pass_at_k
from deft.workers.catalogs.prompt_styles import BOXED_INSTRUCTION

PAPER_STOP = (
    "</s>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
)
PAPER = Paper(
    Sampling(max_tokens=4096, samples=16, temperature=1.0, stop=PAPER_STOP),
    {
        "qwen": "qwen-boxed",
        "llama": "llama-base-boxed-with-bos",
        "deepseek": "deepseek-math",
    },
)

CORRECTED_GOLDS = {
    # Python instead of mathematics.
    "np.arcsin(10/13)": r"\arcsin(10/13)",
    "-1./3": "-1/3",
    "-3./2": "-3/2",
    # A letter before the interval, a stray dollar sign, a comma in a product.
    "t(0,4]": "(0,4]",
    "221,$8": "221,8",
    r"\frac{1}{2},\sqrt{x}": r"\frac{1}{2}\sqrt{x}",
}
"""Misprinted golds of minerva_math and olympiadbench → what was meant."""


def last_box(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{…}``, braces matched; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


def box_of_solution(record: RecordFields) -> str:
    """Return the solution's last box, or the field `answer` where there is no solution."""
    box = last_box(str(record.get("solution") or ""))
    return box if box is not None else required(record, "answer")


def first_final_answer(record: RecordFields) -> str:
    """Return the first of `final_answer`, without the dollar signs around it."""
    answers = record["final_answer"]
    if not answers or answers[0] is None:
        raise ValueError("the field final_answer is empty")
    return str(answers if isinstance(answers, str) else answers[0]).strip().strip("$")


def after_hashes(record: RecordFields) -> str:
    """Return the text after ``####``, without thousands separators."""
    return required(record, "answer").rpartition("####")[2].strip().replace(",", "")


def plain_answer(record: RecordFields) -> str:
    """Return the field `answer`; whole numbers without their decimal point."""
    answer = record["answer"]
    is_whole = isinstance(answer, float) and answer.is_integer()
    return str(int(answer)) if is_whole else required(record, "answer")


def reader(
    gold: Callable[[RecordFields], str], id_field: str = ""
) -> Callable[[RecordFields, int], Item]:
    """Make a reader of rows with a `question` or `problem` whose gold is ``gold(row)``."""

    def read(record: RecordFields, number: int) -> Item:
        question = required(record, "question" if "question" in record else "problem")
        answer = gold(record).strip()
        return Item(
            id=str(record.get(id_field, number)),
            prompt=({"role": "user", "content": question},),
            gold=CORRECTED_GOLDS.get(answer, answer),
        )

    return read


MATH500 = Benchmark(
    name="math500",
    summary="500 competition problems from seven subjects",
    source="MATH-500 (arXiv 2305.20050), test problems of MATH (arXiv 2103.03874)",
    records=HubTable("HuggingFaceH4/MATH-500"),
    read=reader(box_of_solution, "unique_id"),
    grader="math",
    sampling=Sampling(max_tokens=2048),
    metrics=(accuracy, pass_at_k, majority),
    instruction=BOXED_INSTRUCTION,
    size=500,
    paper=PAPER,
)
MINERVA_MATH = replace(
    MATH500,
    name="minerva_math",
    summary="272 problems of university courses in science and engineering",
    source="Minerva's OCWCourses (arXiv 2206.14858)",
    records=HubTable("knoveleng/Minerva-Math", split="train"),
    read=reader(box_of_solution),
    size=272,
)
OLYMPIADBENCH = replace(
    MATH500,
    name="olympiadbench",
    summary="olympiad problems in English with final answers, without images (675 in the paper)",
    source="OlympiadBench OE_TO_maths_en_COMP (arXiv 2402.14008)",
    records=HubTable("Hothan/OlympiadBench", split="train", subset="OE_TO_maths_en_COMP"),
    read=reader(first_final_answer, "id"),
    size=None,
)
AIME24 = replace(
    MATH500,
    name="aime24",
    summary="30 problems whose answers are integers from 0 to 999",
    source="American Invitational Mathematics Examination 2024",
    records=HubTable("HuggingFaceH4/aime_2024", split="train"),
    read=reader(plain_answer, "id"),
    sampling=Sampling(max_tokens=4096),
    size=30,
)
AIME25 = replace(
    AIME24,
    name="aime25",
    source="American Invitational Mathematics Examination 2025",
    records=HubTable("math-ai/aime25"),
)
AMC23 = replace(
    AIME24,
    name="amc23",
    summary="40 problems whose answers are integers",
    source="American Mathematics Competitions 12, 2023",
    records=HubTable("math-ai/amc23"),
    size=40,
)
GSM8K = replace(
    MATH500,
    name="gsm8k",
    summary="1,319 word problems of grade school",
    source="GSM8K, test (arXiv 2110.14168)",
    records=HubTable("openai/gsm8k", subset="main"),
    read=reader(after_hashes),
    sampling=Sampling(max_tokens=1024),
    size=1319,
)
