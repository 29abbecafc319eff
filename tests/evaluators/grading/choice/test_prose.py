"""Choices that are made in prose: how options are recognized, and what does not choose one."""

from __future__ import annotations

import pytest

from deft.evaluators.grading.choice.prose import concluded

OPTIONS = {
    "direction": {
        "A": "Increased renin, decreased potassium",
        "B": "Decreased renin, increased potassium",
    },
    "dose": {"A": "5 mg", "B": "10 mg", "C": "15 mg"},
    "contained": {"A": "Iron deficiency", "B": "Iron deficiency anemia", "C": "Thalassemia minor"},
    "side": {"A": "Left vertebral artery", "B": "Right vertebral artery", "C": "Basilar artery"},
    "species": {"A": "Nocardia asteroides", "B": "Actinomyces israelii"},
    "abbreviation": {"A": "TIA", "B": "SAH"},
    "letter": {"A": "Vitamin A", "B": "Vitamin E"},
    "design": {"A": "Randomized controlled trial", "B": "Case-control study"},
    "artery": {"A": "Left anterior descending artery", "B": "Left circumflex artery"},
    "all": {"A": "Smoking", "B": "Obesity", "C": "All of the above"},
    "damaged": {"A": "Renal aery stenosis", "B": "Essential hypeension"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text", "letter"),
    [
        ("direction", "The most likely finding is increased renin and decreased potassium.", "A"),
        ("direction", "The most likely finding is decreased renin and increased potassium.", "B"),
        ("direction", "The most likely finding is increased renin and increased potassium.", None),
        ("dose", "The recommended dose is 10 mg.", "B"),
        ("dose", "The recommended dose is 5 to 10 mg.", None),
        ("dose", "The recommended dose is 100 mg.", None),
        ("dose", "The recommended dose is more than 5 mg.", None),
        ("contained", "The diagnosis is iron deficiency.", "A"),
        ("contained", "The diagnosis is iron-deficiency anaemia.", "B"),
        ("contained", "The diagnosis is sickle cell anemia.", None),
        ("side", "The vessel most likely occluded is the left vertebral artery.", "A"),
        ("side", "The vessel most likely occluded is the vertebral artery.", None),
        ("side", "The vessel most likely occluded is the left cerebellar artery.", None),
        ("species", "Sulfur granules are characteristic of Actinomyces.", "B"),
        ("abbreviation", "This suggests a subarachnoid hemorrhage (SAH).", "B"),
        ("letter", "Night blindness results from a lack of vitamin A.", "A"),
        ("letter", "Night blindness results from a lack of a vitamin.", None),
        ("species", "The organism is N. asteroides.", "A"),
        ("design", "Since chance decided, this was an RCT.", "A"),
        ("artery", "The LAD is occluded.", "A"),
        ("all", "All three raise the risk.", "C"),
        ("dose", "The recommended dose is five mg.", "A"),
        ("damaged", "A bruit and a small kidney point to renal artery stenosis.", "A"),
    ],
)
def test_options_are_told_apart(options: str, text: str, letter: str | None) -> None:
    assert concluded(text, OPTIONS[options]) == letter


@pytest.mark.parametrize(
    "sentence",
    [
        "The diagnosis is {} rather than {}.",
        "Unlike {1}, {0} explains the findings.",
        "While {1} is common, the findings are consistent with {0}.",
        "If the fever were higher, {1} would be likely. The diagnosis is {0}.",
        "Therefore, {0} is more likely than {1}.",
    ],
)
def test_what_is_turned_down_is_not_chosen(sentence: str) -> None:
    options = {"A": "Sarcoidosis", "B": "Tuberculosis"}
    assert concluded(sentence.format("sarcoidosis", "tuberculosis"), options) == "A"
    assert concluded(sentence.format("tuberculosis", "sarcoidosis"), options) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "Both sarcoidosis and tuberculosis are likely.",
        "The diagnosis is sarcoidosis or tuberculosis.",
        "Sarcoidosis may cause these findings.",
        "Common causes include sarcoidosis.",
        "Sarcoidosis would suggest a raised calcium. The most likely diagnosis is lymphoma.",
        "It is unclear whether this is sarcoidosis.",
        "This is not tuberculosis.",
        "If the calcium is raised, sarcoidosis is likely.",
    ],
)
def test_what_is_left_open_is_no_choice(text: str) -> None:
    assert concluded(text, {"A": "Sarcoidosis", "B": "Tuberculosis"}) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It is B.", "B"),
        ("My first thought was A. However, the calcium is normal, so it has to be B.", "B"),
        ("A is unlikely, C too. By elimination, B.", "B"),
        ("Both A and B are reasonable, but B is better.", "B"),
        ("B seems right to me, since A would raise the calcium.", "B"),
        ("It could be A or B.", None),
        ("A is wrong.", None),
        ("A biopsy is needed.", None),
        ("B cells and vitamin B are involved.", None),
        ("E. coli was found in the urine, and I was surprised.", None),
    ],
)
def test_options_are_known_by_their_letters(text: str, letter: str | None) -> None:
    options = {"A": "Sarcoidosis", "B": "Tuberculosis", "C": "Lymphoma", "E": "Silicosis", "I": "x"}
    assert concluded(text, options) == letter


def test_an_answer_is_given_at_the_end_or_at_once() -> None:
    options = {"A": "Sarcoidosis", "B": "Tuberculosis"}
    first = "The most likely diagnosis is sarcoidosis."
    other = "In smokers, the most likely diagnosis is tuberculosis."
    assert concluded(f"{first} {other} Biopsies are needed.", options) == "A"
    assert concluded(f"{other} She does not smoke. {first}", options) == "A"


def test_the_exception_is_the_answer_where_the_others_belong() -> None:
    options = {"A": "Fever", "B": "Cough", "C": "Alopecia"}
    text = "Fever and cough are part of the picture. Alopecia is not associated with it."
    assert concluded(text, options) == "C"
    assert concluded("Fever and cough are not seen. Alopecia is not seen either.", options) is None
