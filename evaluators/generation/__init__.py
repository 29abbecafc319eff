"""From a benchmark's items to responses: engines, prompts, and Ray actors that run them."""
