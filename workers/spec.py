"""Settings of model and training. Loads neither torch nor ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from deft.workers.catalogs.deepspeed_options import (
    require_rounded_states,
    require_usable_options,
)
from deft.workers.catalogs.models import MODELS
from deft.workers.common.names import unknown_name
from deft.workers.common.secrets import has_secret, without_secrets
from deft.workers.common.settings import Settings, is_none, name_only

DecayRate = Annotated[float, Field(ge=0, lt=1)]
"""Share of a moving average that is kept at each step."""


class ModelSpec(Settings):
    """The model to fine-tune. In YAML a bare string stands for ``{name: …}``."""

    name: str
    """A name from `deft list models`, a local directory, or a Hugging Face hub id (org/name)."""
    preset: str | None = Field(default=None, exclude_if=is_none)
    """Name from `deft list models` of the model whose settings this one takes; if not given, what
    `name` is recognized as."""
    revision: str | None = Field(default=None, min_length=1, exclude_if=is_none)
    """Branch, tag or commit on the hub; the newest state if not given. The commit that was used is
    recorded."""

    @model_validator(mode="after")
    def require_known_model(self) -> ModelSpec:
        if self.preset is not None and self.preset not in MODELS:
            raise ValueError(f"preset: {unknown_name('model', self.preset, MODELS)}")
        entry = MODELS.get(self.name)
        if self.revision and (Path(self.name).is_dir() or (entry is not None and not entry.hub)):
            raise ValueError(
                f"revision: only models of the Hugging Face hub have one; remove it for {self.name}"
            )
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

    @property
    def local_path(self) -> Path | None:
        """Return the model's directory; None for a model of the catalog or the hub."""
        path = Path(self.name)
        return path if self.name not in MODELS and path.is_dir() else None


ALL_LINEAR = "all-linear"
"""LoRA target that stands for all linear layers but the head."""


class LoraSpec(Settings):
    """Low-rank adapters (arXiv 2106.09685) in place of full fine-tuning, by peft."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update of each adapted matrix."""
    alpha: int = Field(default=32, ge=1)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an input of an adapter."""
    targets: Annotated[
        tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = Field(default=(ALL_LINEAR,), min_length=1)
    """Modules to adapt, by the last part of their names or more of it: q_proj, mlp.down_proj,
    embed_tokens. all-linear is every linear layer and the experts of a mixture, but not the head,
    which takes part if it is named as well: lm_head."""
    keep_adapter: bool = False
    """Store the adapter itself as `model/adapter` beside the model that it is merged into, as
    `PeftModel.from_pretrained` loads it."""

    @model_validator(mode="after")
    def require_head_without_dropout(self) -> LoraSpec:
        if self.dropout and "lm_head" in self.targets:
            raise ValueError(
                "dropout and an adapted lm_head do not go together: the head multiplies by the "
                "sum of its weight and the update; set dropout to 0 or leave lm_head out"
            )
        return self


class TrainingSpec(Settings):
    """How to train: DeepSpeed SFT with AdamW and a schedule of the learning rate."""

    num_workers: int = Field(default=2, ge=1)
    """Data-parallel training processes, one GPU each where there are GPUs."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with as few as these where there is no room for `num_workers`, for instance after a
    node was lost; if not given, wait until there is."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training examples; incomplete batches are dropped."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps even if `epochs` would go on."""
    tokens: int | None = Field(default=None, ge=1)
    """Train on about this many tokens, prompts included, however many passes that takes, instead of
    for `epochs`: full steps until they are reached."""
    batch_size: int = Field(default=256, ge=1)
    """Examples per optimizer step, over all workers."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Examples of `max_length` per forward pass of one worker. With packing, as many shorter ones
    as fit into their tokens; without, with a reduction by micro-batch, or in the data's order,
    exactly so many."""
    micro_batch_order: Literal["length", "data"] = "length"
    """Which examples of a step make a micro-batch: those of similar length, for speed; or those
    that follow each other in the step, as in arXiv 2602.11424. It matters to what is measured over
    a micro-batch: the floor of `Cayley_Trans`, the quantiles, and the reductions by micro-batch."""
    packing: bool = True
    """Examples of a micro-batch stand one after the other in one row, without padding and without
    seeing each other. If false, they are padded to the longest of them."""
    max_length: int = Field(default=1024, ge=2)
    """Longest example in tokens, prompt and response together; longer ones are left out."""
    optimizer: Literal["adamw", "nadamw", "muon"] = "adamw"
    """AdamW; AdamW with Nesterov momentum; or Muon (Jordan et al. 2024) for the matrices of the
    layers, with AdamW for embeddings, head and vectors at the same learning rate. Muon's is of a
    size of its own, about 0.001 to 0.02 in full training."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly at first."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Course of the learning rate after that: a cosine or a line down to 0 at the last step;
    constant; or constant and then a line down to 0 (warm-up, stable, decay)."""
    decay_ratio: float = Field(default=0.1, gt=0, le=1)
    """Share of the steps over which the schedule `wsd` decays, the last ones."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm, but for Muon's."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, a third more
    computation."""
    compile: bool = False
    """Compile the model's layers with torch.compile: pays off after the first minute or so, on a
    CPU most of all, where it fuses what is bound by memory."""
    lora: LoraSpec | None = None
    """Train low-rank adapters instead of all parameters; they are merged on export."""
    reduction: Literal["global_tokens", "micro_batch", "micro_batch_sum"] = "global_tokens"
    """How token values become one loss, see `deft.workers.training.reduction`."""
    floor_scope: Literal["micro_batch", "step"] = "micro_batch"
    """Tokens whose mean p lifts the focus of `Cayley_Trans`: one micro-batch's on one worker, as in
    the paper, or the whole step's, which then does not depend on how it was cut but costs a second
    forward pass."""
    reference: str | None = None
    """Directory of the frozen model that some objectives compare with: another one of the same
    tokenizer; the model before training if not given."""
    old_policy_every: int = Field(default=8, ge=1)
    """Optimizer steps between refreshes of the old policy, for objectives that read it (PSFT). A
    run that resumes between two of them takes the policy that it resumes with."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; if not given 1 with more than one worker, which reduces gradients once
    a step, else 0. Stages 2 and 3 reduce them after every micro-batch and keep less on each device.
    In 16 bits stage 0 is computed as stage 1."""
    offload_optimizer: bool = False
    """Keep optimizer states in the host's memory and update there (ZeRO 1 to 3)."""
    offload_parameters: bool = False
    """Keep parameters in the host's memory too, each on the device only while in use (ZeRO 3)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Parameters' dtype; auto is bfloat16 where the hardware multiplies it natively. Gradients are
    added up in `master_dtype` and reduced in float32. float16 scales the loss dynamically."""
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights that the optimizer updates and of its moments. bfloat16 keeps no copy in
    float32, as arXiv 2602.11424 trains: 6 bytes of a parameter instead of 14, but updates smaller
    than a weight's rounding are lost. It needs `dtype: bfloat16` and ZeRO 1 to 3."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further options of DeepSpeed's configuration, laid over what follows from the settings."""
    validate_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between validations on the held-out examples; the first is always before the
    first step and the last after the last one."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints; only one at the end if not given."""
    checkpoint_storage: str | None = None
    """Directory or URI (s3://…, gs://…) for checkpoints; the run's own directory if not given.
    What opens the storage is in the environment of the cluster's nodes."""
    scratch: str | None = None
    """Directory on the nodes' own disks for checkpoints on their way to storage; in the run's own
    directory if not given. What a killed run left there is deleted when it is started again."""
    keep_checkpoints: int | None = Field(default=None, ge=1)
    """Checkpoints to keep; if not given, two while training, should the last one turn out to be
    damaged, and none afterwards."""
    keep: Literal["last", "best"] = "last"
    """Which checkpoints to keep and which model to evaluate: the last, or those of lowest NLL on
    the held-out examples; the last one is kept besides, to continue from."""

    @field_validator("checkpoint_storage")
    @classmethod
    def require_no_secret(cls, value: str | None) -> str | None:
        if value is not None and has_secret(value):
            raise ValueError(
                f"{without_secrets(value)}: a secret in it would be written into the spec and to "
                "MLflow. Give it to the nodes of the cluster by their environment: "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, "
                "GOOGLE_APPLICATION_CREDENTIALS for gs://, AZURE_CLIENT_ID, AZURE_TENANT_ID and "
                "AZURE_CLIENT_SECRET for abfs://"
            )
        return value

    @model_validator(mode="after")
    def require_an_example_for_every_worker(self) -> TrainingSpec:
        rows = self.num_workers * (1 if self.splits_by_tokens else self.micro_batch_size)
        if self.splits_by_tokens and self.batch_size < rows:
            raise ValueError(f"batch_size must be at least num_workers = {rows}")
        if not self.splits_by_tokens and self.batch_size % rows:
            raise ValueError(
                f"batch_size must be a multiple of num_workers × micro_batch_size = {rows}, "
                f"got {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def require_a_cut_for_any_number_of_workers(self) -> TrainingSpec:
        if self.min_workers is None:
            return self
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers must be at most num_workers = {self.num_workers}")
        if not self.splits_by_tokens:
            raise ValueError(
                "min_workers needs packing, micro_batch_order length and the reduction "
                "global_tokens: with the others the result depends on the number of workers"
            )
        if self.resolved_zero_stage == 0:
            raise ValueError(
                "min_workers needs zero_stage 1, 2 or 3: only their checkpoints can be read by "
                "another number of workers"
            )
        return self

    @model_validator(mode="after")
    def require_a_stage_that_offloads(self) -> TrainingSpec:
        stage = self.resolved_zero_stage
        if self.offload_optimizer and stage < 1:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, got 0")
        if self.offload_parameters and stage < 3:
            raise ValueError(f"offload_parameters needs zero_stage 3, got {stage}")
        return self

    @field_validator("reference")
    @classmethod
    def require_directory_of_a_model(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not (Path(value) / "config.json").is_file():
            raise ValueError(f"{value}: it is no directory of a model; give one with a config.json")
        return str(Path(value).absolute())  # Ray's processes work elsewhere

    @model_validator(mode="after")
    def require_steps_for_warmup_and_decay(self) -> TrainingSpec:
        if self.schedule == "wsd" and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"decay_ratio: with warmup_ratio {self.warmup_ratio:g} at most "
                f"{1 - self.warmup_ratio:g} of the steps are left, got {self.decay_ratio:g}; "
                "lower one of the two"
            )
        return self

    @model_validator(mode="after")
    def require_states_that_deepspeed_rounds(self) -> TrainingSpec:
        if self.master_dtype == "bfloat16":
            require_rounded_states(
                self.dtype,
                self.resolved_zero_stage,
                offloads=self.offload_optimizer or self.offload_parameters,
                is_elastic=self.min_workers is not None,
            )
        return self

    @model_validator(mode="after")
    def require_float32_masters_for_muon(self) -> TrainingSpec:
        if self.optimizer == "muon" and self.master_dtype == "bfloat16":
            raise ValueError(
                "optimizer: DeepSpeed's muon needs master_dtype float32; or give adamw"
            )
        return self

    @model_validator(mode="after")
    def require_deepspeed_options_of_its_own(self) -> TrainingSpec:
        require_usable_options(self.deepspeed)
        return self

    @model_validator(mode="after")
    def require_checkpoints_to_choose_from(self) -> TrainingSpec:
        if self.keep == "best" and self.checkpoint_every is None:
            raise ValueError("keep: best needs checkpoint_every, or there is but one checkpoint")
        return self

    @property
    def splits_by_tokens(self) -> bool:
        """Tell whether micro-batches are filled up to a number of tokens instead of examples."""
        by_length = self.micro_batch_order == "length"
        return self.packing and by_length and self.reduction == "global_tokens"

    def is_validated(self, step: int, num_steps: int) -> bool:
        """Tell whether held-out examples are evaluated after ``step`` optimizer steps."""
        due = self.validate_every is not None and step % self.validate_every == 0
        scored = self.keep == "best" and self.is_saved(step, num_steps)
        return due or scored or step in (0, num_steps)

    def keeps_optimizer(self, step: int, num_steps: int) -> bool:
        """Tell whether the checkpoint after ``step`` optimizer steps can be trained further."""
        return step < num_steps or self.keep_checkpoints is not None

    def is_saved(self, step: int, num_steps: int) -> bool:
        """Tell whether a checkpoint is saved after ``step`` optimizer steps."""
        due = self.checkpoint_every is not None and step % self.checkpoint_every == 0
        return step == num_steps or (due and step > 0)

    @property
    def resolved_zero_stage(self) -> int:
        """Return the ZeRO stage that is used."""
        if self.zero_stage is not None:
            return self.zero_stage
        return 1 if self.num_workers > 1 else 0

    def num_steps(self, num_examples: int, num_tokens: int) -> int:
        """Count the optimizer steps over examples with so many tokens; 0 if they fill no batch."""
        steps = num_examples // self.batch_size * self.epochs
        if self.tokens is not None and steps > 0:
            steps = math.ceil(self.tokens * num_examples / (num_tokens * self.batch_size))
        return steps if self.max_steps is None else min(steps, self.max_steps)


ModelField = Annotated[ModelSpec, BeforeValidator(name_only)]
