"""Grade in processes that are killed when a record takes too much time or memory."""
