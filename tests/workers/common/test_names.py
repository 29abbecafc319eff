"""Hints for misspelled names: near ones are named, far ones are not made up."""

from __future__ import annotations

import pytest

from deft.objectives.catalog import CATALOG
from deft.workers.common.names import nearest_name, unknown_name

OBJECTIVES = [spelling for info in CATALOG.values() for spelling in (info.name, *info.aliases)]
SETTINGS = ["learning_rate", "warmup_ratio", "batch_size", "max_steps", "zero_stage"]


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("DEFTT", OBJECTIVES, "DEFT"),
        ("DETF", OBJECTIVES, "DEFT"),
        ("cayley_tran", OBJECTIVES, "Cayley_Trans"),
        ("lerning_rate", SETTINGS, "learning_rate"),
        ("BatchSize", SETTINGS, "batch_size"),
        ("tinny", ["tiny", "smollm2-135m"], "tiny"),
        ("CFT", OBJECTIVES, None),
        ("kl", OBJECTIVES, None),
        ("xyz", OBJECTIVES, None),
        ("optimizer", SETTINGS, None),
        ("", SETTINGS, None),
        ("a", [], None),
    ],
)
def test_nearest_name_is_one_that_was_probably_meant(
    name: str, known: list[str], expected: str | None
) -> None:
    assert nearest_name(name, known) == expected


def test_unknown_name_hints_only_at_a_near_name() -> None:
    known = ["tiny", "smollm2-135m"]
    near = unknown_name("model", "Tinny", known)
    assert near == "unknown model 'Tinny'. Did you mean tiny? There are: smollm2-135m, tiny."
    far = unknown_name("model", "gpt-2", known)
    assert far == "unknown model 'gpt-2'. There are: smollm2-135m, tiny."
