"""Commands of `deft` beside `run`, `evaluate` and `sweep`."""
