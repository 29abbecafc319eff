"""JSON Schema of run files, by which editors complete settings and mark mistakes.

Pydantic describes the settings; what a file may leave out or spell shortly is added here. A schema
knows no rule across several settings: `--dry-run` has the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from deft.evaluators.benchmarks.catalog import BENCHMARKS
from deft.objectives.catalog import CATALOG
from deft.platform.config.spec import ExperimentSpec
from deft.workers.catalogs.datasets import DATASETS
from deft.workers.catalogs.models import MODELS

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Leaves out titles, which repeat the names of settings."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def settings_schema(settings: type[BaseModel], title: str, description: str) -> Schema:
    """Return the JSON Schema of a file of ``settings``."""
    schema = settings.model_json_schema(schema_generator=_Generator)
    return {"$schema": DIALECT, **schema, "title": title, "description": description}


def run_schema() -> Schema:
    """Return the JSON Schema of a run file."""
    schema = settings_schema(
        ExperimentSpec, "Run file of deft", "One experiment: deft run FILE, deft submit FILE."
    )
    schema["required"].remove("name")
    definitions = schema["$defs"]
    benchmark = definitions["BenchmarkSpec"]
    benchmark["required"] = ["name"]  # the benchmark has defaults for all else
    definitions["ObjectiveSpec"] = _objective()
    definitions["LoraSpec"]["properties"]["targets"] = _either(
        {"type": "string"}, definitions["LoraSpec"]["properties"]["targets"]
    )
    named: dict[str, Iterable[str]] = {
        "DatasetSpec": DATASETS,
        "MixedSourceSpec": DATASETS,
        "ModelSpec": MODELS,
        "BenchmarkSpec": BENCHMARKS,
    }
    for definition, names in named.items():
        spelled_out = definitions[definition]
        spelled_out["properties"]["name"] |= _one_of(names)
        spelled_out["properties"]["name"].pop("type")
        definitions[definition] = _either(_one_of(names), spelled_out)
    dataset = definitions["DatasetSpec"]
    sources = dataset["anyOf"][1]["properties"]["mixture"]
    dataset["anyOf"][1].pop("required")  # a mixture is named after its parts
    dataset["anyOf"].append({"type": "array", "items": sources["items"]})
    return schema


def _objective() -> Schema:
    names = [spelling for info in CATALOG.values() for spelling in (info.name, *info.aliases)]
    about = "A name from `deft list objectives`, or package.module:function for one of your own."
    spelled_out = {
        "type": "object",
        "properties": {"name": {"description": about, **_one_of(names)}},
        "required": ["name"],
        "additionalProperties": True,
    }
    return _either(_one_of(names), spelled_out)


def _one_of(names: Iterable[str]) -> Schema:
    """Propose ``names``; any other text may be a path or an import path."""
    return {"anyOf": [{"enum": sorted(names)}, {"type": "string"}]}


def _either(short: Schema, whole: Schema) -> Schema:
    """Allow a short spelling beside the whole one, which keeps its description."""
    about = {"description": whole.pop("description")} if "description" in whole else {}
    return {**about, "anyOf": [short, whole]}


def partial_schema(schema: Schema) -> Schema:
    """Return what ``schema`` says of single settings, without asking for all of them."""
    return {key: schema[key] for key in ("type", "properties", "additionalProperties")}


def dotted_settings(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return dotted key → description of all settings of ``schema``, from the outside in."""
    return {key: field.get("description", "") for key, field in setting_fields(schema)}


def setting_fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted key of every setting and its part of the schema, from the outside in."""
    yield from _walk(schema, schema["$defs"], "")


def _walk(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, field in _properties(schema, definitions).items():
        yield f"{prefix}{name}", field
        yield from _walk(field, definitions, f"{prefix}{name}.")


def _properties(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings inside of a setting, whatever its other spellings."""
    if "$ref" in schema:
        return _properties(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    found: dict[str, Any] = dict(schema.get("properties", {}))
    for alternative in schema.get("anyOf", ()):
        found |= _properties(alternative, definitions)
    return found
