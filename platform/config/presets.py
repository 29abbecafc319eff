"""Settings for a pair of dataset and model, used where a run file is silent.

Those of `math`, `medical` and `figfont` with the models of arXiv 2602.11424 are its own: 256
examples a step, one epoch, AdamW with betas (0.9, 0.95), clipping at 1, cosine decay after 10 %
warm-up, everything sharded over two devices (FSDP2 there, ZeRO 3 here). Three things differ on
purpose: every prompt has one BOS; validation is held out, while the paper's is part of its training
data; and Llama's medical and figfont prompts stand alone, while the paper nests them in a second
prompt for training. Its medical table names a "llama-3.1-3b", which does not exist: llama-3.2-3b is
meant.
"""

from __future__ import annotations

from typing import Any

QWEN_STYLES = {"math": "chat-bare", "medical": "qwen-medical", "figfont": "qwen-figfont"}
LLAMA_STYLES = {
    "math": "llama-base-boxed-with-bos",
    "medical": "llama-medical",
    "figfont": "llama-figfont",
}
DEEPSEEK_STYLES = {"math": "deepseek-math"}
LLAMA_MEDICAL_COLUMNS = {
    "prompt": "extra_info.llama_prompt",
    "response": "extra_info.llama_reponse_no_thinking",
}

PAPER_BENCHMARKS = {
    "math": ["minerva_math", "olympiadbench", "aime24", "amc23", "math500"],
    "medical": ["medical"],
    "figfont": ["figfont"],
}

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


def paper_preset(dataset: str, model: str, learning_rate: float) -> dict[str, Any]:
    """Return the paper's settings for one row of its table."""
    family = model.split("-")[0]
    styles = {"qwen": QWEN_STYLES, "llama": LLAMA_STYLES, "deepseek": DEEPSEEK_STYLES}[family]
    data: dict[str, Any] = {"prompt_style": styles[dataset], "too_long": "truncate"}
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
        "evaluation": {"protocol": "paper", "benchmarks": PAPER_BENCHMARKS[dataset]},
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
        "dataset": {"size": 32_128, "validation": 128},
        "training": {
            "batch_size": 32,
            "micro_batch_size": 16,
            "max_length": 64,
            "packing": False,
            "learning_rate": 3e-3,
            "dtype": "float32",
        },
        "evaluation": {"benchmarks": [{"name": "chain_sum", "size": 500}]},
    },
    ("figfont", "smollm2-135m"): {
        "evaluation": {"benchmarks": [{"name": "figfont", "size": 200}]},
    },
    **{(dataset, model): paper_preset(dataset, model, rate) for dataset, model, rate in PAPER_RUNS},
}
"""Settings by dataset and model."""
