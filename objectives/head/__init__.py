"""The fused linear head: statistics and gradients of an objective without the logits."""
