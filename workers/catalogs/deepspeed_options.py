"""Options of DeepSpeed that a run file may set. Loads neither torch nor DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deft.workers.catalogs.deepspeed_keys import DEEPSPEED_KEYS
from deft.workers.common.names import nearest_name

RESERVED_DEEPSPEED_KEYS = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.batch_size and training.micro_batch_size",
    "gradient_clipping": "training.max_grad_norm",
    "optimizer": "training.optimizer, learning_rate, betas and weight_decay",
    "scheduler": "training.schedule and training.warmup_ratio",
    "bf16": "training.dtype",
    "bfloat16": "training.dtype",
    "fp16": "training.dtype",
    "torch_autocast": "training.dtype",
    "zero_optimization.stage": "training.zero_stage",
}
"""Options of DeepSpeed that a setting here stands for."""

SPLITTING_DEEPSPEED_KEYS = (
    "sequence_parallel_size",
    "sequence_parallel",
    "tensor_parallel",
    "autotp_size",
    "pipeline",
)
"""Options that would cut one example over several ranks: the head sees whole examples only."""


def require_usable_options(options: Mapping[str, Any], section: str = "") -> None:
    """Refuse options that DeepSpeed does not have, or that a setting of a run file stands for.

    DeepSpeed itself ignores an unknown option of its top level without a word.

    Args:
        options: of one section, as in a run file.
        section: its dotted name; empty for the top level.

    Raises:
        ValueError: naming the first such option, and the nearest that there is.
    """
    known_keys = DEEPSPEED_KEYS[section]
    for name, value in options.items():
        key = f"{section}.{name}" if section else name
        if key in RESERVED_DEEPSPEED_KEYS:
            raise ValueError(f"deepspeed.{key}: give {RESERVED_DEEPSPEED_KEYS[key]} instead")
        if key in SPLITTING_DEEPSPEED_KEYS:
            raise ValueError(
                f"deepspeed.{key}: objectives are computed over whole examples; an example "
                "that is cut over several workers is not supported"
            )
        if name not in known_keys:
            nearest = nearest_name(name, known_keys)
            hint = f"did you mean {nearest}? " if nearest else ""
            raise ValueError(
                f"deepspeed.{key}: DeepSpeed has no such option; {hint}"
                f"There are: {', '.join(known_keys)}."
            )
        if key in DEEPSPEED_KEYS:
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"deepspeed.{key}: expected a mapping of options, got {value!r:.80}"
                )
            require_usable_options(value, key)


def require_rounded_states(dtype: str, stage: int, *, offloads: bool, is_elastic: bool) -> None:
    """Refuse settings beside which DeepSpeed cannot keep weights and moments in bfloat16.

    Args:
        dtype: of the weights that compute.
        stage: ZeRO stage.
        offloads: whether states or weights are kept in the host's memory.
        is_elastic: whether another number of workers may go on with a checkpoint.

    Raises:
        ValueError: naming the setting and what to change.
    """
    problems = {
        f"bfloat16 states go with bfloat16 weights, got dtype {dtype}; set dtype to bfloat16": (
            dtype != "bfloat16"
        ),
        "DeepSpeed keeps bfloat16 states at zero_stage 1, 2 and 3, got 0; set zero_stage to 1 "
        "(one worker is enough)": stage == 0,
        "offloaded states are float32; leave offload_optimizer and offload_parameters out, or set "
        "master_dtype to float32": offloads,
        "a checkpoint of bfloat16 states belongs to its number of workers; leave min_workers out, "
        "or set master_dtype to float32": is_elastic,
    }
    for problem, applies in problems.items():
        if applies:
            raise ValueError(f"master_dtype: {problem}")
