"""Creation of engines by name."""

from __future__ import annotations

from deft.evaluators.generation.engine import Engine
from deft.evaluators.spec import EngineSpec


def create_engine(spec: EngineSpec) -> Engine:
    """Create the engine that ``spec`` names, without a model."""
    # Each takes seconds to import and reads the process's environment when it does.
    if spec.type == "transformers":
        from deft.evaluators.generation.transformers_engine import TransformersEngine

        return TransformersEngine(spec)
    from deft.evaluators.generation.vllm_engine import VllmEngine

    return VllmEngine(spec)
