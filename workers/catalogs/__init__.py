"""What a run file may name: datasets, models and prompt styles. Loads nothing heavy."""
