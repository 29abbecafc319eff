"""Training text that repeats a benchmark's is found, chance is not."""

from __future__ import annotations

from deft.workers.common.example import Example
from deft.workers.data.figfont import TEST_START, figfont_examples
from deft.workers.data.overlap import find_overlaps, split_words

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips "
    "in May. How many clips did Natalia sell altogether in April and May?"
)


def example(id: str, prompt: str, response: str = "72") -> Example:
    system = {"role": "system", "content": QUESTION}
    return Example(id, (system, {"role": "user", "content": prompt}), response)


def ids(examples: list[Example], **benchmarks: list[str]) -> dict[str, list[str]]:
    return {name: overlap.ids for name, overlap in find_overlaps(examples, benchmarks).items()}


def test_thirteen_shared_words_count_twelve_do_not() -> None:
    words = split_words(QUESTION)
    assert words[:3] == ["natalia", "sold", "clips"]
    examples = [
        example("whole", f"Read this: {QUESTION.upper()}"),
        example("thirteen", "x " + " ".join(words[4:17]) + " y"),
        example("twelve", "x " + " ".join(words[4:16]) + " y"),
        example("punctuation", " -- ".join(words[4:17])),
        example("response", "Else?", f"As in: {QUESTION}"),
        example("system alone", "Else?"),
    ]
    overlaps = find_overlaps(examples, {"gsm8k": [QUESTION], "other": ["Something else entirely."]})
    assert overlaps["gsm8k"].ids == ["whole", "thirteen", "punctuation", "response"]
    assert overlaps["gsm8k"].share == 4 / 6
    assert (overlaps["gsm8k"].num_examples, overlaps["gsm8k"].num_items) == (6, 1)
    assert overlaps["other"].ids == []


def test_all_are_counted_and_the_first_are_named() -> None:
    overlaps = find_overlaps((example(str(n), "Why?") for n in range(1500)), {"a": ["why?"]})
    assert (overlaps["a"].num_overlapping, overlaps["a"].share) == (1500, 1.0)
    assert overlaps["a"].ids == [str(n) for n in range(1000)]


def test_short_questions_are_compared_whole() -> None:
    examples = [example("same", " what IS 6*7?\n"), example("longer", "What is 6*7? Now.")]
    assert ids(examples, short=["What is 6*7?"]) == {"short": ["same"]}


def test_each_benchmark_gets_its_own_and_an_example_counts_once() -> None:
    twice = example("both", f"{QUESTION} {QUESTION}", QUESTION)
    assert ids([twice], a=[QUESTION], b=[QUESTION, QUESTION]) == {"a": ["both"], "b": ["both"]}


def test_runs_of_few_different_words_say_nothing() -> None:
    assert ids([example("zeros", "0 " * 40)], table=["1 " + "0 " * 30]) == {"table": []}


def test_generated_words_overlap_only_where_the_drawing_is_the_same() -> None:
    train, test = list(figfont_examples(0, 300)), list(figfont_examples(TEST_START, 100))
    questions = [item.prompt[1]["content"] for item in test]
    assert ids(train, figfont=questions) == {"figfont": []}
    assert ids([*train, test[3]], figfont=questions) == {"figfont": [test[3].id]}


def test_nothing_to_compare_is_no_overlap() -> None:
    assert find_overlaps([], {"a": ["b"]})["a"].share == 0.0
