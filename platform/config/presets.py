"""Settings for a pair of dataset and model, used where a run file is silent.

Those of `math`, `medical` and `figfont` with the models of arXiv 2602.11424 are its own: 256
examples a step, one epoch, AdamW with betas (0.9, 0.95), clipping at 1, cosine decay after 10 %
warm-up, everything sharded over two devices (FSDP2 there, ZeRO 3 here). How the steps are computed
depends on the run file's `protocol`:

- `fair`, the default, is this platform's way, which serves every objective alike: the mean over all
  tokens of a step, float32 master weights, micro-batches of similar length.
- `paper` is the paper's: gradients summed over micro-batches and then clipped, weights and moments
  in bfloat16 without a master copy, micro-batches that follow the data's order, questions with
  the white space around them.

Three things differ under both, on purpose: every prompt has one BOS; validation is held out, while
the paper's is part of its training data; and Llama's medical and figfont prompts stand alone, while
the paper nests them in a second prompt for training. Its medical table names a "llama-3.1-3b",
which does not exist: llama-3.2-3b is meant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deft.workers.catalogs.datasets import DATASETS
from deft.workers.catalogs.models import MODELS, read_dimensions
from deft.workers.common.mappings import deep_merge
from deft.workers.dataset_spec import name_of, name_or_mixture

STYLES = {
    "qwen": {"math": "chat-bare", "medical": "qwen-medical", "figfont": "qwen-figfont"},
    "llama": {
        "math": "llama-base-boxed-with-bos",
        "medical": "llama-medical",
        "figfont": "llama-figfont",
    },
    "deepseek": {"math": "deepseek-math", "medical": "deepseek-math"},
}
"""Prompt styles of each family of models, by dataset."""
LLAMA_MEDICAL_COLUMNS = {
    "prompt": "extra_info.llama_prompt",
    "response": "extra_info.llama_reponse_no_thinking",
}

BENCHMARKS: dict[str, list[Any]] = {
    "math": ["minerva_math", "olympiadbench", "aime24", "amc23", "math500"],
    "medical": ["medical"],
    "figfont": ["figfont"],
    "chain_sum": [{"name": "chain_sum", "size": 500}],
}
"""Benchmarks of a known dataset; those of the first three are the paper's."""

LEARNING_RATE = 5e-5
"""The paper's for all models but those of 8B parameters."""

PAPER_RUNS: tuple[tuple[str, str, float], ...] = (
    ("math", "qwen-2.5-math-1.5b", 5e-5),
    ("math", "qwen-2.5-math-7b", 5e-5),
    ("math", "llama-3.1-8b", 2e-5),
    ("math", "deepseek-math-7b", 5e-5),
    ("medical", "qwen-2.5-1.5b", 5e-5),
    ("medical", "qwen-2.5-math-7b", 5e-5),
    ("medical", "llama-3.1-8b", 2e-5),
    ("medical", "llama-3.2-3b", 5e-5),
    ("figfont", "qwen-2.5-7b", 5e-5),
    ("figfont", "qwen-2.5-1.5b", 5e-5),
    ("figfont", "llama-3.1-8b", 2e-5),
    ("figfont", "llama-3.2-3b", 5e-5),
)
"""The paper's table: dataset, model, learning rate."""

PAPER_DATASETS = frozenset(dataset for dataset, _, _ in PAPER_RUNS)

PAPER_PROTOCOL: dict[str, Any] = {
    "dataset": {"too_long": "truncate"},
    "training": {
        "reduction": "micro_batch_sum",
        "max_grad_norm": 1.0,
        "micro_batch_order": "data",
        "floor_scope": "micro_batch",
        "dtype": "bfloat16",
        "master_dtype": "bfloat16",
        "zero_stage": 3,
    },
    "evaluation": {"protocol": "paper"},
}
"""How the paper trains and evaluates, whatever the dataset and the model."""


class Preset(NamedTuple):
    """Settings for a dataset and a model, and where they are from."""

    settings: dict[str, Any]
    note: str = ""
    """One line for whoever named another dataset or model than the settings are for, or none."""


def paper_preset(dataset: str, family: str, learning_rate: float) -> dict[str, Any]:
    """Return the paper's settings for a dataset and a family of models."""
    data: dict[str, Any] = {"too_long": "truncate"}
    if dataset in STYLES[family]:
        data["prompt_style"] = STYLES[family][dataset]
    if dataset != "medical":
        # So few that the paper's number of steps is left: 39,936 examples are 156 batches.
        data["validation"] = 64
    elif family == "llama":
        data["columns"] = LLAMA_MEDICAL_COLUMNS
    return {
        "dataset": data,
        "training": {
            "num_workers": 2,
            "epochs": 1,
            "batch_size": 256,
            "micro_batch_size": 4 if dataset == "math" else 16,
            "max_length": 3072 if dataset == "math" else 800,
            "learning_rate": learning_rate,
            "weight_decay": 1e-5 if dataset == "figfont" else 0.01,
            "gradient_checkpointing": True,
            "zero_stage": 3,
        },
        "evaluation": {"protocol": "paper", "benchmarks": BENCHMARKS[dataset]},
    }


PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("figfont", "tiny"): {
        "dataset": {"size": 8_000},
        "training": {
            "epochs": 2,
            "batch_size": 32,
            "max_length": 384,
            "learning_rate": 1e-3,
            "dtype": "float32",
        },
        "evaluation": {"benchmarks": [{"name": "figfont", "size": 500}]},
    },
    ("chain_sum", "tiny"): {
        "dataset": {"size": 20_608, "validation": 128},
        "training": {
            "batch_size": 32,
            "micro_batch_size": 16,
            "max_length": 64,
            "packing": False,
            "learning_rate": 3e-3,
            "dtype": "float32",
        },
        "evaluation": {"benchmarks": BENCHMARKS["chain_sum"], "general": False},
    },
    ("figfont", "smollm2-135m"): {
        "evaluation": {"benchmarks": [{"name": "figfont", "size": 200}]},
    },
    **{
        (dataset, model): paper_preset(dataset, model.split("-")[0], rate)
        for dataset, model, rate in PAPER_RUNS
    },
}
"""Settings by dataset and model."""


def find_preset(dataset: str, model: str, *, like: str | None = None, protocol: Any) -> Preset:
    """Find the settings for a dataset and a model.

    Args:
        dataset: its name in a run file.
        model: name of the catalog, directory or hub id.
        like: the name of the catalog whose settings ``model`` shall take.
        protocol: `fair` or `paper`.
    """
    found = _fair_preset(dataset, model, like)
    if protocol != "paper":
        return found
    settings = deep_merge(found.settings, PAPER_PROTOCOL)
    if dataset in DATASETS and DATASETS[dataset].hub is not None:
        settings = deep_merge(settings, {"dataset": {"keep_whitespace": True}})
    return found._replace(settings=settings)


def _fair_preset(dataset: str, model: str, like: str | None) -> Preset:
    known = like or recognized(model)
    if known is not None and (dataset, known) in PRESETS:
        settings = PRESETS[dataset, known]
        if known == model:
            return Preset(settings)
        return Preset(settings, f"{model}: the settings of {known}")
    name = known or model
    family = family_of(name)
    if dataset in PAPER_DATASETS and family is not None:
        return Preset(
            paper_preset(dataset, family, LEARNING_RATE),
            f"{dataset} with {name} is none of the published runs: the settings of {family} models "
            f"on {dataset}, at a learning rate of {LEARNING_RATE:g}" + _maybe(model, known),
        )
    if dataset in BENCHMARKS:
        return Preset(
            {"evaluation": {"benchmarks": BENCHMARKS[dataset]}},
            f"no settings are known for {dataset} with {name}: the platform's defaults, and the "
            f"benchmarks of {dataset}" + _maybe(model, known),
        )
    return Preset(
        {"evaluation": {"benchmarks": ["general"]}},
        f"no settings are known for {dataset}: the platform's defaults, and the benchmark general",
    )


def _maybe(model: str, known: str | None) -> str:
    """Name the model that a directory may be a copy of."""
    alike = [] if known is not None else _of_equal_configuration(Path(model))
    names = " or ".join(alike)
    return f"; if it is {names}, say so by model.preset" if alike else ""


def recognized(model: str) -> str | None:
    """Return the name in the catalog of a model that is called otherwise; None if it is not known.

    A directory is recognized if its configuration has the sizes of the catalog's model and it, or
    a directory that it lies in, has that model's name. Fine-tuned models have the sizes alone.
    """
    if model in MODELS:
        return model
    for name, entry in MODELS.items():
        if entry.hub is not None and entry.hub.casefold() == model.casefold():
            return name
    path = Path(model)
    parts = [part.casefold() for part in path.absolute().parts]
    for name in _of_equal_configuration(path):
        hub = str(MODELS[name].hub).casefold()
        organization, _, repository = hub.partition("/")
        spellings = {name, repository, f"{organization}_{repository}"}
        # `models--Qwen--Qwen2.5-Math-7B/snapshots/…` is how the hub's own cache calls it.
        if any(part in spellings or part.endswith(f"--{repository}") for part in parts[-3:]):
            return name
    return None


def _of_equal_configuration(directory: Path) -> list[str]:
    """Name the catalog's models whose sizes and context a model's directory has."""
    file = directory / "config.json"
    if not file.is_file():
        return []
    try:
        config = json.loads(file.read_text())
        dimensions = read_dimensions(config)
    except (ValueError, LookupError, TypeError, AttributeError):
        return []  # whatever is wrong with it is said when the model is loaded
    return [
        name
        for name, entry in MODELS.items()
        if entry.hub is not None
        and entry.dimensions == dimensions
        and entry.context == config.get("max_position_embeddings")
    ]


def family_of(model: str) -> str | None:
    """Return the family whose prompts a model knows, by its name; None if it is of none."""
    name = Path(model).name.casefold()
    if "distill" in name:  # named after what it was made of, with prompts of its own
        return None
    return next((family for family in STYLES if name.startswith(family)), None)


def preset_of(data: Mapping[str, Any]) -> Preset:
    """Find the settings for the dataset and model that a run file names."""
    dataset, model = (name_or_mixture(data.get(key)) for key in ("dataset", "model"))
    if not (isinstance(dataset, Mapping) and isinstance(model, Mapping)):
        return Preset({})
    data_name, model_name, like = name_of(dataset), model.get("name"), model.get("preset")
    if not (isinstance(data_name, str) and isinstance(model_name, str)):
        return Preset({})
    like = like if like in MODELS else None  # reported when the model is validated
    return find_preset(data_name, model_name, like=like, protocol=data.get("protocol"))
