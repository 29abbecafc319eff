"""Commands that look after a run root: what is in it, what goes on, what can be removed."""
