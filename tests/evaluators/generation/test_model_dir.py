"""What is read from a model directory before any engine sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deft.evaluators.generation.model_dir import read_architecture, read_stop_token_ids


def write_checkpoint(path: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "qwen2", **config}))
    for number, (name, shape) in enumerate(shapes.items()):
        save_file({name: np.zeros(shape, dtype=np.float16)}, path / f"model-{number}.safetensors")
    return path


def test_architecture_is_config_and_shapes_whatever_the_dtype_and_version(tmp_path: Path) -> None:
    shapes = {"embed": (4, 2), "norm": (2,)}
    base = read_architecture(
        write_checkpoint(tmp_path / "base", shapes, dtype="float32", transformers_version="4.57")
    )
    assert base.tensors == shapes
    trained = write_checkpoint(
        tmp_path / "trained", shapes, dtype="bfloat16", transformers_version="5.19"
    )
    assert read_architecture(trained) == base
    wider = write_checkpoint(tmp_path / "wider", {"embed": (4, 3), "norm": (3,)})
    assert read_architecture(wider) != base
    other_rope = write_checkpoint(tmp_path / "rope", shapes, rope_theta=1e6)
    assert read_architecture(other_rope) != base


def test_weights_must_be_safetensors(tmp_path: Path) -> None:
    pickled = write_checkpoint(tmp_path / "pickled", {})
    (pickled / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match="no weights"):
        read_architecture(pickled)


@pytest.mark.parametrize(
    ("config", "generation_config", "expected"),
    [
        ({"eos_token_id": 5}, None, [5, 7]),
        ({"eos_token_id": 5}, {"eos_token_id": [9, 7]}, [7, 9]),
        ({"eos_token_id": 5}, {}, [7]),
    ],
)
def test_stop_tokens_are_those_of_tokenizer_and_generation_config(
    tmp_path: Path, config: dict[str, Any], generation_config: Any, expected: list[int]
) -> None:
    path = write_checkpoint(tmp_path / "model", {}, **config)
    if generation_config is not None:
        (path / "generation_config.json").write_text(json.dumps(generation_config))
    assert read_stop_token_ids(path, eos_token_id=7) == expected


def test_a_model_may_have_no_stop_token_at_all(tmp_path: Path) -> None:
    assert read_stop_token_ids(write_checkpoint(tmp_path / "model", {}), None) == []
