"""What a layer may ask of the row that runs it, beside what every row has: a row names those that it has, too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from isobit.models.config import LayerSpec, SelfAttention


@dataclass(frozen=True)
class Feature:
    """Something that layers of some families have.

    Attributes:
        name: what rows call it.
        words: what a reason says that layers have.
        asked: whether a layer has it.
    """

    name: str
    words: str
    asked: Callable[[LayerSpec], bool]


def _of_attention(name: str, words: str, asked: Callable[[SelfAttention], bool]) -> Feature:
    def of_layer(layer: LayerSpec) -> bool:
        return isinstance(layer.attention, SelfAttention) and asked(layer.attention)

    return Feature(name, words, of_layer)


FEATURES = (
    _of_attention("no-rope", "attention without rotary embedding", lambda part: part.rope is None),
    _of_attention("partial-rope", "heads that are rotated in part", lambda part: 0 < part.rotated < part.dim),
    _of_attention("interleaved", "rotary pairs that are neighbours", lambda part: part.interleaved),
    _of_attention("norm-behind", "norms of queries and keys behind the rotation",
                  lambda part: part.qk_norm in ("head-behind", "l2")),
    _of_attention("sinks", "attention sinks", lambda part: part.sinks),
    _of_attention("chunks", "attention in chunks", lambda part: part.chunk is not None),
    _of_attention("query-scale", "queries that grow with their positions", lambda part: part.query_scale is not None),
)  # fmt: skip


def lacking(layers: Sequence[LayerSpec], able: Collection[str]) -> str | None:
    """What layers have and a row has not, as its reason; None where it has all.

    Args:
        layers: what is to run.
        able: names of :data:`FEATURES` that the row has.
    """
    missing = [row.words for row in FEATURES if row.name not in able and any(row.asked(layer) for layer in layers)]
    return f"does not compute {', '.join(missing)} yet" if missing else None
