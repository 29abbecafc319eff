"""Grading, apart from generation: a response and its gold answer in, a verdict out.

`GRADERS` lists what there is, `verdicts` says what a grade is, `sandbox.pool.GraderPool` grades in
processes that are killed when a record takes too much time or memory.
"""

from __future__ import annotations

GRADERS = {
    "math": "deft.evaluators.grading.math.grader:grade",
    "medical": "deft.evaluators.grading.choice.grader:grade",
    "figfont": "deft.evaluators.grading.figfont:grade",
    "chain_sum": "deft.evaluators.grading.chain_sum:grade",
    "math_verify": "deft.evaluators.grading.math_verify:grade",
}
"""Name to the import path of a function from record to `Grade`; imported in worker processes."""

SECOND_OPINIONS = {"math": "math_verify"}
"""Grader → another one, whose verdict is kept beside its own."""
