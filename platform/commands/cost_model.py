"""Arithmetic of a run's cost: steps, tokens, memory by ZeRO stage, GPU-hours.

N parameters, of which T are trained, on W workers. DeepSpeed keeps for each of them (bytes)

                      bfloat16, float16   float32     sharded over the workers from
    weights           2 N                 4 N         stage 3
    gradients         2 T                 4 T         stage 2
    master weights    4 T                 4 T (not in stage 0, where the weights are updated in
                                          place)      stage 1
    AdamW's moments   8 T                 8 T         stage 1

and while it updates a float32 copy of its share of the gradients, 4 T (16-bit only); ZeRO 1 and 2
fill a bucket of 5e8 gradients, ZeRO 3 holds at most 1e9 gathered parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from deft.workers.catalogs.models import ModelDimensions
from deft.workers.spec import LoraSpec, TrainingSpec

GIB = 2**30
BUCKET = 500_000_000
"""Gradients that ZeRO 1 and 2 reduce at once (DeepSpeed's default)."""
MAX_LIVE = 1_000_000_000
"""Parameters that ZeRO 3 holds gathered at most (DeepSpeed's default)."""
HEAD_BLOCK = 2**28
"""Bytes of the fused head's block of logits on a GPU."""
MFU = 0.4
"""Share of a card's peak that training is assumed to reach."""


@dataclass(frozen=True)
class Card:
    """A model of GPU."""

    name: str
    memory: float
    """GiB."""
    peak: float
    """Dense bfloat16 operations per second, from the vendor's data sheet."""


CARDS = (
    Card("H100 80GB SXM", 79.6, 989e12),
    Card("H200 141GB", 139.8, 989e12),
    Card("A100 80GB SXM", 79.3, 312e12),
    Card("L40S 48GB", 44.5, 362e12),
)


@dataclass(frozen=True)
class DataSize:
    """Size of the training data, and how it is known."""

    num_examples: int
    """Training examples."""
    num_tokens: int
    """Tokens in them, prompts included."""
    source: str
    """Where the two numbers come from."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    """Master weights and moments."""
    buffers: int
    """What the update or the communication needs besides, whichever is larger."""
    activations: int
    """Of one forward pass at its largest."""
    head: int
    """The fused head: its block of logits, float32 gradients of its weight and of its input."""

    @property
    def total(self) -> int:
        """All of it; what the allocator wastes comes on top."""
        return sum(
            (
                self.weights,
                self.gradients,
                self.optimizer,
                self.buffers,
                self.activations,
                self.head,
            )
        )


def trained_parameters(model: ModelDimensions, lora: LoraSpec | None) -> int:
    """Count the parameters that get a gradient: all, or those of the adapters."""
    if lora is None:
        return model.num_parameters
    shapes = linear_shapes(model)
    head = {"lm_head": (model.hidden_size, model.vocab_size)}
    chosen = set(lora.targets)
    in_layers = sum(
        lora.rank * (into + out)
        for name, (into, out) in shapes.items()
        if name in chosen or "all-linear" in chosen
    )
    in_head = sum(lora.rank * sum(shape) for name, shape in head.items() if name in chosen)
    return model.num_layers * in_layers + in_head


def linear_shapes(model: ModelDimensions) -> dict[str, tuple[int, int]]:
    """Count inputs and outputs of the linear layers in one decoder layer."""
    width, inner = model.hidden_size, model.intermediate_size
    query, key_value = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return {
        "q_proj": (width, query),
        "k_proj": (width, key_value),
        "v_proj": (width, key_value),
        "o_proj": (query, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }


def activation_bytes(
    model: ModelDimensions, tokens: int, *, itemsize: int, checkpointed: bool
) -> int:
    """Bytes that a forward pass over ``tokens`` tokens keeps for the backward pass, about.

    Per token and layer: the inputs of both norms and of all linear layers, the attention's inputs
    and output, gate and up projection. That is with flash attention and Liger's norms and SwiGLU;
    plain PyTorch modules keep more. With gradient checkpointing only each layer's input is kept,
    and all of one layer while it is recomputed.
    """
    width, inner = model.hidden_size, model.intermediate_size
    query, key_value = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    one_layer = 4 * width + 2 * query + 2 * key_value + 3 * inner
    layers = model.num_layers
    numbers = layers * width + one_layer if checkpointed else layers * one_layer
    return tokens * itemsize * numbers


def memory_per_device(
    model: ModelDimensions, spec: TrainingSpec, *, stage: int, checkpointed: bool, itemsize: int
) -> Memory:
    """Estimate the memory that training keeps on each device.

    Args:
        model: the model's sizes.
        spec: how to train; its own ZeRO stage and checkpointing are left aside.
        stage: ZeRO stage, 0 to 3.
        checkpointed: whether activations are recomputed.
        itemsize: bytes of a parameter: 2 or 4.
    """
    workers, trained = spec.num_workers, trained_parameters(model, spec.lora)
    share = _divide(trained, workers if stage >= 1 else 1)
    tokens = spec.micro_batch_size * spec.max_length
    master = 4 if itemsize == 2 or stage >= 1 else 0
    update = 4 * share if itemsize == 2 else 0
    exchange = {0: 0, 1: BUCKET, 2: BUCKET, 3: MAX_LIVE}[stage]
    exchange = itemsize * min(exchange, model.num_parameters if stage == 3 else trained)
    return Memory(
        weights=0
        if spec.offload_parameters and stage == 3
        else itemsize * _divide(model.num_parameters, workers if stage == 3 else 1),
        gradients=itemsize * _divide(trained, workers if stage >= 2 else 1),
        optimizer=0 if spec.offload_optimizer and stage >= 1 else (master + 8) * share,
        buffers=max(0 if spec.offload_optimizer and stage >= 1 else update, exchange),
        activations=activation_bytes(model, tokens, itemsize=itemsize, checkpointed=checkpointed),
        head=HEAD_BLOCK
        + 4 * model.vocab_size * model.hidden_size
        + (4 + 2 * itemsize) * tokens * model.hidden_size,
    )


def training_flops(model: ModelDimensions, spec: TrainingSpec, num_tokens: int) -> float:
    """Floating-point operations of training on ``num_tokens`` tokens.

    6 for each parameter that multiplies and each token; with adapters 4, since frozen weights get
    no gradient; gradient checkpointing repeats the forward pass, 2 more. A look-up in the embedding
    multiplies nothing. Attention's own products, a few percent at these lengths, are left out, and
    so is that the head sees target tokens alone.
    """
    embedding = 0 if model.tied else model.vocab_size * model.hidden_size
    each = (6 if spec.lora is None else 4) + (2 if spec.gradient_checkpointing else 0)
    return float(each) * (model.num_parameters - embedding) * num_tokens


def gpu_hours(flops: float, card: Card) -> float:
    """Return the hours of one ``card`` at the assumed share of its peak."""
    return flops / (card.peak * MFU) / 3600


def trained_tokens(spec: TrainingSpec, data: DataSize) -> int:
    """Return the tokens in all steps, prompts included."""
    steps = spec.num_steps(data.num_examples, data.num_tokens)
    return round(steps * spec.batch_size * data.num_tokens / max(data.num_examples, 1))


def _divide(number: int, parts: int) -> int:
    return -(-number // parts)
