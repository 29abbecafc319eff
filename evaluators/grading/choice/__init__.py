"""Grade a response to a multiple-choice question."""
