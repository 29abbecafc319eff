"""The settings of an evaluation. Loads neither torch nor ray nor vllm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from deft.evaluators.benchmarks.base import Benchmark
from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.harness.tasks import absolute_name
from deft.workers.catalogs.prompt_styles import PROMPT_STYLES
from deft.workers.common.checksums import hash_files
from deft.workers.common.names import unknown_name
from deft.workers.common.settings import Settings, is_none

Protocol = Literal["default", "paper"]

GENERAL_BENCHMARK = "general"
"""Name of the benchmark that is run beside the named ones, see `EvaluationSpec.general`."""
HELDOUT = "heldout"
"""Name of the held-out losses among the results of benchmarks."""
CHAT_STYLE = "chat"
"""Prompt style that is the model's own chat template."""
PAPER_STYLE = "paper"
"""Prompt style that is replaced by the paper's style of the model's family."""


def heldout_table(label: str) -> str:
    """Return the path of the table of held-out losses of the model ``label``, within its run."""
    return f"predictions/{label}-{HELDOUT}.parquet"


def token_table(label: str) -> str:
    """Return the path of the table of single held-out tokens of the model ``label``, likewise."""
    return f"predictions/{label}-{HELDOUT}-tokens.parquet"


class BenchmarkSpec(Settings):
    """One benchmark. In YAML a bare string stands for ``{name: …}``.

    What is not given is filled in from the benchmark, so a resolved spec is complete; build one
    with ``BenchmarkSpec.model_validate("figfont")``.
    """

    name: str
    """A name from `deft list benchmarks`, ``package.module:object`` for one of your own, or
    ``lm_eval:TASK`` for one of lm-evaluation-harness (a task, a group, or a task's YAML file)."""
    size: int | None = Field(default=None, ge=1)
    """Number of items, taken from the start (with several sources from each in turn); all if not
    given."""
    file: str | None = None
    """Local .jsonl, .json or .parquet file with the benchmark's fields, instead of its own data."""
    samples: int = Field(ge=1)
    """Responses per item."""
    max_tokens: int = Field(ge=1)
    """Length limit of a response in tokens."""
    temperature: float = Field(ge=0)
    """Sampling temperature; 0 is greedy decoding. Several samples are drawn at 1 unless given."""
    top_p: float = Field(gt=0, le=1)
    """Only the most likely tokens that hold this probability together are drawn."""
    stop: tuple[str, ...]
    """Strings that end a response, beside the tokens with which the model ends a turn."""
    prompt_style: str | None = None
    """A name from `deft list prompts`, or ``paper`` for the paper's style of the model's family; if
    not given the one the model was trained with where it suits the task, else ``chat``."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling, from which each response gets its own; no effect at temperature 0."""
    num_fewshot: int | None = Field(default=None, ge=0, exclude_if=is_none)
    """Solved examples in each prompt of an ``lm_eval:TASK``; the task's own number if not given."""

    @model_validator(mode="before")
    @classmethod
    def fill_in_from_benchmark(cls, value: Any) -> Any:
        return fill_defaults(value, "default")

    @model_validator(mode="after")
    def require_enough_items(self) -> BenchmarkSpec:
        available = get_benchmark(self.name).size
        if self.file is None and None not in (self.size, available) and self.size > available:  # type: ignore[operator]
            raise ValueError(f"size: {self.name} has {available} items, got {self.size}")
        return self

    @model_validator(mode="after")
    def require_known_style(self) -> BenchmarkSpec:
        style = self.prompt_style
        if style is not None and style != PAPER_STYLE and style not in PROMPT_STYLES:
            message = unknown_name("prompt style", style, [*PROMPT_STYLES, PAPER_STYLE])
            raise ValueError(f"prompt_style: {message}")
        if style == PAPER_STYLE and get_benchmark(self.name).paper is None:
            raise ValueError(f"prompt_style: the paper has no prompt for {self.name}")
        return self

    @model_validator(mode="after")
    def require_settings_that_the_benchmark_takes(self) -> BenchmarkSpec:
        if get_benchmark(self.name).harness is None:
            if self.num_fewshot is not None:
                raise ValueError(f"num_fewshot: only lm_eval:TASK takes it, not {self.name}")
            return self
        fixed = {"file": None, "samples": 1, "temperature": 0.0, "top_p": 1.0, "stop": ()}
        for key, value in fixed.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key}: {self.name} sets it itself; leave it out")
        if self.prompt_style not in (None, CHAT_STYLE):
            raise ValueError(
                f"prompt_style: {self.name} is asked in plain text, or in the model's chat "
                f"template by {CHAT_STYLE}; got {self.prompt_style}"
            )
        return self

    @model_validator(mode="after")
    def require_samples_that_can_differ(self) -> BenchmarkSpec:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"temperature: at 0 all {self.samples} samples would be the same")
        return self

    @model_validator(mode="after")
    def require_existing_file(self) -> BenchmarkSpec:
        if self.file is not None and not Path(self.file).is_file():
            raise ValueError(f"file: there is no file {self.file}")
        return self


def fill_defaults(value: Any, protocol: Protocol) -> Any:
    """Fill in the benchmark's defaults for what ``value`` leaves open; returns a mapping."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        return value
    if "name" not in value:
        raise ValueError("a benchmark needs a name, see `deft list benchmarks`")
    settings = {key: item for key, item in value.items() if item is not None}
    settings["name"] = absolute_name(str(value["name"]))
    benchmark = get_benchmark(settings["name"])
    return {**_defaults(benchmark, protocol, settings), **settings}


def _defaults(
    benchmark: Benchmark, protocol: Protocol, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the sampling of ``benchmark`` under ``protocol``, beside the given ``settings``."""
    if protocol == "paper" and benchmark.paper is not None:
        return {**asdict(benchmark.paper.sampling), "prompt_style": PAPER_STYLE}
    defaults = asdict(benchmark.sampling)
    if settings.get("samples", 1) != 1:
        defaults["temperature"] = defaults["temperature"] or 1.0
    return defaults


class HeldoutSpec(Settings):
    """Loss on text that was not trained on: NLL, bits per byte, calibration."""

    file: str | None = None
    """A .jsonl file of lines with `prompt` and `response`; the run's validation split if not
    given."""
    size: int | None = Field(default=None, ge=1)
    """Number of examples, taken from the start; all of them if not given."""

    @model_validator(mode="after")
    def require_existing_file(self) -> HeldoutSpec:
        if self.file is not None and not Path(self.file).is_file():
            raise ValueError(f"file: there is no file {self.file}")
        return self


class EngineSpec(Settings):
    """The engines that generate responses, as many as the cluster has devices for."""

    type: Literal["vllm", "transformers"] = "vllm"
    """transformers is slower by far, and for models that vLLM does not serve."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and cache; auto is bfloat16 on GPUs and float32 on CPUs."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt plus response in tokens; if not given the model's context, or as much of it
    as the cache holds."""
    batch_invariant: bool = False
    """Whether a response must not even depend on rounding in the batch it was generated in: vLLM's
    batch-invariant kernels on GPUs that have them, one response after the other on CPUs."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of one node that hold one model together."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory for weights and cache; without effect on CPUs."""
    cpus: int | None = Field(default=None, ge=1)
    """Cores of one engine where there are no GPUs; a whole node's if not given."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Size of the key-value cache in GiB on CPUs; without effect on GPUs."""


class EvaluationSpec(Settings):
    """Benchmarks and held-out text of an evaluation, and the engine that runs it."""

    benchmarks: tuple[BenchmarkSpec, ...] = ()
    """Benchmarks to run, each at most once; none means that nothing is generated."""
    general: bool = True
    """Whether `general` is asked beside the named benchmarks, to see what was forgotten."""
    heldout: HeldoutSpec | None = HeldoutSpec()
    """Loss on held-out examples, where there are any; null leaves it out."""
    protocol: Protocol = "default"
    """``paper`` takes samples, temperature, lengths, stop strings and prompt styles from
    arXiv 2602.11424 where a benchmark is silent and the paper has them."""
    data_dir: str | None = None
    """Folder with <benchmark>.jsonl, .json or .parquet files; the hub is not asked then."""
    engine: EngineSpec = EngineSpec()
    """The engine that generates the responses."""

    @model_validator(mode="before")
    @classmethod
    def complete_benchmarks(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        protocol, benchmarks = data.get("protocol", "default"), data.get("benchmarks")
        if not isinstance(benchmarks, (list, tuple)) or protocol not in ("default", "paper"):
            return data
        return {**data, "benchmarks": [_completed(value, protocol) for value in benchmarks]}

    @model_validator(mode="after")
    def require_each_benchmark_once(self) -> EvaluationSpec:
        counts = Counter(get_benchmark(benchmark.name).name for benchmark in self.benchmarks)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"benchmarks: {', '.join(repeated)} named more than once")
        return self

    @model_validator(mode="after")
    def require_existing_data_dir(self) -> EvaluationSpec:
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise ValueError(f"data_dir: there is no folder {self.data_dir}")
        return self

    @property
    def suite(self) -> tuple[BenchmarkSpec, ...]:
        """Named benchmarks, and `general` beside them unless it is left out."""
        if not self.benchmarks or not self.general:
            return self.benchmarks
        if any(benchmark.name == GENERAL_BENCHMARK for benchmark in self.benchmarks):
            return self.benchmarks
        return (*self.benchmarks, BenchmarkSpec.model_validate(GENERAL_BENCHMARK))

    def data_digest(self) -> str:
        """Hash the contents of all local files that the spec names."""
        names = [benchmark.file for benchmark in self.benchmarks]
        files = [Path(name) for name in names if name is not None]
        harnesses = [get_benchmark(benchmark.name).harness for benchmark in self.benchmarks]
        files += [Path(each.file) for each in harnesses if each is not None and each.digest]
        if self.heldout is not None and self.heldout.file is not None:
            files.append(Path(self.heldout.file))
        if self.data_dir is not None:
            stems = {get_benchmark(benchmark.name).name for benchmark in self.benchmarks}
            in_folder = sorted(Path(self.data_dir).iterdir())
            files += [path for path in in_folder if path.stem in stems and path.is_file()]
        return hash_files((file.name, file) for file in files)


def _completed(value: Any, protocol: Protocol) -> Any:
    """Fill in defaults; what cannot be filled is left to the validation of the benchmark."""
    if isinstance(value, BaseModel):
        return value
    try:
        return fill_defaults(value, protocol)
    except ValueError:
        return value
