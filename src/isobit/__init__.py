"""isobit: large language models in few-bit formats, with the same numerics everywhere."""

from __future__ import annotations

__version__ = "0.1.0"
