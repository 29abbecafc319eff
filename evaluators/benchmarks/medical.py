"""Medical multiple choice: the suite of m1 (arXiv 2504.00869), its sources kept apart."""

from __future__ import annotations

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
from deft.evaluators.scores.metrics import accuracy, majority, paper_accuracy, pass_at_k
from deft.workers.catalogs.prompt_styles import BOXED_INSTRUCTION


def read_choice(record: RecordFields, number: int) -> Item | None:
    """Read a question with its options below it, a line each.

    Rows whose `answer` is not the text of the option it names are left out, as m1 does.
    """
    options = {
        letter: str(text).strip() for letter, text in record["options"].items() if text is not None
    }
    gold = required(record, "answer_idx").strip()
    answer = record.get("answer")
    if answer is not None and str(answer).strip() != options.get(gold):
        return None
    question = required(record, "question").strip()
    lines = [question, *(f"{letter}. {text}" for letter, text in options.items())]
    return Item(
        id=str(number),
        prompt=({"role": "user", "content": "\n".join(lines)},),
        gold=gold,
        options=options,
        source=str(record.get("source") or "medical"),
    )


MEDICAL = Benchmark(
    name="medical",
    summary="multiple choice from MedMCQA, MedQA, PubMedQA, MMLU-Pro, GPQA, Lancet, MedBullets, "
    "MedXpertQA, NEJM, Humanity's Last Exam; each source on its own, micro and macro mean",
    source="m1's evaluation data (arXiv 2504.00869)",
    records=HubTable("UCSC-VLAA/m1_eval_data", file="m1_eval_data.json"),
    read=read_choice,
    grader="medical",
    sampling=Sampling(max_tokens=2048),
    metrics=(accuracy, pass_at_k, majority, paper_accuracy),
    instruction=BOXED_INSTRUCTION,
    several_sources=True,
    paper=Paper(Sampling(max_tokens=8000), {"qwen": "qwen-medical", "llama": "llama-medical"}),
)
MEDICAL_LIKELIHOOD = replace(
    MEDICAL,
    name="medical_likelihood",
    summary="the questions of medical, answered by the most likely of the options' letters at the "
    "start of the response, as lm-evaluation-harness scores multiple choice",
    sampling=Sampling(max_tokens=1),
    metrics=(accuracy,),
    instruction="Answer with the letter of the right option.",
    paper=None,
    by_likelihood=True,
)
"""Needs no reading of prose, and no reasoning before the answer is possible."""
