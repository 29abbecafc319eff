"""From a YAML file and command-line settings to an `ExperimentSpec`, or to a helpful error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from deft.platform.config.presets import find_preset, preset_of
from deft.platform.config.spec import ExperimentSpec, ModelEvaluationSpec
from deft.platform.config.yaml_file import KeyPath, Origin, parse_yaml, read_yaml
from deft.platform.errors import UserError
from deft.workers.common.files import reading
from deft.workers.common.mappings import deep_merge
from deft.workers.common.names import nearest_name
from deft.workers.common.secrets import secret_setting
from deft.workers.dataset_spec import name_or_mixture

Spec = TypeVar("Spec", bound=BaseModel)

ManySettings = Iterable[str] | Mapping[str, Any]
"""Settings that override others, see `apply_settings`."""

OPTIONS = {("dataset",), ("model",), ("objective",), ("protocol",)}
"""Settings that are options of commands as well."""


def load_spec(
    source: Path | Mapping[str, Any] | None,
    names: Mapping[str, str | None] | None = None,
    settings: ManySettings = (),
) -> ExperimentSpec:
    """Read a run file, let ``names`` and then ``settings`` override it, and validate.

    Args:
        source: a YAML file, or what such a file holds; None to start from nothing.
        names: values of `dataset`, `model`, `objective` and `protocol`; None leaves one as it is.
        settings: see `apply_settings`.

    Raises:
        UserError: naming file, line, key, expectation and nearest valid name.
    """
    data, origins = read_settings(source or {})
    file = None if source is None or isinstance(source, Mapping) else str(source)
    if "grid" in data:
        place = f"{place_of(('grid',), origins, None)}: " if file else ""
        raise UserError(
            f"{place}grid makes this a sweep file; run it by `deft sweep {file or 'FILE'}`"
        )
    for key, name in (names or {}).items():
        if name is not None:
            set_value(data, origins, (key,), name, Origin(f"--{key}"))
    apply_settings(data, origins, settings)
    return to_experiment(data, file, origins)


def read_settings(
    source: Path | Mapping[str, Any],
) -> tuple[dict[str, Any], dict[KeyPath, Origin]]:
    """Read settings from a YAML file, or copy them; return them and where each stands.

    Raises:
        UserError: the file cannot be read.
    """
    return (_copy(source), {}) if isinstance(source, Mapping) else read_yaml(source)


def _copy(value: Any) -> Any:
    """Copy settings as a file would hold them: a path is a text, a tuple a list."""
    match value:
        case Mapping():
            return {str(key): _copy(item) for key, item in value.items()}
        case list() | tuple():
            return [_copy(item) for item in value]
        case PathLike():
            return os.fspath(value)
    return value


def to_experiment(
    data: Mapping[str, Any], file: str | None, origins: Mapping[KeyPath, Origin]
) -> ExperimentSpec:
    """Lay ``data`` over the preset of its dataset and model, and make a spec of it."""
    return validate_spec(
        ExperimentSpec, deep_merge(preset_of(data).settings, data, bare_names=True), file, origins
    )


def preset_note(spec: ExperimentSpec) -> str:
    """Say in one line whose settings ``spec`` took, where its names are not those of a preset."""
    model = spec.model
    return find_preset(
        spec.dataset.name, model.name, like=model.preset, protocol=spec.protocol
    ).note


def load_evaluation(
    model: str,
    benchmarks: Iterable[str],
    sampling: Mapping[str, Any],
    common: Mapping[str, Any],
    settings: ManySettings,
    root: Path,
) -> ModelEvaluationSpec:
    """Make the spec of an evaluation that the command line describes, see `make_evaluation`.

    Args:
        model: name, directory or hub id of a model; or directory of a run, or its name in ``root``.
        benchmarks: their names.
        sampling: settings of every benchmark; None leaves one as it is.
        common: settings of the evaluation; None leaves one as it is.
        settings: see `apply_settings`.
        root: run root.

    Raises:
        UserError: see `load_spec`.
    """
    overrides = {key: value for key, value in sampling.items() if value is not None}
    evaluation = {
        "benchmarks": [{"name": name, **overrides} for name in benchmarks],
        **{key: value for key, value in common.items() if value is not None},
    }
    return make_evaluation({"model": model, "evaluation": evaluation}, settings, root)


def make_evaluation(
    source: Path | Mapping[str, Any], settings: ManySettings, root: Path
) -> ModelEvaluationSpec:
    """Make the spec of an evaluation.

    Args:
        source: a YAML file, or what such a file holds; its ``model`` may be a run.
        settings: see `apply_settings`.
        root: run root.

    Raises:
        UserError: see `load_spec`.
    """
    data, origins = read_settings(source)
    if isinstance(data.get("evaluation", {}), dict):
        # What was forgotten shows beside the model before; a model on its own has no before.
        data["evaluation"] = {"general": False, **data.get("evaluation", {})}
    if isinstance(model := data.get("model"), str):
        trained = _trained_model(model, root)
        data = {**trained, **data, "model": trained["model"]}
    apply_settings(data, origins, settings)
    file = None if isinstance(source, Mapping) else str(source)
    spec = validate_spec(ModelEvaluationSpec, data, file, origins)
    heldout = spec.evaluation.heldout
    if not spec.evaluation.benchmarks and (heldout is None or heldout.file is None):
        raise UserError("nothing to evaluate; give --benchmarks or --heldout")
    return spec


def _trained_model(model: str, root: Path) -> dict[str, Any]:
    """Make settings of ``model``; a run stands for what it trained, and for its prompt style."""
    for run in (Path(model), root / model):
        if (run / "spec.json").is_file() or (run / "stages").is_dir():
            return {
                "name": f"evaluation-{run.name}"[:80],
                "model": str(run / "model"),
                "prompt_style": trained_style(run),
            }
    return {"model": model}


def trained_style(run: Path) -> str:
    """Return the prompt style that the model of the run in directory ``run`` was trained with.

    Raises:
        UserError: the run has no model.
    """
    # With the tables of results, which a plan needs not.
    from deft.platform.records.find import trained_model

    trained_model(run)
    with reading(run / "spec.json", "run the command of this run again"):
        spec = json.loads((run / "spec.json").read_text(encoding="utf-8"))
        return str(spec.get("dataset", {}).get("prompt_style", "chat"))


def validate_spec(
    spec: type[Spec], data: Mapping[str, Any], file: str | None, origins: Mapping[KeyPath, Origin]
) -> Spec:
    """Make a spec of ``data``.

    Args:
        spec: its class.
        data: the settings.
        file: where they are from, if from a file.
        origins: where each of them stands.

    Raises:
        UserError: naming file, line, key, expectation and nearest valid name.
    """
    try:
        valid = spec.model_validate(data)
    except ValidationError as error:
        raise UserError(
            "\n".join(_explain(detail, spec, file, origins) for detail in error.errors())
        ) from None
    except OSError as error:  # a path that is too long, or in a directory that is closed
        reason = f"{error.strerror}: {error.filename!r:.80}"
        raise UserError(": ".join(filter(None, [file, reason]))) from None
    if (keys := secret_setting(data)) is not None:
        place, dotted = place_of(keys, origins, file), ".".join(map(str, keys))
        raise UserError(
            ": ".join(filter(None, [place, dotted]))
            + ": a secret, which would be written into the spec and into logs; put it into the "
            "environment of the processes that need it"
        )
    return valid


def apply_settings(
    data: dict[str, Any], origins: dict[KeyPath, Origin], settings: ManySettings
) -> None:
    """Let settings override ``data``.

    Args:
        data: settings by their keys.
        origins: where each of them stands.
        settings: dotted keys and their values; or texts ``key=value`` with a YAML value.

    Raises:
        UserError: one is no such setting.
    """
    if isinstance(settings, Mapping):
        for dotted, value in settings.items():
            set_value(data, origins, tuple(dotted.split(".")), value, Origin(f"settings {dotted}"))
        return
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        if not equals or not dotted:
            raise UserError(f"--set {setting}: expected key=value, as in training.max_steps=10")
        key, place = tuple(dotted.split(".")), f"--set {setting}"
        value, parts = parse_yaml(text, place, lines=False)
        set_value(data, origins, key, value, parts.pop((), Origin(place)))
        origins |= {(*key, *part): origin for part, origin in parts.items()}


def set_value(
    data: dict[str, Any], origins: dict[KeyPath, Origin], key: KeyPath, value: Any, origin: Origin
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
    for below_key in [other for other in origins if other[: len(key)] == key]:
        del origins[below_key]
    origins[key] = origin


def _explain(
    detail: ErrorDetails,
    spec: type[BaseModel],
    file: str | None,
    origins: Mapping[KeyPath, Origin],
) -> str:
    """Write one validation error as ``where: key: what is wrong``."""
    key: KeyPath = detail["loc"]
    is_text = detail["type"] == "string_type"
    match detail["type"]:
        case "extra_forbidden":
            names = sorted(fields_at(spec, key[:-1]))
            nearest = nearest_name(str(key[-1]), names)
            hint = f"did you mean {nearest}? " if nearest else ""
            message = f"unknown key; {hint}There are: {', '.join(names)}."
        case "missing" if isinstance(key[-1], int):
            message = "is missing; the list is too short"
        case "missing":
            option = f"--{key[0]}" if key in OPTIONS else f"--set {_dotted(key)}=…"
            message = f"is missing; give it in the file or as {option}"
        case "model_type":
            names = list(fields_at(spec, key))
            is_text = "name" in names
            expected = "a name or settings" if is_text else "settings"
            message = f"expected {expected} ({', '.join(names)}), got {detail['input']!r:.80}"
        case "tuple_type":
            message = f"expected a list, got {detail['input']!r:.80}"
        case "value_error":
            key, message = _with_key_of(str(detail["ctx"]["error"]), key, origins)
        case _:
            message = f"{detail['msg']}, got {detail['input']!r:.80}"
    if key in origins:
        message += _as_yaml_reads(detail["input"], origins[key].text, is_text=is_text)
    place, dotted = place_of(key, origins, file), _dotted(key)
    if place == f"--{dotted}":
        dotted = ""
    return ": ".join(filter(None, [place, dotted, message]))


def place_of(key: KeyPath, origins: Mapping[KeyPath, Origin], file: str | None) -> str | None:
    """Return the place of ``key``, or of what it is part of; ``file`` if neither is known."""
    parents = (key[:end] for end in range(len(key), 0, -1))
    return next((origins[parent].place for parent in parents if parent in origins), file)


def _with_key_of(
    message: str, key: KeyPath, origins: Mapping[KeyPath, Origin]
) -> tuple[KeyPath, str]:
    """Move a key that a validator's message begins with, ``part.of.it: …``, to the end of its own.

    What is checked across several settings is reported where they all are; its message names the
    one that is wrong, which has a line of its own.
    """
    subkey, colon, rest = message.partition(": ")
    parts = (int(part) if part.isdecimal() else part for part in subkey.split("."))
    full = (*key, *parts)
    return (full, rest) if colon and full in origins else (key, message)


def _as_yaml_reads(value: Any, text: str | None, *, is_text: bool) -> str:
    """Say how a value was written where YAML made something else of it than it looks like.

    Args:
        value: what YAML made of it.
        text: how it was written, if that is known.
        is_text: whether a text was expected.
    """
    if text is None or not isinstance(value, bool | int | float):
        return ""
    surprise = isinstance(value, bool) and text.lower() not in ("true", "false")
    advice = f"; YAML 1.1 reads {text} as {str(value).lower()}" if surprise else ""
    if is_text:
        advice += f'; write "{text}", in quotes, for the text'
    return advice


def fields_at(spec: type[BaseModel], key: KeyPath) -> Mapping[str, FieldInfo]:
    """Return the fields that ``spec`` has at ``key`` by their names; none for an unknown key."""
    model: type[BaseModel] | None = spec
    for part in key:
        if model is not None and isinstance(part, str):
            field = model.model_fields.get(part)
            model = _model_in(field.annotation) if field else None
    return model.model_fields if model is not None else {}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the first pydantic model in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))
