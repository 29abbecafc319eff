"""The Ray actor that evaluates models: one vLLM engine, any number of models and benchmarks."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.queue import Queue

from deft.evaluators.benchmarks import BENCHMARKS
from deft.evaluators.checkpoints import read_architecture, read_stop_token_ids
from deft.evaluators.predictions import Prediction, summarize, write_predictions
from deft.evaluators.spec import BenchmarkSpec, EngineSpec
from deft.workers.chat import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deft.evaluators.vllm_engine import VllmEngine

_ENVIRONMENT = {
    # The engine runs inside the actor: faster to start, and gone when the actor is gone.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Ray counts the actor's cores into OMP_NUM_THREADS; vLLM would bind itself to others.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}


def create_evaluator(
    spec: EngineSpec, *, num_cpus: float, num_gpus: float = 0, verbose: bool = False
) -> Any:
    """Start an `Evaluator` actor; the engine itself starts with its first `load`.

    Args:
        spec: the engine.
        num_cpus: cores the actor reserves, and the number of threads that vLLM uses on a CPU.
        num_gpus: GPUs the actor reserves.
        verbose: whether vLLM and PyTorch log more than errors.

    Returns:
        The actor's handle. It is typed Any because Ray's own type knows no methods.
    """
    environment = _ENVIRONMENT if verbose else {**_ENVIRONMENT, **_QUIET}
    as_actor = ray.remote(
        num_cpus=num_cpus, num_gpus=num_gpus, runtime_env={"env_vars": environment}
    )
    return as_actor(Evaluator).remote(spec)


class Evaluator:
    """Evaluates one model after the other on a warm engine.

    ``progress``, where given, receives one small dictionary per event:
    ``{"event": "engine_start", "model": path}`` and
    ``{"event": "engine_ready", "model": path, "how": "started" | "swapped", "seconds": s}`` from
    `load`, ``{"event": "eval_progress", "model": label, "benchmark": name, "done": i, "total": n}``
    from `evaluate`.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: VllmEngine | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._stop_token_ids: list[int] = []

    def load(self, model_path: str, progress: Queue | None = None) -> str:
        """Load the model directory ``model_path``; see `VllmEngine.load`.

        Returns:
            ``started`` if an engine had to be started, ``swapped`` if the warm one took over.

        Raises:
            FileNotFoundError: ``model_path`` is no model directory with safetensors weights.
            ValueError: it has no readable tokenizer.
            RuntimeError: vLLM could not load the model.
        """
        path = Path(model_path)
        architecture = read_architecture(path)
        tokenizer = _load_tokenizer(path)
        stop_token_ids = read_stop_token_ids(path, tokenizer.eos_token_id)
        _report(progress, event="engine_start", model=model_path)
        began = time.monotonic()
        how = self._warm_engine().load(path, architecture)
        self._tokenizer, self._stop_token_ids = tokenizer, stop_token_ids
        seconds = time.monotonic() - began
        _report(progress, event="engine_ready", model=model_path, how=how, seconds=seconds)
        return how

    def evaluate(
        self, spec: BenchmarkSpec, out_path: str, label: str, progress: Queue | None = None
    ) -> dict[str, float]:
        """Ask the loaded model every item of a benchmark and score its responses.

        Args:
            spec: the benchmark, its size and how to sample.
            out_path: where the predictions go, as Parquet (see `write_predictions`).
            label: the model's name in progress events.
            progress: queue for progress events, at most about a hundred.

        Returns:
            The metrics of `summarize`.

        Raises:
            RuntimeError: no model is loaded.
            ValueError: the model's tokenizer has no chat template.
        """
        if self._tokenizer is None or self._engine is None:
            raise RuntimeError("no model is loaded: call load first")
        tokenizer, benchmark = self._tokenizer, BENCHMARKS[spec.name]
        examples = benchmark.load(spec.size)
        prompts = [encode_prompt(tokenizer, example.prompt) for example in examples]
        generations = self._engine.generate(
            prompts,
            max_tokens=spec.max_tokens,
            temperature=spec.temperature,
            seeds=[zlib.crc32(f"{spec.seed}/{example.id}".encode()) for example in examples],
            stop_token_ids=self._stop_token_ids,
            on_progress=_every_percent(progress, label, spec.name, len(examples)),
        )
        predictions = []
        for example, prompt, generation in zip(examples, prompts, generations, strict=True):
            response = self._decode_response(generation.token_ids)
            predictions.append(
                Prediction(
                    id=example.id,
                    prompt=str(tokenizer.decode(prompt)),
                    response=response,
                    gold=example.response,
                    finish_reason=generation.finish_reason,
                    n_tokens=len(generation.token_ids),
                    scores=benchmark.score(response, example.response),
                )
            )
        write_predictions(predictions, Path(out_path))
        return summarize(predictions)

    def _warm_engine(self) -> VllmEngine:
        if self._engine is None:
            # vLLM takes seconds to import and reads the actor's environment when it does.
            from deft.evaluators.vllm_engine import VllmEngine

            self._engine = VllmEngine(self._spec)
        return self._engine

    def _decode_response(self, token_ids: list[int]) -> str:
        assert self._tokenizer is not None
        # A model may stop at a token that its tokenizer does not count among the special ones.
        if token_ids and token_ids[-1] in self._stop_token_ids:
            token_ids = token_ids[:-1]
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer in {path} cannot be read: {error}") from error
    return tokenizer


def _report(progress: Queue | None, **event: Any) -> None:
    if progress is not None:
        progress.put(event)


def _every_percent(
    progress: Queue | None, label: str, benchmark: str, total: int
) -> Callable[[int], None]:
    """A callback that reports the first count, the last, and one per percent between them."""
    reported = -1

    def report(done: int) -> None:
        nonlocal reported
        if reported < 0 or done == total or done - reported >= max(1, total // 100):
            reported = done
            _report(
                progress,
                event="eval_progress",
                model=label,
                benchmark=benchmark,
                done=done,
                total=total,
            )

    return report
