"""A hub model is where every node sees it, once one node has had it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from deft.workers.common.checksums import damaged_file_of
from deft.workers.common.hub import NotOnThisNodeError
from deft.workers.modeling.hub_models import prepare_hub_model

COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_hub_model_outlives_the_cache_of_the_node_that_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--small"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    weights = save({"weight": torch.zeros(1)})
    (repository / "blob").write_bytes(weights)
    (snapshot / "model.safetensors").symlink_to("../../blob")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "pytorch_model.bin").write_bytes(b"a pickle that nobody loads")

    cache = tmp_path / "runs" / "cache"
    directory = prepare_hub_model("org/small", None, cache)
    assert directory == cache / "org--small-0123456789ab"
    # What a later start of the run asks before it takes the directory as it is.
    assert damaged_file_of(directory, 0) is None
    shutil.rmtree(tmp_path / "hub")
    assert prepare_hub_model("org/small", COMMIT, cache) == directory
    content = {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    assert content == {"model.safetensors": weights, "config.json": b"{}"}
    with pytest.raises(NotOnThisNodeError, match="'org/other' could not be downloaded"):
        prepare_hub_model("org/other", None, cache)


def test_directory_that_only_another_node_has_is_named_with_this_node(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such directory on node"):
        prepare_hub_model(str(tmp_path / "model"), None, tmp_path / "cache")
