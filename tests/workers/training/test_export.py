"""The exported model is the trained one, and every run proves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

from deft.workers.common.example import Example
from deft.workers.data.example_store import open_rows
from deft.workers.modeling.loading import load_causal_lm
from deft.workers.modeling.lora import add_adapters, merged_tensors
from deft.workers.modeling.model_files import train_tokenizer
from deft.workers.modeling.self_check import own_logp
from deft.workers.spec import LoraSpec, TrainingSpec
from deft.workers.training.export import declare_end
from deft.workers.training.job import TrainJob

SPEC = TrainingSpec(
    batch_size=8, micro_batch_size=2, max_length=256, learning_rate=1e-2, dtype="float32"
)
LORA = LoraSpec(rank=4, alpha=16, keep_adapter=True)
SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {**SIZES, **(GPT2 if kind == "gpt2" else {})}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **settings)
    )
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer)
    return model.eval()


RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mixtral", {"lora": LORA, "zero_stage": 2}),
    ("glm4_moe", {"zero_stage": 2}),
    ("glm4_moe", {"zero_stage": 3, "packing": False}),
    ("gpt2", {"lora": LORA, "zero_stage": 3}),
)


def test_held_out_loss_of_the_export_is_that_in_memory(
    ray_cluster: None, make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    """Experts and buffers and transposed layers, on two workers, sharded and not."""
    import ray.train
    from ray.train.torch import TorchTrainer

    plain = make_job(SPEC, objective="original", num_steps=3)
    jobs = []
    for kind, changes in RUNS:
        directory = tmp_path / kind
        if not directory.exists():
            build(kind).save_pretrained(directory)
            AutoTokenizer.from_pretrained(plain.model_dir).save_pretrained(directory)
        training = TrainingSpec(**{**dict(SPEC), **changes})
        jobs.append(replace(plain, model_dir=str(directory), training=training))

    def train_all(config: dict[str, Any]) -> None:
        from deft.workers.training.ray_entry import prepare_process

        prepare_process()
        from deft.workers.training import export as export_module
        from deft.workers.training import sft_loop

        in_memory: list[float] = []
        for number, job in enumerate(config["jobs"]):

            def save(
                engine: Any, export: Any, step: int, metrics: Any, *_: Any, n: int = number
            ) -> None:
                export(Path(config["exports"], str(n)))
                in_memory.append(metrics["validation/nll"])

            sft_loop.save_checkpoint = save
            sft_loop.train(job)

        # An export without the buffers fails the run on every rank.
        broken = Path(config["exports"], "broken")
        sft_loop.save_checkpoint = lambda engine, export, *_: export(broken)
        every_tensor, problem = export_module.merged_tensors, ""
        export_module.merged_tensors = lambda model: (
            tensor for tensor in every_tensor(model) if not tensor.name.endswith("correction_bias")
        )
        try:
            sft_loop.train(config["jobs"][1])
        except RuntimeError as error:
            problem = str(error)
        problems = [""] * 2
        torch.distributed.all_gather_object(problems, problem)
        if ray.train.get_context().get_world_rank() == 0:
            results = json.dumps({"in_memory": in_memory, "problems": problems})
            Path(config["exports"], "results.json").write_text(results)

    TorchTrainer(
        train_all,
        train_loop_config={"jobs": jobs, "exports": str(tmp_path / "exports")},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "ray")),
    ).fit()
    results = json.loads((tmp_path / "exports" / "results.json").read_text())
    turn_end = AutoTokenizer.from_pretrained(jobs[0].model_dir).convert_tokens_to_ids("<|im_end|>")
    for problem in results["problems"]:
        assert problem.startswith("the exported model is not the trained one: ")
        assert "model.layers.1.mlp.gate.e_score_correction_bias" in problem
    for number, (kind, changes) in enumerate(RUNS):
        directory = tmp_path / "exports" / str(number)
        tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
        assert tokenizer["model_max_length"] == 256  # the model's positions
        generation = json.loads((directory / "generation_config.json").read_text())
        assert turn_end in _as_list(generation["eos_token_id"])
        nll = held_out_nll(load_causal_lm(directory), jobs[number])
        assert nll == pytest.approx(results["in_memory"][number], rel=1e-5), kind
        assert nll != pytest.approx(held_out_nll(build(kind), jobs[number]), rel=1e-3), kind
        if "lora" in changes:
            from peft import PeftModel

            base = load_causal_lm(jobs[number].model_dir)
            adapted = PeftModel.from_pretrained(base, directory / "adapter").eval()
            assert held_out_nll(adapted, jobs[number]) == pytest.approx(nll, rel=1e-5), kind


def _as_list(token_ids: Any) -> list[int]:
    return token_ids if isinstance(token_ids, list) else [token_ids]


def test_generation_ends_where_turns_end_and_where_it_did_before() -> None:
    model = build("gpt2")
    tokenizer = train_tokenizer([Example("0", ({"role": "user", "content": "1 + 2"},), "3")])
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for declared in (7, [7, turn_end]):
        model.generation_config.eos_token_id = declared
        declare_end(model, tokenizer, "chat")
        assert model.generation_config.eos_token_id == [7, turn_end]
    model.generation_config.eos_token_id = None
    declare_end(model, tokenizer, "chat")
    assert model.generation_config.eos_token_id == turn_end


def held_out_nll(model: PreTrainedModel, job: TrainJob) -> float:
    """NLL of the held-out targets from the model's own logits, one row at a time."""
    total, number = 0.0, 0
    for row in open_rows(job.validation_dir):
        with torch.no_grad():
            logp = own_logp(model, row["input_ids"])
        targets = torch.tensor(row["labels"][1:]) != -100
        total -= float(logp[targets].double().sum())
        number += int(targets.sum())
    return total / number


def exported(model: PreTrainedModel, directory: Path, state: dict[str, torch.Tensor]) -> str | None:
    from deft.workers.training.export import find_difference

    ids = [[3, 14, 15, 92, 65, 35]]
    with torch.no_grad():
        expected = own_logp(model, ids[0])
    truth = {tensor.name: tensor.value().detach().clone() for tensor in merged_tensors(model)}
    model.save_pretrained(directory, state_dict=state)
    return find_difference(directory, truth, ids, expected, torch.float32)


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe", "gpt2"])
def test_a_wrong_export_is_found_by_name(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    state = {tensor.name: tensor.value().detach().clone() for tensor in merged_tensors(model)}
    assert exported(model, tmp_path / "right", dict(state)) is None

    name = {
        "mixtral": "model.layers.1.mlp.experts.down_proj",
        "glm4_moe": "model.layers.1.mlp.gate.e_score_correction_bias",
        "gpt2": "transformer.h.1.attn.c_proj.weight",
    }[kind]
    changed = {**state, name: state[name] + 0.1}
    problem = exported(model, tmp_path / "changed", changed)
    assert problem is not None
    assert problem.startswith("log-probabilities of 5 tokens differ by ")
    assert problem.endswith(f". These tensors differ: {name}")

    del state[name]
    missing = exported(model, tmp_path / "missing", state)
    assert missing is not None
    assert "missing" in missing


def test_an_update_merged_the_wrong_way_round_is_found(tmp_path: Path) -> None:
    """Conv1D holds its weight [in, out]; the tensors are those written, but not the model's."""
    model = build("gpt2")
    add_adapters(model, LoraSpec(rank=2, alpha=8, targets=("attn.c_proj",)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    base = "transformer.h.0.attn.c_proj"
    state = {tensor.name: tensor.value().detach().clone() for tensor in merged_tensors(model)}
    weight = model.get_submodule(base).base_layer.weight
    assert exported(model, tmp_path / "right", dict(state)) is None
    state[f"{base}.weight"] = weight + (state[f"{base}.weight"] - weight).T
    problem = exported(model, tmp_path / "transposed", state)
    assert problem is not None
    assert f"{base}.weight" in problem
