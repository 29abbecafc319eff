"""Arithmetic of a run's cost: steps, tokens, memory by ZeRO stage, GPU-hours.

N parameters, of which T are trained, on W workers. DeepSpeed keeps for each of them (bytes)

                      bfloat16, float16   float32     sharded over the workers from
    weights           2 N                 4 N         stage 3
    gradients         2 T                 4 T         stage 2 (in 16 bits gone once they are added)
    their sums        4 T                 the same    stage 2
    master weights    4 T                 4 T (not in stage 0, where the weights are updated in
                                          place)      stage 1
    AdamW's moments   8 T                 8 T         stage 1

In 16 bits stage 0 is computed as stage 1, whose sums are reduced in place, once a step. The others
fill buckets of 2e8 gradients: ZeRO 2 two of them and a float32 copy, while the backward pass goes
on; ZeRO 3 one in float32, and it holds at most 1e9 gathered parameters and, while it updates, a
copy of as many gradients of its share.

With `training.master_dtype: bfloat16` all of these take 2 bytes a number: gradients and their sums,
moments, the master weights in stages 1 and 2; in stage 3 they are the weights themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from deft.objectives.catalog import CATALOG
from deft.workers.catalogs.models import ModelDimensions
from deft.workers.spec import LoraSpec, TrainingSpec

GIB = 2**30
BUCKET = 200_000_000
"""Gradients that ZeRO reduces at once, as `deft.workers.training.engine` sets it."""
MAX_LIVE = 1_000_000_000
"""Parameters that ZeRO 3 holds gathered or updates at most (DeepSpeed's default)."""
HEAD_BLOCK = 2**28
"""Bytes of a block of errors of the head in tiles, or of logits of the head in blocks, on a GPU."""
TILES_COLUMNS, BLOCKS_COLUMNS = 4096, 1024
"""Entries of the vocabulary in such a block at the least, however many tokens there are."""
FITS = "fits"
"""What a plan says of a card that is large enough."""
USABLE = 0.9
"""Share of a card's memory that a plan may fill; the rest is for the allocator's fragments, CUDA's
own context, and the work space of kernels and collectives."""
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
class HeadKind:
    """What the head of an objective keeps on a GPU."""

    in_blocks: bool = False
    """Whether it holds blocks of logits, or else works in tiles."""
    has_reference: bool = False
    """Whether a frozen model is at hand besides."""


TILES, BLOCKS, ANCHORED_BLOCKS = HeadKind(), HeadKind(True), HeadKind(True, True)
HEADS = {
    "LabelSmoothing": BLOCKS,
    "GEM": BLOCKS,
    "ASFT": ANCHORED_BLOCKS,
    "ASFT_reverse": ANCHORED_BLOCKS,
    "SFT_KL": ANCHORED_BLOCKS,
    "SFT_KL_reverse": ANCHORED_BLOCKS,
}
"""Heads of the objectives that kernels in tiles cannot compute, by name."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    reference: int
    """The frozen model of an objective that is anchored to one."""
    gradients: int
    """Those of one micro-batch and their sums."""
    optimizer: int
    """Master weights and moments."""
    buffers: int
    """What the update or the communication needs besides, whichever is larger."""
    activations: int
    """Of one forward pass at its largest."""
    head: int
    """The head: its blocks of logits, the gradients of its weight and of its input."""

    @property
    def total(self) -> int:
        """All of it; what the allocator wastes comes on top."""
        return sum(
            (
                self.weights,
                self.reference,
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


def head_bytes(
    model: ModelDimensions, tokens: int, head: HeadKind, *, itemsize: int, is_bfloat16: bool
) -> int:
    """Bytes of the head over ``tokens`` target tokens, forward and backward."""
    vocabulary, width = model.vocab_size, model.hidden_size
    # The weight's gradient is written once, and so in bfloat16 if the weight is. That of the hidden
    # states is added up in float32; beside it are its final dtype and what multiplies the errors.
    gradients = (2 if is_bfloat16 else 4) * vocabulary * width
    gradients += (4 + 2 * itemsize) * tokens * width
    if not head.in_blocks:
        errors = tokens * itemsize
        return errors * _block_columns(vocabulary, errors, TILES_COLUMNS) + gradients
    # The first pass holds logits in float32, those of a frozen model, and what is made of them.
    first_pass = 4 * tokens * (2 + head.has_reference)
    columns = _block_columns(vocabulary, first_pass, BLOCKS_COLUMNS)
    # The second holds errors and the other distribution, then errors as the products read them and
    # a product in float32, before it is stored.
    errors = columns * 4 * tokens * 2
    products = columns * tokens * itemsize + 4 * width * max(tokens, columns)
    return max(columns * first_pass, gradients + max(errors, products))


def _block_columns(vocabulary: int, column: int, least: int) -> int:
    """Return the entries of a block of the vocabulary, one of which takes ``column`` bytes."""
    return min(vocabulary, max(HEAD_BLOCK // column, least))


def memory_per_device(
    model: ModelDimensions,
    spec: TrainingSpec,
    *,
    stage: int,
    checkpointed: bool,
    itemsize: int,
    head: HeadKind = TILES,
) -> Memory:
    """Estimate the memory that training keeps on each device.

    Args:
        model: the model's sizes.
        spec: how to train; its own ZeRO stage and checkpointing are left aside.
        stage: ZeRO stage, 0 to 3.
        checkpointed: whether activations are recomputed.
        itemsize: bytes of a parameter: 2 or 4.
        head: the objective's.
    """
    is_rounded = itemsize == 2
    stage = max(stage, 1) if is_rounded else stage
    workers, trained = spec.num_workers, trained_parameters(model, spec.lora)
    share = _divide(trained, workers if stage >= 1 else 1)
    tokens = spec.micro_batch_size * spec.max_length
    state = 2 if spec.master_dtype == "bfloat16" else 4
    master = 0 if stage == 0 or (state == 2 and stage == 3) else state
    offloads = spec.offload_optimizer and stage >= 1
    gathered = itemsize * min(MAX_LIVE, model.num_parameters)
    updated = 0 if offloads else state * min(MAX_LIVE, share)
    has_copy = spec.lora is None and head.has_reference
    return Memory(
        weights=0
        if spec.offload_parameters and stage == 3
        else itemsize * _divide(model.num_parameters, workers if stage == 3 else 1),
        reference=itemsize * model.num_parameters if has_copy else 0,
        gradients=state * share if stage >= 2 else (2 * is_rounded + state) * trained,
        optimizer=0 if offloads else (master + 2 * state) * share,
        buffers={
            0: 0,
            1: 0 if is_rounded else 4 * BUCKET,
            2: 8 * BUCKET,
            3: 4 * BUCKET + max(gathered, updated),
        }[stage],
        activations=activation_bytes(model, tokens, itemsize=itemsize, checkpointed=checkpointed),
        head=head_bytes(
            model,
            tokens,
            head,
            itemsize=itemsize,
            is_bfloat16=is_rounded and spec.dtype != "float16",
        ),
    )


def itemsize(training: TrainingSpec) -> int:
    """Return the bytes of a weight on a GPU."""
    return 4 if training.dtype == "float32" else 2


def worker_memory(
    model: ModelDimensions,
    training: TrainingSpec,
    objective: str,
    *,
    stage: int | None = None,
    checkpointed: bool | None = None,
) -> Memory:
    """Estimate what training with an objective takes on each device.

    Args:
        model: its sizes.
        training: how to train.
        objective: its name; of one that is given by an import path the larger head is counted.
        stage: of ZeRO; that of ``training`` if not given.
        checkpointed: whether activations are recomputed; as in ``training`` if not given.
    """
    return memory_per_device(
        model,
        training,
        stage=training.resolved_zero_stage if stage is None else stage,
        checkpointed=training.gradient_checkpointing if checkpointed is None else checkpointed,
        itemsize=itemsize(training),
        head=HEADS.get(objective, TILES if objective in CATALOG else BLOCKS),
    )


def fit(needed: float, card: Card) -> str:
    """Say whether ``needed`` bytes fit on ``card``."""
    share = needed / (card.memory * GIB)
    if share <= USABLE:
        return FITS
    return f"too tight, {share:.0%}" if share <= 1 else "does not fit"


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
