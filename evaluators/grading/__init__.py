"""Grading, apart from generation: a response and its gold answer in, a verdict out.

`GRADERS` lists what there is, `verdicts` says what a grade is, `sandbox.pool.GraderPool` grades in
processes that are killed when a record takes too much time or memory.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

GRADERS = {
    "math": "deft.evaluators.grading.math.grader:grade",
    "medical": "deft.evaluators.grading.choice.grader:grade",
    "figfont": "deft.evaluators.grading.figfont:grade",
    "chain_sum": "deft.evaluators.grading.chain_sum:grade",
    "math_verify": "deft.evaluators.grading.math_verify:grade",
}
"""Name to the import path of a function from record to `Grade`; imported in worker processes."""


def grader_version(grader: str) -> str:
    """Return a digest of the code that ``grader`` runs, which is part of what a result depends on.

    For a grader of one's own it is the source of its module.
    """
    module = GRADERS.get(grader, grader).partition(":")[0]
    if grader in GRADERS:
        sources = sorted(Path(__file__).parent.rglob("*.py"))
    else:
        spec = find_spec(module)
        sources = [Path(spec.origin)] if spec and spec.origin else []
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
