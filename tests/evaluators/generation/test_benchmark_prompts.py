"""Letters as the only possible responses."""

from __future__ import annotations

from typing import Any

import pytest

from deft.evaluators.generation.benchmark_prompts import letter_ids


def test_letters_are_single_tokens_or_refused(tiny_tokenizer: Any) -> None:
    ids = letter_ids(tiny_tokenizer, {"A": "one", "B": "two"})
    assert tiny_tokenizer.batch_decode([[token_id] for token_id in ids]) == ["A", "B"]
    with pytest.raises(ValueError, match=r"options Yes, No: .* each letter is one token"):
        letter_ids(tiny_tokenizer, {"Yes": "", "No": ""})
    with pytest.raises(ValueError, match="options are missing"):
        letter_ids(tiny_tokenizer, {})
