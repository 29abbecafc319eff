"""The catalog of DeepSpeed's options is what the installed DeepSpeed reads.

After an upgrade `python tests/workers/catalogs/test_deepspeed_keys.py` and `make format` write it
anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from deepspeed.runtime import config as deepspeed_config
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from pydantic import BaseModel, ValidationError

from deft.workers.catalogs import deepspeed_keys
from deft.workers.catalogs.deepspeed_keys import DEEPSPEED_KEYS
from deft.workers.catalogs.deepspeed_options import (
    RESERVED_DEEPSPEED_KEYS,
    SPLITTING_DEEPSPEED_KEYS,
    require_usable_options,
)

VALID = {"train_batch_size": 1}
REMOVED = {
    *deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS,
    *deepspeed_config._REMOVED_ZERO_CONFIG_KEYS,
}
"""Keys that DeepSpeed looks for only to refuse them."""


class RecordedDict(dict[str, Any]):
    """A mapping that records which keys were looked for in it and in its copies."""

    def __init__(self, *items: Any, asked: set[str]) -> None:
        super().__init__(*items)
        self.asked = asked

    def __copy__(self) -> RecordedDict:
        return RecordedDict(self, asked=self.asked)

    copy = __copy__

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:  # `key in config.keys()` asks too
        return self


def keys_of_deepspeed() -> dict[str, tuple[str, ...]]:
    """Collect the keys of every section that the installed DeepSpeed reads; "" is the top level."""
    sections = {"": asked_keys(None)}
    for name in {*sections[""]} - {*RESERVED_DEEPSPEED_KEYS, *SPLITTING_DEEPSPEED_KEYS}:
        model = model_of(name)
        sections |= keys_of_model(name, model) if model else {name: asked_keys(name)}
    return {section: keys for section, keys in sorted(sections.items()) if keys}


def asked_keys(section: str | None) -> tuple[str, ...]:
    """Look which keys DeepSpeed asks for in a section that is there but empty."""
    asked: set[str] = set()
    recorded = RecordedDict(VALID if section is None else {}, asked=asked)
    try:
        DeepSpeedConfig(recorded if section is None else {**VALID, section: recorded})
    except (AssertionError, AttributeError, TypeError, ValueError):
        assert section is not None  # a single value, not a section
    return tuple(sorted(asked - REMOVED))


def model_of(section: str) -> type[BaseModel] | None:
    """Find the pydantic model that DeepSpeed makes of a section: it refuses an unknown key."""
    try:
        DeepSpeedConfig({**VALID, section: {"unknown key": 1}})
    except ValidationError as error:
        models = {model.__name__: model for model in subclasses(DeepSpeedConfigModel)}
        nested = models[error.title].model_fields.get(section)
        return model_in(nested.annotation) if nested else models[error.title]
    except (AssertionError, AttributeError, TypeError, ValueError):  # a single value
        return None
    return None


def subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for subclass in model.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def keys_of_model(section: str, model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    names = {n for name, field in model.model_fields.items() for n in (name, field.alias) if n}
    sections = {section: tuple(sorted(names))}
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        for spelling in filter(None, (name, field.alias)):
            sections |= keys_of_model(f"{section}.{spelling}", inner) if inner else {}
    return sections


def model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, DeepSpeedConfigModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def test_catalog_is_what_deepspeed_reads() -> None:
    assert keys_of_deepspeed() == DEEPSPEED_KEYS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"zero_optimisation": {"reduce_bucket_size": 1}},
            "deepspeed.zero_optimisation: DeepSpeed has no such option; did you mean zero_optimiz",
        ),
        (
            {"zero_optimization": {"overlap_com": True}},
            "deepspeed.zero_optimization.overlap_com: DeepSpeed has no such option; did you mean "
            "overlap_comm? There are: allgather_bucket_size, ",
        ),
        (
            {"zero_optimization": {"offload_param": {"devise": "cpu"}}},
            "deepspeed.zero_optimization.offload_param.devise: DeepSpeed has no such option; did "
            "you mean device?",
        ),
        ({"aio": {"blocks": 1}}, "deepspeed.aio.blocks: DeepSpeed has no such option; "),
        ({"data_type": {}}, "did you mean data_types?"),
        ({"quite_different": 1}, "no such option; There are: activation_checkpointing, aio"),
        ({"zero_optimization": True}, "deepspeed.zero_optimization: expected a mapping of options"),
        ({"zero_optimization": {"stage": 2}}, "stage: give training.zero_stage instead"),
        ({"bfloat16": {"enabled": True}}, "deepspeed.bfloat16: give training.dtype instead"),
    ],
)
def test_options_that_deepspeed_does_not_have_are_refused(
    options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match="deepspeed") as caught:
        require_usable_options(options)
    assert expected in str(caught.value)


def test_options_of_any_depth_are_taken() -> None:
    require_usable_options(
        {
            "zero_optimization": {
                "reduce_bucket_size": 5e8,
                "stage3_prefetch_bucket_size": 5e7,
                "offload_param": {"device": "nvme", "nvme_path": "/tmp"},
            },
            "data_types": {"grad_accum_dtype": "fp32"},
            "timers": {"throughput": {"enabled": False}},
            "wall_clock_breakdown": True,
        }
    )


def write_catalog() -> None:
    module = Path(deepspeed_keys.__file__)
    head, _, rest = module.read_text().partition("] = {")
    table = json.dumps(keys_of_deepspeed()).replace("[", "(").replace("]", ",)")
    module.write_text(f"{head}] = {table}{rest[rest.index('}') + 1 :]}")


if __name__ == "__main__":
    write_catalog()
