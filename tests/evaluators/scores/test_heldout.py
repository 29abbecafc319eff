"""Held-out loss against materialized logits, one row at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deft.evaluators.scores import heldout as losses
from deft.evaluators.scores.heldout import encode_rows, measure_losses
from deft.evaluators.scores.heldout_table import read_losses, summarize_losses
from deft.evaluators.scores.statistics import expected_calibration_error
from deft.evaluators.scores.token_table import read_tokens
from deft.workers.common.example import IGNORE_INDEX, Example

RESPONSES = ["MAD", "Ω is two bytes", "a longer answer, of many tokens", "x", "fifth"]


@pytest.fixture(scope="module")
def rows(tiny_tokenizer: Any) -> Any:
    examples = [
        Example(str(i), ({"role": "user", "content": f"question {i}"},), response)
        for i, response in enumerate(RESPONSES)
    ]
    return encode_rows(tiny_tokenizer, examples, "chat")


def test_every_trained_turn_of_a_conversation_counts_its_bytes(tiny_tokenizer: Any) -> None:
    prompt = (
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "earlier Ω"},
        {"role": "user", "content": "two?"},
    )
    (row,) = encode_rows(tiny_tokenizer, [Example("0", prompt, "later")], "chat")
    assert row["target_bytes"] == len("earlier Ω".encode()) + len(b"later")


def test_every_number_is_that_of_the_materialized_logits(
    model_paths: dict[str, str],
    tiny_tokenizer: Any,
    rows: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "resolve_dtype", lambda name: torch.float32)
    path = Path(model_paths["first untied"])
    seen: list[tuple[int, int]] = []
    tables = tmp_path / "losses.parquet", tmp_path / "tokens.parquet"
    metrics = measure_losses(path, rows, *tables, lambda done, total: seen.append((done, total)))
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    nlls, ends, entropies, confidences, hits = [], [], [], [], []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        log_probs = logits.log_softmax(-1)
        for position, target in enumerate(row["labels"][1:]):
            if target == IGNORE_INDEX:
                continue
            nlls.append(-float(log_probs[position, target]))
            entropies.append(-float((log_probs[position].exp() * log_probs[position]).sum()))
            confidences.append(float(log_probs[position].max().exp()))
            hits.append(int(log_probs[position].argmax()) == target)
        ends.append(nlls[-1])
    num_bytes = sum(len(response.encode()) for response in RESPONSES)

    assert metrics["nll"] == pytest.approx(np.mean(nlls), rel=1e-5)
    assert metrics["control_nll"] == pytest.approx(np.mean(ends), rel=1e-5)
    bits = sum(nlls) / math.log(2)
    assert metrics["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert metrics["entropy_gap"] == pytest.approx(np.mean(nlls) - np.mean(entropies), rel=1e-4)
    assert metrics["token_accuracy"] == pytest.approx(np.mean(hits))
    expected = expected_calibration_error(np.array(confidences), np.array(hits))
    assert metrics["ece"] == pytest.approx(expected, abs=1e-5)
    assert (metrics["num_items"], metrics["num_tokens"]) == (len(RESPONSES), len(nlls))
    assert metrics["nll_ci_low"] < metrics["nll"] < metrics["nll_ci_high"]

    assert seen == [(4, 5), (5, 5)]

    table = read_losses(tmp_path / "losses.parquet")
    assert [loss.n_bytes for loss in table] == [len(r.encode()) for r in RESPONSES]
    assert [loss.row for loss in table] == list(range(len(RESPONSES)))
    assert metrics == summarize_losses(table) | {"ece": metrics["ece"]}

    # Single tokens of the first rows, with the text that they spell, byte by byte of "Ω" too.
    tokens = read_tokens(tmp_path / "tokens.parquet")
    assert [-token.logp for token in tokens] == pytest.approx(nlls, rel=1e-4, abs=1e-5)
    assert [token.entropy for token in tokens] == pytest.approx(entropies, rel=1e-4)
    assert [math.exp(token.top_logp) for token in tokens] == pytest.approx(confidences, rel=1e-4)
    assert all(token.entropy_top <= math.log(20) + 1e-6 for token in tokens)
    for number, response in enumerate(RESPONSES):
        spelled = [token for token in tokens if token.row == number]
        text = "".join(token.text for token in spelled).replace("\ufffd", "")
        assert text.startswith(response)
        assert f"question {number}" in spelled[0].before
        assert not any(token.before for token in spelled[1:])


def test_losses_are_measured_in_the_dtype_of_training(
    model_paths: dict[str, str], rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nll(machine: torch.dtype, dtype: str | None) -> float:
        monkeypatch.setattr(losses, "resolve_dtype", lambda name: machine)
        path = Path(model_paths["first untied"])
        losses_file, tokens_file = tmp_path / "losses.parquet", tmp_path / "tokens.parquet"
        return measure_losses(path, rows, losses_file, tokens_file, dtype=dtype)["nll"]

    exact, rounded = nll(torch.float32, None), nll(torch.bfloat16, None)
    assert exact != rounded
    assert nll(torch.bfloat16, "float32") == exact
    assert nll(torch.float32, "bfloat16") == rounded
