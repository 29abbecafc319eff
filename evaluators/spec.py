"""What a run file says about evaluation. Loads neither torch nor ray nor vllm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deft.evaluators.benchmarks import BENCHMARKS
from deft.workers.names import unknown_name


class BenchmarkSpec(BaseModel):
    """One benchmark. In YAML a bare string stands for ``{name: …}``.

    What is not given is filled in from the benchmark, so a resolved spec is complete; build one
    with ``BenchmarkSpec.model_validate("figfont")``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """A name from `deft list benchmarks`."""
    size: int = Field(ge=1)
    """Number of items, taken from the start; all of them if not given."""
    max_tokens: int = Field(ge=1)
    """Length limit of a response in tokens; the benchmark's own if not given."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 is greedy decoding."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling, from which each item gets its own; without effect at temperature 0."""

    @model_validator(mode="before")
    @classmethod
    def fill_in_from_benchmark(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            return value
        if "name" not in value:
            raise ValueError("a benchmark needs a name, see `deft list benchmarks`")
        name = str(value["name"])
        if name not in BENCHMARKS:
            raise ValueError(unknown_name("benchmark", name, BENCHMARKS))
        given = {key: item for key, item in value.items() if item is not None}
        benchmark = BENCHMARKS[name]
        return {"size": benchmark.size, "max_tokens": benchmark.max_tokens, **given}

    @model_validator(mode="after")
    def require_enough_items(self) -> BenchmarkSpec:
        available = BENCHMARKS[self.name].size
        if self.size > available:
            raise ValueError(f"size: {self.name} has {available} items, got {self.size}")
        return self


class EngineSpec(BaseModel):
    """How vLLM serves the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and cache; auto is bfloat16 on GPUs and float32 on CPUs."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt plus response in tokens; if not given the model's context, or as much of it
    as the cache holds."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory for weights and cache; without effect on CPUs."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Size of the key-value cache in GiB on CPUs; without effect on GPUs."""


class EvaluationSpec(BaseModel):
    """What a model is evaluated on, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmarks: tuple[BenchmarkSpec, ...] = ()
    """Benchmarks to run, each at most once; none means no evaluation."""
    engine: EngineSpec = EngineSpec()
    """The engine that generates the responses."""

    @model_validator(mode="after")
    def require_each_benchmark_once(self) -> EvaluationSpec:
        counts = Counter(benchmark.name for benchmark in self.benchmarks)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"benchmarks: {', '.join(repeated)} named more than once")
        return self
