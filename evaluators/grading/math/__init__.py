"""Grade a response to a math problem."""
