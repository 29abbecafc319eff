"""Statistics of a dataset's tokens under a model as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from transformers import AutoModelForCausalLM

from deft.workers.data.example_store import open_rows
from deft.workers.data.prepare import prepare
from deft.workers.dataset_spec import DatasetSpec
from deft.workers.modeling.token_statistics import token_statistics
from deft.workers.spec import ModelSpec


def test_statistics_are_those_of_the_models_own_logits(tmp_path: Path) -> None:
    prepared = prepare(
        DatasetSpec(name="figfont", size=6),
        ModelSpec(name="tiny"),
        max_length=384,
        seed=0,
        cache=tmp_path,
    )
    seen: list[int] = []
    stats = token_statistics(
        prepared.model_dir, prepared.rows_dir, {"entropy"}, lambda done, total: seen.append(done)
    )
    model = AutoModelForCausalLM.from_pretrained(prepared.model_dir)
    rows = open_rows(prepared.rows_dir)
    logps, entropies = [], []
    for row in rows:
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1][labels != -100]
        distribution = torch.distributions.Categorical(logits=logits.float())
        logps.append(distribution.log_prob(labels[labels != -100]))
        entropies.append(distribution.entropy())
    assert seen[-1] == len(rows)
    # bfloat16 where the machine has it: a model's logits then carry 8 bits.
    torch.testing.assert_close(stats.logp, torch.cat(logps), rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(stats.entropy, torch.cat(entropies), rtol=5e-2, atol=5e-2)
    assert bool(stats.mask.all())

    first = token_statistics(prepared.model_dir, prepared.rows_dir, (), num_rows=2)
    assert len(first.p) == len(logps[0]) + len(logps[1])


@pytest.mark.parametrize(
    ("objectives", "code", "said"),
    [
        ("original, DEFT", 0, "under 2 objectives"),
        ("DEFT,DEFFT", 2, "error: unknown objective 'DEFFT'. Did you mean DEFT?"),
        ("GEM,iwSFT", 2, "GEM is not described by a gate alone"),
        ("iwSFT", 2, "iwSFT is not described by a gate alone"),
    ],
)
def test_landscape_command(
    deft: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
    objectives: str,
    code: int,
    said: str,
) -> None:
    names = ["--dataset", "figfont", "--model", "tiny", "--objectives", objectives]
    done = deft("landscape", *names, "--size", "6", "--out", "land.png")
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "land.png").exists() == (code == 0)


def test_landscape_of_an_objective_and_data_of_ones_own(
    deft: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from deft.objectives import ObjectiveOutput, objective\n\n\n"
        "@objective()\n"
        "def blend(stats, *, a, b):\n"
        "    gate = a + b * stats.p\n"
        "    return ObjectiveOutput(value=-gate.detach() * stats.logp, gate=gate)\n"
    )
    rows = [{"q": f"What is {n} + 1?", "a": str(n + 1)} for n in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = deft(
        "landscape",
        *("--dataset", "sums.jsonl", "--set", "dataset.columns={prompt: q, response: a}"),
        *("--model", "tiny", "--size", "6"),
        *("--objectives", "DEFT, mine:blend(a=0.5, b=0.5)"),
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "under 2 objectives" in done.stdout
