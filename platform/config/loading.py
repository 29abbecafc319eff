"""From a YAML file and command-line settings to an `ExperimentSpec`, or to a helpful error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deft.platform.config.presets import PRESETS
from deft.platform.config.spec import ExperimentSpec, ModelEvaluationSpec
from deft.platform.config.yaml_file import Key, parse_yaml, read_yaml
from deft.platform.errors import UserError
from deft.workers.spec import name_or_mixture

Spec = TypeVar("Spec", bound=BaseModel)


def load_spec(
    file: Path | None,
    names: Mapping[str, str | None] | None = None,
    settings: Iterable[str] = (),
) -> ExperimentSpec:
    """Read a run file, let ``names`` and then ``settings`` override it, and validate.

    Args:
        file: a YAML file; None to start from nothing.
        names: values of `dataset`, `model` and `objective`; None leaves one as it is.
        settings: ``key=value`` with a dotted key and a YAML value.

    Raises:
        UserError: naming file, line, key, expectation and nearest valid name.
    """
    data, origins = read_yaml(file) if file else ({}, {})
    for key, name in (names or {}).items():
        if name is not None:
            set_value(data, origins, (key,), name, f"--{key}")
    apply_settings(data, origins, settings)
    return to_experiment(data, str(file) if file else None, origins)


def to_experiment(
    data: Mapping[str, Any], file: str | None, origins: Mapping[Key, str]
) -> ExperimentSpec:
    """``data``, laid over the preset of its dataset and model, as a spec; see `validate`."""
    return validate(ExperimentSpec, merge(preset(data), data), file, origins)


def load_evaluation(
    model: str,
    benchmarks: Iterable[str],
    sampling: Mapping[str, Any],
    common: Mapping[str, Any],
    settings: Iterable[str],
    root: Path,
) -> ModelEvaluationSpec:
    """The spec of an evaluation that the command line describes.

    Args:
        model: name, directory or hub id of a model; or directory of a run, or its name in ``root``.
        benchmarks: their names.
        sampling: settings of every benchmark; None leaves one as it is.
        common: settings of the evaluation; None leaves one as it is.
        settings: see `load_spec`.
        root: run root.

    Raises:
        UserError: see `load_spec`.
    """
    given = {key: value for key, value in sampling.items() if value is not None}
    data: dict[str, Any] = {
        # What was forgotten shows beside the model before; a model on its own has no before.
        "evaluation": {"general": False, "benchmarks": [{"name": n, **given} for n in benchmarks]},
        **_trained_model(model, root),
    }
    data["evaluation"] |= {key: value for key, value in common.items() if value is not None}
    origins: dict[Key, str] = {}
    apply_settings(data, origins, settings)
    spec = validate(ModelEvaluationSpec, data, None, origins)
    heldout = spec.evaluation.heldout
    if not spec.evaluation.benchmarks and (heldout is None or heldout.file is None):
        raise UserError("nothing to evaluate: give --benchmarks or --heldout")
    return spec


def _trained_model(model: str, root: Path) -> dict[str, Any]:
    """``model`` as settings; a run stands for what it trained, and for its prompt style."""
    for run in (Path(model), root / model):
        if (run / "spec.json").is_file():
            if not (run / "model").is_dir():
                raise UserError(f"model: the run {run} has no trained model")
            dataset = json.loads((run / "spec.json").read_text()).get("dataset", {})
            style = dataset.get("prompt_style", "chat")
            return {
                "name": f"evaluation-{run.name}"[:80],
                "model": str(run / "model"),
                "prompt_style": style,
            }
    return {"model": model}


def validate(
    spec: type[Spec], data: Mapping[str, Any], file: str | None, origins: Mapping[Key, str]
) -> Spec:
    """``data`` as a spec.

    Args:
        spec: its class.
        data: the settings.
        file: where they are from, if from a file.
        origins: where each of them stands.

    Raises:
        UserError: naming file, line, key, expectation and nearest valid name.
    """
    try:
        return spec.model_validate(data)
    except ValidationError as error:
        raise UserError(
            "\n".join(_explain(detail, spec, file, origins) for detail in error.errors())
        ) from None
    except OSError as error:  # a path that is too long, or in a directory that is closed
        reason = f"{error.strerror}: {error.filename!r:.80}"
        raise UserError(": ".join(filter(None, [file, reason]))) from None


def apply_settings(data: dict[str, Any], origins: dict[Key, str], settings: Iterable[str]) -> None:
    """Let ``key=value`` settings, with a dotted key and a YAML value, override ``data``.

    Raises:
        UserError: one is no such setting.
    """
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        if not equals or not dotted:
            raise UserError(f"--set {setting}: expected key=value, as in training.max_steps=10")
        value, _ = parse_yaml(text, f"--set {setting}", lines=False)
        set_value(data, origins, tuple(dotted.split(".")), value, f"--set {setting}")


def preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that belong to the dataset and model named in ``data``."""
    dataset, model = (
        part.get("name") if isinstance(part := data.get(key), dict) else part
        for key in ("dataset", "model")
    )
    if not (isinstance(dataset, str) and isinstance(model, str)):
        return {}
    return PRESETS.get((dataset, model), {})


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, mapping by mapping; a bare string means ``{name: …}``."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict):
            if isinstance(value, str):
                value = {"name": value}
            if isinstance(value, dict):
                value = merge(under, value)
        merged[key] = value
    return merged


def set_value(
    data: dict[str, Any], origins: dict[Key, str], key: Key, value: Any, origin: str
) -> None:
    """Set ``key`` in ``data``, and in ``origins`` where the value stands.

    A bare string on the way stands for ``{name: …}``, a list for ``{mixture: …}``.
    """
    target = data
    for part in key[:-1]:
        below = target.get(str(part))
        if not isinstance(below, dict):
            below = name_or_mixture(below) if isinstance(below, str | list) else {}
        target[str(part)] = below
        target = below
    target[str(key[-1])] = value
    for known in [known for known in origins if known[: len(key)] == key]:
        del origins[known]
    origins[key] = origin


def _explain(
    detail: ErrorDetails, spec: type[BaseModel], file: str | None, origins: Mapping[Key, str]
) -> str:
    """One validation error as ``where: key: what is wrong``."""
    key = detail["loc"]
    where = next(
        (origins[key[:end]] for end in range(len(key), 0, -1) if key[:end] in origins), file
    )
    match detail["type"]:
        case "extra_forbidden":
            known = sorted(_fields_at(spec, key[:-1]))
            near = get_close_matches(str(key[-1]), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            message = f"unknown key; {hint}There are: {', '.join(known)}."
        case "missing":
            message = f"is missing; give it in the file or as --{key[-1]}"
        case "value_error":
            message = str(detail["ctx"]["error"])
        case _:
            message = f"{detail['msg']}, got {detail['input']!r:.80}"
    return ": ".join(filter(None, [where, _dotted(key), message]))


def _fields_at(spec: type[BaseModel], key: Key) -> Iterable[str]:
    """Names of the fields that ``spec`` has at ``key``."""
    model: Any = spec
    for part in key:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = _model_in(field.annotation) if field else None
        if model is None:
            return ()
    return tuple(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))
