"""Benchmarks: prompts, generation, grading, metrics.

`benchmarks` lists what there is and `benchmark` says what one is made of; `spec` is the evaluation
part of a run file; `pool.EvaluatorPool` evaluates models on all devices of a Ray cluster, each by
an `actor.Evaluator` with an engine; `losses` measures the loss on held-out text; `comparison` tells
differences between runs from noise.
"""
