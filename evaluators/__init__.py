"""Benchmarks: prompts, generation, grading, metrics.

`benchmarks` lists what there is, `spec` is the evaluation part of a run file, and
`actor.create_evaluator` starts the Ray actor that does the work.
"""
