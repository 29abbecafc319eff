"""The `torch` backend."""

from deft.objectives.reference import reference_head as chunked_head

__all__ = ["chunked_head"]
