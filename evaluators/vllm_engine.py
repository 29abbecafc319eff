"""A vLLM engine that stays warm: token ids in, token ids out, weights exchangeable in place.

The engine holds no tokenizer. Text is made and read by the caller with the tokenizer of the model
that is loaded, so that a swap of weights can never leave another model's vocabulary behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext

from deft.evaluators.checkpoints import Architecture
from deft.evaluators.spec import EngineSpec


@dataclass(frozen=True)
class Generation:
    """Tokens generated for one prompt, the stop token included."""

    token_ids: list[int]
    finish_reason: str
    """``stop``, ``length`` or ``prompt_too_long``."""


class VllmEngine:
    """At most one vLLM engine, inside this process."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: LLMEngine | None = None
        self._architecture: Architecture | None = None

    def load(self, model_path: Path, architecture: Architecture) -> Literal["started", "swapped"]:
        """Serve the model at ``model_path``, whose architecture the caller has read.

        A running engine takes over the weights of a model of the same architecture in place;
        otherwise an engine is started, and one of another architecture closed before.

        Raises:
            RuntimeError: vLLM does not serve the model, or its memory does not suffice.
        """
        fits = self._engine is not None and architecture == self._architecture
        # Whatever fails from here on leaves no engine that another model would be swapped into.
        self._architecture = None
        try:
            if fits:
                self._swap(model_path)
            else:
                self._start(model_path)
        except Exception as error:
            reason = " ".join(str(error).split()) or repr(error)
            raise RuntimeError(
                f"vLLM could not load the model at {model_path}: {reason}"
            ) from error
        self._architecture = architecture
        return "swapped" if fits else "started"

    def generate(
        self,
        prompts: Sequence[list[int]],
        *,
        max_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        stop_token_ids: list[int],
        on_progress: Callable[[int], None],
    ) -> list[Generation]:
        """Answer every prompt, in the given order.

        Args:
            prompts: token ids of each prompt.
            max_tokens: generated tokens at most; the engine's context may end a response earlier.
            temperature: 0 for greedy decoding.
            seeds: seed of each prompt's sampling, which makes a response independent of the others.
            stop_token_ids: token ids that end a response.
            on_progress: told how many prompts are done, whenever that changes.
        """
        if self._engine is None:
            raise RuntimeError("no model is loaded")
        engine = self._engine
        max_model_len = engine.vllm_config.model_config.max_model_len
        generations: dict[int, Generation] = {}
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if len(prompt) >= max_model_len:
                generations[index] = Generation([], "prompt_too_long")
                continue
            engine.add_request(
                str(index),
                {"prompt_token_ids": prompt},
                SamplingParams(
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed,
                    stop_token_ids=stop_token_ids,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                ),
            )
        on_progress(len(generations))
        while engine.has_unfinished_requests():
            finished = [output for output in engine.step() if output.finished]
            for request in finished:
                assert isinstance(request, RequestOutput)
                completion = request.outputs[0]
                generations[int(request.request_id)] = Generation(
                    list(completion.token_ids), str(completion.finish_reason)
                )
            if finished:
                on_progress(len(generations))
        return [generations[index] for index in range(len(prompts))]

    def _start(self, model_path: Path) -> None:
        self._engine = None
        cleanup_dist_env_and_memory()
        on_cpu = current_platform.is_cpu()
        dtype = self._spec.dtype
        if dtype == "auto":
            dtype = "float32" if on_cpu else "bfloat16"
        max_model_len = self._spec.max_model_len
        args = EngineArgs(
            model=str(model_path),
            skip_tokenizer_init=True,
            # Sampling is what the benchmark says, never what a model directory suggests.
            generation_config="vllm",
            dtype=dtype,
            max_model_len=-1 if max_model_len is None else max_model_len,  # -1: what fits
            gpu_memory_utilization=self._spec.gpu_memory_utilization,
            kv_cache_memory_bytes=int(self._spec.kv_cache_gib * 2**30) if on_cpu else None,
            # Compiling pays off only where a GPU would wait for Python.
            enforce_eager=on_cpu,
            use_tqdm_on_load=False,
            disable_log_stats=True,
        )
        self._engine = LLMEngine.from_engine_args(args, usage_context=UsageContext.LLM_CLASS)

    def _swap(self, model_path: Path) -> None:
        assert self._engine is not None
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(model_path)})
        self._engine.apply_model(_repack_head)
        # Cached keys and values belong to the former weights.
        self._engine.reset_prefix_cache()


def _repack_head(model: nn.Module) -> None:
    """Make the head's packed copy, which CPU kernels multiply with, from its current weight.

    vLLM 0.32 packs while it loads, and reloading skips a head that is tied to the embedding: it
    would go on with the former model's copy. Where nothing is packed this changes nothing.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and isinstance(
            module.quant_method, UnquantizedEmbeddingMethod
        ):
            module.quant_method.process_weights_after_loading(module)
