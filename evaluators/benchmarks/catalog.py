"""The catalog of benchmarks. Importing this module loads no model, data or engine library."""

from __future__ import annotations

import importlib

from deft.evaluators.benchmarks.base import Benchmark
from deft.evaluators.benchmarks.chain_sum import CHAIN_SUM
from deft.evaluators.benchmarks.figfont import FIGFONT
from deft.evaluators.benchmarks.general import GENERAL
from deft.evaluators.benchmarks.math import (
    AIME24,
    AIME25,
    AMC23,
    GSM8K,
    MATH500,
    MINERVA_MATH,
    OLYMPIADBENCH,
)
from deft.evaluators.benchmarks.medical import MEDICAL, MEDICAL_LIKELIHOOD
from deft.evaluators.harness.tasks import PREFIX, harness_benchmark
from deft.workers.common.names import describe_import_error, unknown_name

BENCHMARKS: dict[str, Benchmark] = {
    "math500": MATH500,
    "minerva_math": MINERVA_MATH,
    "olympiadbench": OLYMPIADBENCH,
    "aime24": AIME24,
    "aime25": AIME25,
    "amc23": AMC23,
    "gsm8k": GSM8K,
    "medical": MEDICAL,
    "medical_likelihood": MEDICAL_LIKELIHOOD,
    "figfont": FIGFONT,
    "chain_sum": CHAIN_SUM,
    "general": GENERAL,
}


def get_benchmark(name: str) -> Benchmark:
    """Return the benchmark of that name, ``lm_eval:TASK``, or an import path ``module:object``.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if name.startswith(PREFIX):
        return harness_benchmark(name)
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(unknown_name("benchmark", name, BENCHMARKS))
    try:
        benchmark = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        # A module of the user's may raise anything while it is imported.
        raise ValueError(
            f"benchmark {name!r} cannot be imported: {describe_import_error(error)}"
        ) from error
    if not isinstance(benchmark, Benchmark):
        raise ValueError(f"benchmark {name!r}: expected a Benchmark, got {benchmark!r:.80}")
    return benchmark
