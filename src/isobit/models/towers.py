"""Which models have a tower beside their decoder, as rows: what it takes, and who opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isobit.models.archs import architecture
from isobit.models.wrappers import WRAPPERS

if TYPE_CHECKING:  # plans need no numpy
    from isobit.media.values import Kind


@dataclass(frozen=True)
class TowerRow:
    """A family with a tower.

    Attributes:
        kinds: of media that it takes.
        file: in ``models/encoders``; empty where isobit reads the decoder alone.
        opener: of that file: ``(checkpoint, dtype, device)`` to the tower.
    """

    kinds: tuple[Kind, ...]
    file: str = ""
    opener: str = "open"


# Architecture -> its tower.
TOWERS: dict[str, TowerRow] = {
    "Glm46VForConditionalGeneration": TowerRow(("image", "video"), "glm4v"),
    "Glm4vForConditionalGeneration": TowerRow(("image", "video"), "glm4v"),
    "Glm4vMoeForConditionalGeneration": TowerRow(("image", "video"), "glm4v"),
    "GlmAsrForConditionalGeneration": TowerRow(("audio",), "glmasr", "GlmAsrTower"),
    "HunYuanVLForConditionalGeneration": TowerRow(("image",), "hunyuan_vl", "HunyuanTower"),
    **{architecture: TowerRow(row.kinds, *row.tower) for architecture, row in WRAPPERS.items()},
}


def tower_of(config: Mapping[str, Any]) -> TowerRow | None:
    """The tower of a model, by its config.json; None where it has none."""
    name = architecture(config)
    return None if name is None else TOWERS.get(name)
