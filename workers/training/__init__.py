"""The training loop on Ray Train workers and its DeepSpeed engine."""
