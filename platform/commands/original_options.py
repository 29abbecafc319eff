"""The command-line options of the code that this platform continues, and what stands for them here.

That code is luludus/DEFT (arXiv 2602.11424) and GaotangLi/Beyond-Log-Likelihood (arXiv 2510.00526);
docs/coming-from-the-original.md has their commands, keys and scripts side by side with ours.
"""

from __future__ import annotations

PAGE = "docs/coming-from-the-original.md"

ANSWERS = {
    "--model_save_name": "give --model: the same names, hub ids and directories",
    "--trainer_objective_trans": "give --objective: the same names",
    "--nproc_per_node": "give --set training.num_workers=N",
    "--cuda_visible_devices": "set it before the command: CUDA_VISIBLE_DEVICES=0,1 deft …",
    "--run_script": "leave it out: deft run does it, and --dry-run only shows the plan",
    "--model_name_or_path": "give --model to deft evaluate",
    "--model_name": "give --model to deft evaluate",
    "--data_name": "give --benchmarks; math_oai is called math500",
    "--prompt_type": "give --set prompt_style=NAME, see deft list prompts",
    "--n_sampling": "give --samples",
    "--num_test_sample": "give --size",
    "--tensor_parallel_size": "give --set evaluation.engine.tensor_parallel=N",
    "--gpu_memory_utilization": "give --set evaluation.engine.gpu_memory_utilization=SHARE",
    "--output_dir": "give --root, the directory of all runs",
    "--output_file_name": "leave it out: runs are named after what they are made of",
    "--use_vllm": "leave it out: vLLM is what generates",
}
"""What to use here, by the option of the original's scripts."""


def answer(option: str) -> str | None:
    """Say what stands for ``option`` of the original's scripts; None if it is none of theirs."""
    name = option.split("=")[0]
    return f"{ANSWERS[name]} ({PAGE} has the others)" if name in ANSWERS else None
