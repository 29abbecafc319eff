"""Base class of everything that a run file may set."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys, inf and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
