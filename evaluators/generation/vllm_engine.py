"""A vLLM engine that stays warm: weights are swapped in place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

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

from deft.evaluators.generation.engine import (
    Continuation,
    Decoding,
    Generation,
    Likelihood,
    Request,
    Start,
    split_by_length,
)
from deft.evaluators.generation.model_dir import Architecture
from deft.evaluators.spec import EngineSpec
from deft.workers.common.loopback import bind_stores_to_loopback

QUEUED_REQUESTS = 256
"""Requests inside the engine beyond those being generated; the others are added later."""


class _Query(NamedTuple):
    """One request to vLLM."""

    number: int
    token_ids: Sequence[int]
    params: SamplingParams


class VllmEngine:
    """An `Engine` on vLLM."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: LLMEngine | None = None
        self._architecture: Architecture | None = None

    def load(self, model_path: Path, architecture: Architecture) -> Start:
        """Load a model, see `Engine`; an engine of another architecture is closed before."""
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
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[int, Generation]]:
        """Generate responses, see `Engine`."""
        # Whole outputs at the end are cheaper, unless every token must be looked at.
        streams = decoding.reached_stop is not None
        fitting, too_long = split_by_length(requests, self.context_length)
        yield from ((index, Generation([], "prompt_too_long")) for index in too_long)
        queries = (
            _Query(index, requests[index].prompt, _sampling(requests[index], decoding, streams))
            for index in fitting
        )
        running: set[int] = set()
        tokens: dict[int, list[int]] = defaultdict(list)
        with closing(self._outputs(queries, running)) as outputs:
            for index, output in outputs:
                completion = output.outputs[0]
                tokens[index] += completion.token_ids
                if output.finished:
                    yield index, Generation(tokens.pop(index), str(completion.finish_reason))
                elif decoding.reached_stop is not None and decoding.reached_stop(tokens[index]):
                    self._loaded().abort_request([output.request_id])
                    running.discard(index)
                    yield index, Generation(tokens.pop(index), "stop")

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """Score texts, see `Engine`: the prompt's own log-probabilities, one token generated."""
        params = SamplingParams(
            max_tokens=1,
            temperature=0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        queries = (_Query(i, text.token_ids, params) for i, text in enumerate(continuations))
        with closing(self._outputs(queries, set())) as outputs:
            for index, output in outputs:
                yield index, _likelihood(output, continuations[index].start)

    def _outputs(
        self, queries: Iterator[_Query], running: set[int]
    ) -> Generator[tuple[int, RequestOutput], None, None]:
        """Yield the engine's outputs as they come; some queries more than it runs are queued.

        ``running`` holds the indices of queries that are not finished; a caller that aborts one
        takes it out.
        """
        engine = self._loaded()
        window = engine.vllm_config.scheduler_config.max_num_seqs + QUEUED_REQUESTS
        try:
            while True:
                for query in islice(queries, window - len(running)):
                    running.add(query.number)
                    prompt = {"prompt_token_ids": query.token_ids}
                    engine.add_request(str(query.number), prompt, query.params)
                if not running:
                    return
                for output in engine.step():
                    assert isinstance(output, RequestOutput)
                    index = int(output.request_id)
                    if output.finished:
                        running.discard(index)
                    yield index, output
        finally:
            # A caller that stops listening must not leave its requests to the next one.
            engine.abort_request([str(index) for index in running])

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its response."""
        return int(self._loaded().vllm_config.model_config.max_model_len)

    def _loaded(self) -> LLMEngine:
        if self._engine is None:
            raise RuntimeError("no model is loaded")
        return self._engine

    def _start(self, model_path: Path) -> None:
        self._engine = None
        cleanup_dist_env_and_memory()
        bind_stores_to_loopback()
        on_cpu = current_platform.is_cpu()
        dtype = self._spec.dtype
        if dtype == "auto":
            dtype = "float32" if on_cpu else "bfloat16"
        max_model_len = self._spec.max_model_len
        # On CPUs kernels round differently for every shape of a batch, so the shape is held fixed.
        alone = self._spec.batch_invariant and on_cpu
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
            tensor_parallel_size=self._spec.tensor_parallel,
            # Its workers are children of this process then, on the devices that it has reserved.
            distributed_executor_backend="mp" if self._spec.tensor_parallel > 1 else None,
            max_num_seqs=1 if alone else None,
            enable_prefix_caching=False if alone else None,
            # Where a prompt is cut, vLLM 0.32 rewinds the request's generator, which no CPU's can.
            enable_chunked_prefill=False if on_cpu else None,
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


def _sampling(request: Request, decoding: Decoding, streams: bool) -> SamplingParams:
    return SamplingParams(
        max_tokens=decoding.max_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=request.seed if decoding.temperature > 0 else None,
        stop_token_ids=decoding.stop_token_ids,
        allowed_token_ids=list(request.allowed_token_ids) or None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY,
    )


def _likelihood(output: RequestOutput, start: int) -> Likelihood:
    assert output.prompt_logprobs is not None
    assert output.prompt_token_ids is not None
    tokens = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[start:]
    scored = [by_token[token_id] for token_id, by_token in tokens if by_token is not None]
    logp = math.fsum(each.logprob for each in scored)
    return Likelihood(logp, all(each.rank == 1 for each in scored))


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
