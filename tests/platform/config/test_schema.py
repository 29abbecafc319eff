"""JSON Schemas of run and sweep files: what editors check is what commands accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from deft.platform.config.loading import load_spec
from deft.platform.config.schema import dotted_settings, run_schema
from deft.sweeps.spec import sweep_schema
from helpers import ROOT

SCHEMAS = {"run": run_schema(), "sweep": sweep_schema()}
FILES = {
    file: "sweep" if "grid" in yaml.safe_load(file.read_text()) else "run"
    for folder in ("examples", "sweeps")
    for file in sorted((ROOT / folder).glob("*.yaml"))
}


def problems(kind: str, data: Any) -> list[str]:
    return [error.json_path for error in Draft202012Validator(SCHEMAS[kind]).iter_errors(data)]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_committed_schemas_are_those_of_the_settings(kind: str) -> None:
    """`make schema` writes them anew."""
    Draft202012Validator.check_schema(SCHEMAS[kind])
    assert json.loads((ROOT / f"docs/schema/{kind}.json").read_text()) == SCHEMAS[kind]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_file_names_its_schema_and_follows_it(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    named = (file.parent / first.partition("=")[2]).resolve()
    assert named == ROOT / "docs" / "schema" / f"{FILES[file]}.json"
    assert problems(FILES[file], yaml.safe_load(file.read_text())) == []


def test_resolved_spec_and_short_spellings_follow_the_schema() -> None:
    spec = load_spec(ROOT / "examples" / "smollm2.yaml")
    assert problems("run", spec.model_dump(mode="json")) == []
    run = {
        "dataset": [{"name": "figfont", "size": 10}, "chain_sum"],
        "model": {"name": "org/model", "revision": "v1"},
        "objective": {"name": "GeneralFamily", "alpha": 0.5},
        "training": {"lora": {"targets": "q_proj"}, "deepspeed": {"any": 1}},
        "evaluation": {"benchmarks": ["figfont", {"name": "my:own", "size": 3}]},
    }
    assert problems("run", run) == []
    assert problems("run", {**run, "dataset": {"mixture": run["dataset"], "noise": 0.1}}) == []
    sweep = {"base": "run.yaml", "grid": {"objective": ["p", {"name": "IDFT", "beta": 0.5}]}}
    assert problems("sweep", sweep) == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("run", {"dataset": "figfont", "model": "tiny"}),
        ("run", {"training": {"lerning_rate": 1.0}}),
        ("run", {"training": {"zero_stage": 4}}),
        ("run", {"evaluation": {"benchmarks": "figfont"}}),
        ("sweep", {"base": {"dataset": "figfont"}}),
        ("sweep", {"base": {"training": {"epoch": 1}}, "grid": {"seed": [0]}}),
        ("sweep", {"grid": {"seed": 0}}),
    ],
)
def test_mistakes_are_marked(kind: str, data: dict[str, Any]) -> None:
    if kind == "run" and len(data) == 1:
        data = {"dataset": "figfont", "model": "tiny", "objective": "p", **data}
    assert problems(kind, data)


def test_settings_carry_their_meaning() -> None:
    described = dotted_settings(SCHEMAS["run"])
    assert described["training.batch_size"] == "Examples per optimizer step, over all workers."
    assert [key for key, text in described.items() if not text] == []
