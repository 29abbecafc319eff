"""How right the graders are on what a real model writes, labeled by hand.

    .venv/bin/python tests/bench/responses.py generate --out responses.jsonl [--items DIR] [--easy]
    .venv/bin/python tests/bench/responses.py measure responses.jsonl labels.txt

``generate`` lets SmolLM2-135M-Instruct answer easy tasks that are made here, and questions from the
files of ``--items`` (gsm8k.jsonl, math500.jsonl, medical_sample.jsonl): with the chat template, as
plain text, and behind two solved examples, at several temperatures. Called again it goes on. With
``--easy`` it answers only questions of one small step, of which it gets many right.

``labels.txt`` has a line ``number verdict`` for each line of the responses, counted from 1: what a
careful person says who reads question, gold answer and response, before any grader has.
``measure`` compares this with the verdicts of the graders.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deft.evaluators.benchmarks.math import after_hashes, box_of_solution
from deft.evaluators.benchmarks.medical import read_choice
from deft.workers.catalogs.prompt_styles import BOXED_INSTRUCTION

MAX_TOKENS, MAX_EASY_TOKENS = 96, 48
"""Longest response in tokens, to all questions and to easy ones."""
BATCH_SIZE, EASY_BATCH_SIZE = 60, 20
MAX_QUESTION = 600
"""Characters of the longest question; reading a prompt takes longer than answering it."""
TEMPERATURES = (0.0, 0.7, 1.0)
STYLES = ("chat", "boxed", "plain", "shots")
TASKS = {
    "basic_arithmetic": {"max_digits": 2, "max_terms": 3},
    "simple_equations": {},
    "fraction_simplification": {"max_factor": 9, "max_value": 30},
    "gcd": {},
    "leg_counting": {"max_animals": 3},
    "decimal_chain_sum": {"max_terms": 2, "max_digits": 2},
}
"""Tasks of reasoning_gym, with settings that make them easy."""
WORD_PROBLEMS = (
    ("Tom has {a} apples and buys {b} more. How many apples does he have?", "a+b"),
    ("A book costs ${a} and a pen costs ${b}. How much do both cost in dollars?", "a+b"),
    ("There are {a} rows of {b} chairs. How many chairs are there?", "a*b"),
    ("What is the perimeter of a rectangle of {a} cm by {b} cm?", "2*(a+b)"),
    ("A car drives {a} km an hour. How far does it get in {b} hours?", "a*b"),
)
CHOICES = (
    ("Lack of which vitamin causes scurvy?", "C", "Vitamin A/Vitamin B12/Vitamin C/Vitamin D"),
    ("Which organ makes insulin?", "B", "Liver/Pancreas/Kidney/Spleen"),
    ("Which cells carry oxygen in the blood?", "A", "Red cells/White cells/Platelets/Plasma"),
    ("What does aspirin irreversibly inhibit?", "D", "Lipase/Kinase/Amylase/Cyclooxygenase"),
    ("Which is the largest artery of the body?", "A", "Aorta/Carotid/Femoral artery/Renal artery"),
    ("Where does gas exchange happen?", "C", "Trachea/Bronchi/Alveoli/Larynx"),
    ("Which test diagnoses strep throat?", "B", "MRI/Throat culture/EEG/Spirometry"),
    ("Is penicillin an antibiotic?", "A", "yes/no/maybe"),
    ("Which bone is in the thigh?", "D", "Tibia/Humerus/Radius/Femur"),
    ("Which drug lowers blood glucose?", "B", "Warfarin/Metformin/Digoxin/Furosemide"),
)
EASY = (
    ("What is {a} + {b}?", "a+b"),
    ("Calculate {c} + {d}.", "c+d"),
    ("Calculate {a} + {b} + {a}.", "2*a+b"),
    ("What is {c} minus {a}?", "c-a"),
    ("What is {a} times {b}?", "a*b"),
    ("Solve for x: x + {a} = {c}", "c-a"),
    ("What is the square of {b}?", "b*b"),
    ("What is half of {even}?", "even//2"),
    ("How many minutes are in {b} hours?", "60*b"),
    ("How many days are in {a} weeks?", "7*a"),
    ("Anna has {c} dollars and gets {d} dollars more. How much money does she have?", "c+d"),
    ("Ben has {c} marbles and loses {a} of them. How many marbles are left?", "c-a"),
    ("One ticket costs ${b}. What do {a} tickets cost?", "a*b"),
    ("A bag has {a} red and {b} blue balls. How many balls are in the bag?", "a+b"),
    ("A rope of {c} meters is cut by {a} meters. How long is it now?", "c-a"),
)
"""Questions of one step about whole numbers: a and b below 10, c and d from 10 to 30."""
EASY_CHOICES = (
    ("What color is a clear sky by day?", "C", "Green/Red/Blue/Black"),
    ("Which animal says meow?", "A", "Cat/Dog/Cow/Horse"),
    ("What pumps blood through the body?", "B", "Lungs/Heart/Stomach/Skin"),
    ("What do plants need to grow?", "D", "Plastic/Iron bars/Smoke/Sunlight"),
    ("What is the capital of France?", "B", "London/Paris/Rome/Madrid"),
    ("Which gas do humans breathe in to live?", "A", "Oxygen/Helium/Methane/Neon"),
    ("Which organ is used for seeing?", "C", "Ear/Nose/Eye/Tongue"),
    ("Is water wet at room temperature?", "A", "yes/no/maybe"),
)
SHOTS = {
    "math": (("What is 3 + 9?", "3 + 9 = 12, so the answer is 12."), ("Solve 2x = 14.", "x = 7")),
    "medical": (
        ("Which organ pumps blood?\nA. Lung\nB. Heart\nC. Liver\nD. Skin", "The answer is B."),
        ("Which is a virus?\nA. Staphylococcus\nB. E. coli\nC. HIV\nD. Candida", "C. HIV"),
    ),
}


def main() -> None:
    """Generate or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    generating = commands.add_parser("generate")
    generating.add_argument("--out", type=Path, required=True)
    generating.add_argument("--items", type=Path, help="folder of benchmark files")
    generating.add_argument("--easy", action="store_true", help="small questions instead")
    generating.add_argument("--seconds", type=float, default=1e9, help="stop after this time")
    generating.set_defaults(run=generate)
    measuring = commands.add_parser("measure")
    measuring.add_argument("responses", type=Path)
    measuring.add_argument("labels", type=Path)
    measuring.set_defaults(run=measure)
    arguments = parser.parse_args()
    arguments.run(arguments)


def made_items() -> Iterator[dict[str, Any]]:
    """Yield the tasks that are made here."""
    import reasoning_gym

    for name, settings in TASKS.items():
        for row in reasoning_gym.create_dataset(name, size=20, seed=3, **settings):
            yield {"task": name, "question": row["question"], "gold": str(row["answer"])}
    source = random.Random(5)
    for number in range(30):
        text, formula = WORD_PROBLEMS[number % len(WORD_PROBLEMS)]
        a, b = source.randint(2, 30), source.randint(2, 12)
        gold = {"a+b": a + b, "a*b": a * b, "2*(a+b)": 2 * (a + b)}[formula]
        yield {"task": "words", "question": text.format(a=a, b=b), "gold": str(gold)}
    yield from choice_items(CHOICES)


def choice_items(choices: tuple[tuple[str, str, str], ...]) -> Iterator[dict[str, Any]]:
    """Yield each multiple-choice question four times."""
    for question, gold, texts in choices * 4:
        options = dict(zip("ABCD", texts.split("/"), strict=False))
        lines = [question, *(f"{letter}. {text}" for letter, text in options.items())]
        yield {"task": "choice", "question": "\n".join(lines), "gold": gold, "options": options}


def easy_items() -> Iterator[dict[str, Any]]:
    """Yield questions of one small step."""
    source = random.Random(7)
    for number in range(180):
        text, formula = EASY[number % len(EASY)]
        values = {
            "a": source.randint(2, 9),
            "b": source.randint(2, 9),
            "c": source.randint(10, 30),
            "d": source.randint(10, 30),
            "even": 2 * source.randint(3, 25),
        }
        gold = str(eval(formula, values.copy()))
        yield {"task": "easy", "question": text.format(**values), "gold": gold}
    yield from choice_items(EASY_CHOICES)


def benchmark_items(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the first questions of three benchmarks."""
    for line in (folder / "gsm8k.jsonl").read_text().splitlines()[:40]:
        row = json.loads(line)
        yield {"task": "gsm8k", "question": row["question"], "gold": after_hashes(row)}
    for line in (folder / "math500.jsonl").read_text().splitlines()[:45]:
        row = json.loads(line)
        yield {"task": "math500", "question": row["problem"], "gold": box_of_solution(row)}
    for number, line in enumerate((folder / "medical_sample.jsonl").read_text().splitlines()):
        item = read_choice(json.loads(line), number)
        if item is not None:
            yield {
                "task": "medical_sample",
                "question": item.question,
                "gold": item.gold,
                "options": dict(item.options or {}),
            }


def prompt(item: dict[str, Any], style: str, tokenizer: Any) -> list[int]:
    """Render a prompt in one of `STYLES`."""
    question = item["question"]
    if style in ("chat", "boxed"):
        content = f"{question}\n{BOXED_INSTRUCTION}" if style == "boxed" else question
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        return list(ids)
    shots = SHOTS["medical" if "options" in item else "math"] if style == "shots" else ()
    solved = "".join(f"Question: {asked}\nAnswer: {said}\n\n" for asked, said in shots)
    return list(tokenizer(f"{solved}Question: {question}\nAnswer:")["input_ids"])


def in_batches(items: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Order items so that batches are of similar length, and every part of them is of all kinds."""
    source = random.Random(0)
    source.shuffle(items)
    items = sorted(items, key=lambda item: len(item["question"]) // 50)
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    source.shuffle(batches)
    return [item for batch in batches for item in batch]


def generate(arguments: argparse.Namespace) -> None:
    """Append what is missing to ``--out``, a batch at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from deft.workers.modeling.model_files import build_smollm2

    made = easy_items() if arguments.easy else made_items()
    items = [*made, *(benchmark_items(arguments.items) if arguments.items else ())]
    size = EASY_BATCH_SIZE if arguments.easy else BATCH_SIZE
    items = in_batches([item for item in items if len(item["question"]) <= MAX_QUESTION], size)
    finished = len(arguments.out.read_text().splitlines()) if arguments.out.exists() else 0
    items = items[finished:]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        build_smollm2(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer.pad_token = tokenizer.eos_token
    for start in range(0, len(items), size):
        if time.monotonic() - began > arguments.seconds:
            break
        batch = items[start : start + size]
        number = (finished + start) // size
        temperature = TEMPERATURES[number % len(TEMPERATURES)]
        styles = [STYLES[place % len(STYLES)] for place in range(len(batch))]
        prompts = [
            prompt(item, style, tokenizer) for item, style in zip(batch, styles, strict=True)
        ]
        inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        torch.manual_seed(number)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
        with torch.no_grad():
            rows = model.generate(
                **inputs,
                **({"do_sample": False} | sampling),
                max_new_tokens=MAX_EASY_TOKENS if arguments.easy else MAX_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )[:, inputs["input_ids"].shape[1] :].tolist()
        with arguments.out.open("a") as file:
            for item, style, row in zip(batch, styles, rows, strict=True):
                ends = [row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else []
                text = tokenizer.decode(row[: ends[0] if ends else None])
                record = {
                    **item,
                    "style": style,
                    "temperature": temperature,
                    "response": text,
                    "finish_reason": "stop" if ends else "length",
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        print(f"{start + len(batch)} of {len(items)}, {time.monotonic() - began:.0f} s", flush=True)


def measure(arguments: argparse.Namespace) -> None:
    """Print the table of both graders."""
    from deft.evaluators.grading.choice.grader import grade as grade_choice
    from deft.evaluators.grading.math.grader import grade as grade_math
    from deft.evaluators.grading.math_verify import grade as grade_math_verify

    records = [json.loads(line) for line in arguments.responses.read_text().splitlines()]
    labels = dict(line.split()[:2] for line in arguments.labels.read_text().splitlines())
    rows = [(labels[str(i)], r) for i, r in enumerate(records, 1) if str(i) in labels]
    choices = [(label, record) for label, record in rows if "options" in record]
    numbers = [(label, record) for label, record in rows if "options" not in record]
    for name, grade, part in (
        ("math", grade_math, numbers),
        ("math_verify", grade_math_verify, numbers),
        ("medical", grade_choice, choices),
    ):
        verdicts = [(label, str(grade(record).verdict), record) for label, record in part]
        right = sum(
            (label == "correct") == (verdict == "correct") for label, verdict, _ in verdicts
        )
        exact = sum(label == verdict for label, verdict, _ in verdicts)
        false = sum(label != "correct" == verdict for label, verdict, _ in verdicts)
        print(
            f"{name:<12} {len(part)} responses, {sum(label == 'correct' for label, _ in part)} "
            f"correct: correct or not as labeled {right / len(part):.1%}, the very verdict "
            f"{exact / len(part):.1%}, false positives {false}"
        )


if __name__ == "__main__":
    main()
