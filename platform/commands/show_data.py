"""`deft show data`: the first examples as the model will see them, trained tokens marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.workers.common.example import IGNORE_INDEX, Example
from deft.workers.common.text import printable
from deft.workers.data.chat import count_bos, format_hash, try_encode
from deft.workers.data.datasets import ReadingNotes, describe_notes, read_examples
from deft.workers.data.example_store import open_tables
from deft.workers.data.prepare import noisy_rows, prepare_examples, prepare_rows, prepare_tokenizer
from deft.workers.data.readers import BadRecord
from deft.workers.data.tokenization import kept_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED, TRAINED, BAD = "dim", "bold green", "red"
OPEN, CLOSE = "⟦", "⟧"
"""Around trained tokens where there are no colors."""


def show_data(spec: ExperimentSpec, root: Path, number: int, console: RunConsole) -> None:
    """Print the first ``number`` records of each of the run's data sets, each as tokens.

    Raises:
        UserError: data or tokenizer cannot be used.
    """
    cache = root.resolve() / "cache"
    try:
        tokenizer = prepare_tokenizer(spec.dataset, spec.model, seed=spec.seed, cache=cache)
        sources = spec.dataset.sources
        notes = [ReadingNotes() for _ in sources]
        records = [
            list(islice(read_examples(source, passed_over), number))
            for source, passed_over in zip(sources, notes, strict=True)
        ]
        show_format(spec, list(chain(*records)), tokenizer, console)
        noisy = find_noisy(spec, number, tokenizer, cache) if spec.dataset.noise else {}
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    for source, passed_over in zip(sources, notes, strict=True):
        if text := describe_notes(passed_over):
            console.print(f"warning: {source.label}: {text}")
    for number_of_source, records_of_source in enumerate(records):
        position = 0
        for record in records_of_source:
            console.print("")
            if isinstance(record, BadRecord):
                problem = f"{record.where} · bad record ({record.kind}): {record.message}"
                console.console.print(Text(printable(problem), BAD), soft_wrap=True)
            else:
                row = noisy.get((number_of_source, position))
                show_example(spec, record, tokenizer, console, row)
                position += 1


EncodedRow = tuple[list[int], list[int]]
"""Token ids and labels."""


def find_noisy(
    spec: ExperimentSpec, number: int, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> dict[tuple[int, int], EncodedRow]:
    """Return the noisy ones among the first ``number`` examples of each data set.

    Which they are is known once all examples have been tokenized.

    Returns:
        By the number of the data set and the position in it.

    Raises:
        ValueError: the data cannot be used.
    """
    examples_dirs = prepare_examples(spec.dataset, cache / "examples")
    directory = prepare_rows(
        spec.dataset,
        examples_dirs,
        tokenizer,
        max_length=spec.training.max_length,
        seed=spec.seed,
        cache=cache,
    )
    noisy: dict[tuple[int, int], EncodedRow] = {}
    first = 0
    for source, examples_dir in enumerate(examples_dirs):
        rows = noisy_rows(directory / "train", first, number)
        noisy |= {(source, position - first): row for position, row in rows.items()}
        first += len(open_tables(examples_dir))
    return noisy


def show_format(
    spec: ExperimentSpec,
    records: Sequence[Example | BadRecord],
    tokenizer: PreTrainedTokenizerBase,
    console: RunConsole,
) -> None:
    """Print what holds for all examples: the prompt format, and how to read what follows."""
    style = spec.dataset.prompt_style
    first = next((record for record in records if isinstance(record, Example)), None)
    digest = format_hash(tokenizer, style, first.instruction if first is not None else "")
    facts = [style, f"hash {digest}"]
    if first is not None and not isinstance(
        encoded := try_encode(tokenizer, [first], style=style)[0], ValueError
    ):
        facts.append(f"ends with {printable(str(tokenizer.decode(encoded[0][-1:])))}")
    console.stage("format", " · ".join(facts))
    if console.console.is_terminal:
        legend = Text.assemble(("masked", MASKED), ", ", ("trained", TRAINED))
    else:
        legend = Text(f"{OPEN}trained{CLOSE}, all else is masked")
    console.console.print(Text.assemble(("tokens".ljust(10), "bold"), legend))


def show_example(
    spec: ExperimentSpec,
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    console: RunConsole,
    noisy: EncodedRow | None,
) -> None:
    """Print one example: its counts in a line, then its text; ``noisy`` is what it became."""
    where = printable(example.id)
    encoded = try_encode(tokenizer, [example], style=spec.dataset.prompt_style)[0]
    if isinstance(encoded, ValueError):
        console.console.print(
            Text(f"{where} · cannot be rendered: {printable(str(encoded))}", BAD), soft_wrap=True
        )
        return
    input_ids, labels, weights = encoded
    if noisy is not None:
        input_ids, labels = noisy
    trained = sum(label != IGNORE_INDEX for label in labels)
    facts = [
        where,
        f"{len(input_ids):,} tokens, {trained:,} trained",
        f"{count_bos(tokenizer, input_ids)} BOS",
    ]
    if weights is not None and noisy is None:
        used = {w for w, label in zip(weights, labels, strict=True) if label != IGNORE_INDEX}
        facts.append("loss times " + " and ".join(f"{weight:g}" for weight in sorted(used)))
    if noisy is not None:
        facts.append("noise: the response of another example")
    limit = spec.training.max_length
    if len(input_ids) > limit:
        too_long = spec.dataset.too_long
        treatment = {
            "drop": "left out",
            "truncate": "cut here",
            "truncate_left": "cut on the left",
            "refuse": "refused",
        }
        facts.append(f"longer than {limit:,}: {treatment[too_long]}")
        kept = kept_tokens(spec.dataset.truncation_side, limit)
        input_ids, labels = input_ids[kept], labels[kept]
    console.console.print(Text(" · ".join(facts), "bold"), soft_wrap=True)
    text = Text()
    for piece, is_trained in spans(tokenizer, input_ids, labels):
        if console.console.is_terminal:
            text.append(piece, TRAINED if is_trained else MASKED)
        else:
            text.append(f"{OPEN}{piece}{CLOSE}" if is_trained else piece)
    console.console.print(text, soft_wrap=True)


def spans(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]
) -> Iterator[tuple[str, bool]]:
    """Yield the text of each run of masked or trained tokens, made safe to print."""
    tokens = zip(input_ids, (label != IGNORE_INDEX for label in labels), strict=True)
    for is_trained, run in groupby(tokens, key=lambda token: token[1]):
        ids = [token for token, _ in run]
        yield printable(str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))), is_trained
