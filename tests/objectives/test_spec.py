"""How objectives are named, and that naming them is cheap."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from deft.objectives.catalog import CATALOG
from deft.objectives.spec import ObjectiveSpec


def parse(value: object) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate(value)


@pytest.mark.parametrize(
    ("spellings", "canonical"),
    [
        (["DEFT", "deft", " DEFT ", {"name": "deft"}], "DEFT"),
        (["logp", "nll", "original"], "original"),
        (
            [
                "GeneralFamily-0.5",
                "tsallis-0.50",
                "tsallis-5e-1",
                {"name": "GeneralFamily", "alpha": 0.5},
                {"name": "tsallis", "params": {"alpha": 0.5}},
                "GeneralFamily(alpha=0.5)",
            ],
            "GeneralFamily-0.5",
        ),
        (
            ["GeneralFamily--1", "tsallis--1.0", {"name": "tsallis", "alpha": -1}],
            "GeneralFamily--1",
        ),
        (["EAFT", "EAFT-1", "eaft-1.0", {"name": "EAFT", "a": 1}], "EAFT"),
        (["EAFT-2", {"name": "eaft", "a": 2}], "EAFT-2"),
        (["OnlyTopP-0", "only_top_p-0.0"], "OnlyTopP-0"),
        (["my_pkg.my_mod:mine", {"name": "my_pkg.my_mod:mine"}], "my_pkg.my_mod:mine"),
        (
            [
                'my_mod:mine(a=0.5, b="x,y")',
                {"name": "my_mod:mine", "b": "x,y", "a": 0.5},
            ],
            'my_mod:mine(a=0.5,b="x,y")',
        ),
    ],
)
def test_spellings_of_one_objective_are_one(spellings: list[object], canonical: str) -> None:
    specs = [parse(spelling) for spelling in spellings]
    assert {str(spec) for spec in specs} == {canonical}
    assert len({json.dumps(spec.model_dump(mode="json")) for spec in specs}) == 1
    assert len(set(specs)) == 1
    assert parse(specs[0].model_dump(mode="json")) == specs[0]


@given(st.floats(-16, 64, allow_subnormal=False).filter(lambda alpha: alpha != 0))
def test_a_parameter_survives_its_spelling(alpha: float) -> None:
    spec = parse({"name": "GeneralFamily", "alpha": alpha})
    assert parse(str(spec)).params == {"alpha": alpha}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("DEFTT", "Did you mean DEFT"),
        ("GeneralFamly-0.5", "Did you mean GeneralFamily"),
        ("tsalis", "Did you mean tsallis"),
        ("GeneralFamily", "needs its parameter 'alpha'"),
        ("GeneralFamily-0", "must not be 0"),
        ("GeneralFamily-x", "expected a number for 'alpha'"),
        ("GeneralFamily-nan", "finite"),
        ("OnlyTopP-1", "less than 1"),
        ("OnlyBottomP-0", "greater than 0"),
        ("DEFT-0.5", "takes no parameter"),
        ({"name": "DEFT", "alpha": 1}, "has no parameter 'alpha'"),
        ({"alpha": 1}, "needs a name"),
        ({"name": "tsallis", "alpha": 1, "params": {"alpha": 2}}, "given twice"),
        ("my_mod:", "not an import path"),
        ("my_mod:mine(0.5)", "expected key=value"),
        ("my_mod:mine(a=b)", "must be a number"),
        (3, "ObjectiveSpec"),
    ],
)
def test_a_bad_name_is_refused_with_what_was_expected(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse(value)


def test_a_spec_is_frozen_and_nests() -> None:
    class Run(BaseModel):
        objective: ObjectiveSpec

    run = Run.model_validate({"objective": "deft"})
    assert run.model_dump(mode="json") == {"objective": "DEFT"}
    with pytest.raises(ValidationError, match="frozen"):
        run.objective.name = "p"


def test_names_and_aliases_are_unique_and_every_name_has_a_lower_case_one() -> None:
    spellings = [name for info in CATALOG.values() for name in (info.name, *info.aliases)]
    assert len(spellings) == len(set(spellings))
    for info in CATALOG.values():
        assert any(name.islower() for name in (info.name, *info.aliases)), info.name
        for alias in info.aliases:
            assert parse(info.example.replace(info.name, alias, 1)) == parse(info.example)


def test_specs_and_the_package_load_without_torch() -> None:
    code = (
        "import sys, deft.objectives, deft.objectives.spec as s;"
        "s.ObjectiveSpec.model_validate('a_module_that.does_not_exist:mine');"
        "assert deft.objectives.CATALOG;"
        "assert not {'torch', 'ray', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
