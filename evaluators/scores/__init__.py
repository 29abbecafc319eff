"""From graded responses to metrics, intervals and comparisons."""
