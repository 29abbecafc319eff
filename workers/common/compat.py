"""Private and internal names of other libraries that training relies on, in one place.

Look at each of these when a library is upgraded; each function says what it needs them for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel


def extension_build_directory(name: str) -> Path:
    """Return where PyTorch compiles the C++ extension ``name``.

    `torch.utils.cpp_extension._get_build_directory`: the only way to find the lock file that a
    killed build leaves there.
    """
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(name, verbose=False))


def build_shared_memory_collectives() -> None:
    """Compile and load DeepSpeed's collectives in shared memory; later calls find them loaded.

    `deepspeed.comm.torch.build_shm_op`: what DeepSpeed itself calls when it initializes.
    """
    from deepspeed.comm.torch import build_shm_op

    build_shm_op()


def skip_steps_without_finite_gradient(optimizer: Any) -> None:
    """Make a ZeRO-3 optimizer look for inf and NaN in every dtype, as the other stages do.

    `_overflow_check_and_loss_scale_update` of `DeepSpeedZeroOptimizer_Stage3`: DeepSpeed 0.19 looks
    only under float16 there; elsewhere NaN would enter weights and moments.
    """

    def check(update_scale: bool = True) -> bool:
        optimizer.overflow = False
        optimizer.check_overflow()
        if not update_scale:
            return bool(optimizer.overflow)
        return bool(optimizer._loss_scale_update_and_overflow_cleanup())

    optimizer._overflow_check_and_loss_scale_update = check


def apply_liger_kernels(model: PreTrainedModel) -> None:
    """Replace RMSNorm, RoPE and SwiGLU by Liger's kernels; head and loss stay as they are.

    `liger_kernel.transformers._apply_liger_kernel_to_instance`: the public functions are one for
    each architecture, and patch classes instead of a model.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(
        model=model, cross_entropy=False, fused_linear_cross_entropy=False
    )


def attention_of(model: PreTrainedModel) -> str:
    """Return the name of the attention that ``model`` was loaded with.

    `PreTrainedConfig._attn_implementation`: transformers has a setter but no public getter.
    """
    return str(model.config._attn_implementation)


def calls_attention_functions(model: PreTrainedModel) -> bool:
    """Tell whether ``model`` calls functions registered with `AttentionInterface`.

    `PreTrainedModel._supports_attention_backend`: read by transformers itself, documented nowhere.
    """
    return bool(model._supports_attention_backend)


def disable_adapters(layer: BaseTunerLayer, disabled: bool) -> None:
    """Switch the adapters of one layer off or on.

    `BaseTunerLayer._disable_adapters`: the public `enable_adapters` also changes requires_grad,
    which would unhook DeepSpeed's reduction.
    """
    layer._disable_adapters = disabled
