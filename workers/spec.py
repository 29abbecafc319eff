"""What a run file says about data, model and training. Loads neither torch nor ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from deft.workers.datasets import DATASETS
from deft.workers.figfont import MAX_TRAIN_SIZE
from deft.workers.models import MODELS
from deft.workers.names import unknown_name


def _name_only(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class DatasetSpec(BaseModel):
    """Training data. In YAML a bare string stands for ``{name: …}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """A name from `deft list datasets`, or a .jsonl file of lines with `prompt` and `response`."""
    size: int | None = Field(default=None, ge=1)
    """Number of training examples, taken from the start; all of them if not given."""

    @model_validator(mode="after")
    def require_known_dataset(self) -> DatasetSpec:
        if self.is_file:
            if not Path(self.name).is_file():
                raise ValueError(f"there is no file {self.name}")
        elif self.name not in DATASETS:
            raise ValueError(
                unknown_name("dataset", self.name, DATASETS) + " Or give the path of a .jsonl file."
            )
        if self.name == "figfont" and self.size is not None and self.size > MAX_TRAIN_SIZE:
            raise ValueError(f"size: figfont has {MAX_TRAIN_SIZE} training examples")
        return self

    @property
    def is_file(self) -> bool:
        """Whether `name` is the path of a file rather than the name of a dataset."""
        return self.name.endswith(".jsonl")


class ModelSpec(BaseModel):
    """The model to fine-tune. In YAML a bare string stands for ``{name: …}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """A name from `deft list models`, a local directory, or a Hugging Face hub id (org/name)."""

    @model_validator(mode="after")
    def require_known_model(self) -> ModelSpec:
        if self.name in MODELS or Path(self.name).is_dir():
            return self
        if self.name.startswith((".", "/", "~")):
            raise ValueError(f"there is no directory {self.name}")
        if self.name.count("/") != 1:
            raise ValueError(
                unknown_name("model", self.name, MODELS)
                + " Or give a local directory or a hub id (org/name)."
            )
        return self


class TrainingSpec(BaseModel):
    """How to train: DeepSpeed SFT with AdamW and a cosine schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_workers: int = Field(default=2, ge=1)
    """Data-parallel training processes, one GPU each where there are GPUs."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training examples; incomplete batches are dropped."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps even if `epochs` would go on."""
    batch_size: int = Field(default=256, ge=1)
    """Examples per optimiser step, over all workers."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Examples per forward pass of one worker."""
    max_length: int = Field(default=1024, ge=2)
    """Longest example in tokens, prompt and response together; longer ones are left out."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly before its cosine decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    reduction: Literal["global_tokens", "micro_batch", "micro_batch_sum"] = "global_tokens"
    """How token values become one loss, see `deft.workers.reduction`."""
    floor_scope: Literal["micro_batch", "step"] = "micro_batch"
    """Tokens whose mean p lifts the focus of `Cayley_Trans`: one micro-batch's on one worker, as in
    the paper, or the whole step's, which then does not depend on how it was cut but costs a second
    forward pass."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; if not given 2 with more than one worker, else 0."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Parameters' dtype; auto is bfloat16 where the hardware multiplies it natively."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Optimiser steps between checkpoints; only one at the end if not given."""

    @model_validator(mode="after")
    def require_whole_micro_batches(self) -> TrainingSpec:
        rows = self.num_workers * self.micro_batch_size
        if self.batch_size % rows:
            raise ValueError(
                f"batch_size must be a multiple of num_workers × micro_batch_size = {rows}, "
                f"got {self.batch_size}"
            )
        return self

    @property
    def accumulation_steps(self) -> int:
        """Forward passes of one worker per optimiser step."""
        return self.batch_size // (self.num_workers * self.micro_batch_size)

    @property
    def resolved_zero_stage(self) -> int:
        """The ZeRO stage that is used."""
        if self.zero_stage is not None:
            return self.zero_stage
        return 2 if self.num_workers > 1 else 0

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps over ``num_examples`` training examples; 0 if they fill no batch."""
        steps = num_examples // self.batch_size * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)


DatasetField = Annotated[DatasetSpec, BeforeValidator(_name_only)]
ModelField = Annotated[ModelSpec, BeforeValidator(_name_only)]
