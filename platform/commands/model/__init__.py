"""Commands that use the model that a run trained."""
