"""Run a spec: prepare, train, evaluate and record."""
