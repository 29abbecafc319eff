"""The evaluator actor with a real vLLM engine, against greedy decoding by transformers.

All tests share one actor, whose engine is swapped and restarted as they go.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.util.queue import Queue
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from deft.evaluators.actor import create_evaluator
from deft.evaluators.benchmarks import BENCHMARKS
from deft.evaluators.spec import BenchmarkSpec, EngineSpec
from deft.workers.chat import encode_prompt
from deft.workers.models import train_tokenizer

SIZE, MAX_TOKENS = 6, 8
FIGFONT = BenchmarkSpec.model_validate({"name": "figfont", "size": SIZE, "max_tokens": MAX_TOKENS})
EXAMPLES = BENCHMARKS["figfont"].load(SIZE)


def save_model(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int, tied: bool = True
) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        # Far larger than usual, so that no two logits are close enough for rounding to decide.
        initializer_range=0.2,
    )
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    # Like many chat models: the tokenizer's EOS ends a turn, and so does one more token.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 0]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(EXAMPLES)


@pytest.fixture(scope="module")
def model_paths(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    save_model(root / "first", tokenizer, seed=0)
    save_model(root / "second", tokenizer, seed=1)
    save_model(root / "first untied", tokenizer, seed=2, tied=False)
    save_model(root / "second untied", tokenizer, seed=4, tied=False)
    silent = save_model(root / "silent", tokenizer, seed=3)
    # All logits are zero then, and the arg max is token 0, which the generation config stops at.
    torch.nn.init.zeros_(silent.model.norm.weight)
    silent.save_pretrained(root / "silent")
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [encode_prompt(tokenizer, example.prompt) for example in EXAMPLES]


@pytest.fixture(scope="module")
def evaluator(ray_cluster: None, prompts: list[list[int]]) -> Any:
    # The context ends where the longest prompt does, so that one item cannot be asked.
    spec = EngineSpec(max_model_len=max(map(len, prompts)), kv_cache_gib=0.25)
    actor = create_evaluator(spec, num_cpus=2)
    yield actor
    ray.kill(actor)


def greedy_responses(model_path: str, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """What transformers generates, one prompt at a time; nothing for the longest prompt."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    longest = max(map(len, prompts))
    responses = []
    for prompt in prompts:
        room = min(MAX_TOKENS, longest - len(prompt))
        if room == 0:
            responses.append("")
            continue
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False
        )
        responses.append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
    return responses


def evaluate(evaluator: Any, path: Path, **options: Any) -> tuple[dict[str, float], dict[str, Any]]:
    spec = FIGFONT.model_copy(update=options)
    metrics = ray.get(evaluator.evaluate.remote(spec, str(path), "tiny"))
    return metrics, pq.read_table(path).to_pydict()


def test_warm_engine_answers_like_transformers(
    evaluator: Any,
    model_paths: dict[str, str],
    tokenizer: Any,
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    table = tmp_path / "figfont.parquet"
    answers = {}
    for model, how in [
        ("first", "started"),
        ("second", "swapped"),
        ("first", "swapped"),
        ("first untied", "started"),
        ("second untied", "swapped"),
        ("second", "started"),
    ]:
        assert ray.get(evaluator.load.remote(model_paths[model])) == how
        metrics, rows = evaluate(evaluator, table)
        expected = greedy_responses(model_paths[model], tokenizer, prompts)
        assert rows["response"] == expected, (model, how)
        answers[model] = expected
    assert len(set(map(tuple, answers.values()))) == 4

    assert metrics["num_items"] == SIZE
    assert metrics["prompt_too_long_rate"] == 1 / SIZE
    assert metrics["truncated_rate"] == rows["finish_reason"].count("length") / SIZE > 0
    assert rows["id"] == [example.id for example in EXAMPLES]
    assert rows["gold"] == [example.response for example in EXAMPLES]
    assert rows["prompt"] == [tokenizer.decode(prompt) for prompt in prompts]
    assert metrics["jaro_winkler"] == pytest.approx(sum(rows["jaro_winkler"]) / SIZE)


def test_response_ends_at_eos(evaluator: Any, model_paths: dict[str, str], tmp_path: Path) -> None:
    ray.get(evaluator.load.remote(model_paths["silent"]))
    metrics, rows = evaluate(evaluator, tmp_path / "figfont.parquet")
    asked = SIZE - rows["finish_reason"].count("prompt_too_long")
    assert rows["response"] == [""] * SIZE
    assert rows["finish_reason"].count("stop") == rows["n_tokens"].count(1) == asked == SIZE - 1
    assert metrics["empty_rate"] == asked / SIZE
    assert metrics["truncated_rate"] == metrics["jaro_winkler"] == 0


def test_sampling_depends_on_the_seed_and_the_item_alone(
    evaluator: Any, model_paths: dict[str, str], tmp_path: Path
) -> None:
    ray.get(evaluator.load.remote(model_paths["first"]))

    def sample(**options: Any) -> list[str]:
        _, rows = evaluate(evaluator, tmp_path / "figfont.parquet", temperature=1.0, **options)
        responses: list[str] = rows["response"]
        return responses

    everything = sample(seed=1)
    assert sample(seed=1, size=3) == everything[:3]
    assert sample(seed=2) != everything


def test_progress_is_announced(evaluator: Any, model_paths: dict[str, str], tmp_path: Path) -> None:
    progress = Queue()
    ray.get(evaluator.load.remote(model_paths["first"], progress))
    ray.get(evaluator.evaluate.remote(FIGFONT, str(tmp_path / "p.parquet"), "tiny", progress))
    start, ready, *counts = progress.get_nowait_batch(progress.qsize())
    progress.shutdown()

    assert start == {"event": "engine_start", "model": model_paths["first"]}
    assert ready.pop("seconds") > 0
    assert ready == {"event": "engine_ready", "model": model_paths["first"], "how": "swapped"}
    done = [count.pop("done") for count in counts]
    common = {"event": "eval_progress", "model": "tiny", "benchmark": "figfont", "total": SIZE}
    assert all(count == common for count in counts)
    assert done == sorted(set(done))
    # The item that is too long for the context is done before anything is generated.
    assert (done[0], done[-1]) == (1, SIZE)


def test_bad_models_are_standard_errors_and_leave_the_actor_usable(
    evaluator: Any, model_paths: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no model directory"):
        ray.get(evaluator.load.remote(str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match="it has no config"):
        ray.get(evaluator.load.remote(str(tmp_path)))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(model_paths["first"]).iterdir():
        os.link(file, broken / file.name)
    (broken / "config.json").unlink()
    (broken / "config.json").write_text('{"model_type": "qwen2", "architectures": ["NoSuchLM"]}')
    with pytest.raises(RuntimeError, match="vLLM could not load the model at"):
        ray.get(evaluator.load.remote(str(broken)))

    ray.get(evaluator.load.remote(model_paths["first"]))
    metrics, _ = evaluate(evaluator, tmp_path / "figfont.parquet")
    assert metrics["num_items"] == SIZE
