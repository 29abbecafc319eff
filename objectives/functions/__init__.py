"""Objectives: pure functions from per-token statistics to value and gate. Add yours here."""
