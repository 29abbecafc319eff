"""Benchmarks: items, prompts, sampling and graders. Add yours here."""
