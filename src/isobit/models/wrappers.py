"""Models that see and whose decoder is a family for text, which is run; what they see with only of some. A row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from isobit.models.config import LayerSpec, ModelConfig, SelfAttention
from isobit.models.feed_forward import Experts
from isobit.models.fields import Fields, shown
from isobit.models.hf_rope import AXES, SECTIONS
from isobit.models.hf_within import SECTION, decoder
from isobit.models.rotary import Rope

if TYPE_CHECKING:  # it needs numpy, and a plan does not
    from isobit.media.values import Kind

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Wrapper:
    """A model whose decoder is a family for text.

    Attributes:
        called: by people.
        model_type: of the whole.
        families: ``model_type`` of the decoder -> the file in ``archs/`` that reads it; the first where none is said.
        usual: keys of the decoder where it has not got them, and where its family says otherwise.
        tied: ``tie_word_embeddings`` of the whole where nothing says it.
        either: whether the decoder's own counts, too, where the whole's is false.
        flat: whether the decoder's keys may stand in the file itself.
        others: keys of the whole about what it sees with, beside ``vision_config``.
        only: keys of the decoder that its family reads and this model does not, and what they have to say.
        theta: of a decoder whose tokens have positions on three axes: the base of its rope where nothing says it; of a
            text, the three are equal. None: it has one.
        kinds: of media that it takes.
        tower: the file in ``encoders/`` that runs what it sees with, and its opener; empty where nothing does.
        sections: pairs of dimensions that each axis of positions turns, where nothing says it; of models with a tower.
        turned: whether the tensors of all experts of a layer may lie with inputs first, too.
    """

    called: str
    model_type: str
    families: Mapping[str, str]
    usual: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    tied: bool = False
    either: bool = False
    flat: bool = False
    others: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _NOTHING)
    theta: float | None = None
    kinds: tuple[Kind, ...] = ("image",)
    tower: tuple[str, ...] = ()
    sections: tuple[int, ...] = ()
    turned: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know who loads it."""
        return (
            ()
            if self.tower
            else (f"the vision tower of {self.called} is not run here: isobit runs the text of this model alone",)
        )


_QWEN2 = {"rms_norm_eps": 1e-5, "max_window_layers": 80, "num_key_value_heads": 8, "max_position_embeddings": 32768}
_MOVING: tuple[Kind, ...] = ("image", "video")
_TOKENS = ("boi_token_index", "eoi_token_index", "image_token_index")

WRAPPERS: dict[str, Wrapper] = {
    "Gemma3ForConditionalGeneration": Wrapper(
        "Gemma 3", "gemma3", {"gemma3_text": "gemma3_text"}, tied=True, others=(*_TOKENS, "mm_tokens_per_image"),
        # what Gemma 3 4B leaves out
        usual={
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        },
    ),
    "Llama4ForConditionalGeneration": Wrapper(
        "Llama 4", "llama4", {"llama4_text": "llama4_text"}, others=_TOKENS,
    ),
    "Mistral3ForConditionalGeneration": Wrapper(
        "Mistral 3", "mistral3", {"mistral": "mistral", "ministral3": "ministral3"}, either=True,
        others=(
            "image_token_index", "multimodal_projector_bias", "projector_hidden_act", "spatial_merge_size",
            "vision_feature_layer",
        ),
    ),
    "Qwen2VLForConditionalGeneration": Wrapper(
        "Qwen2-VL", "qwen2_vl", {"qwen2_vl_text": "qwen2"}, flat=True, either=True, theta=1e6,
        usual=_QWEN2, tower=("qwen2_vl", "QwenTower"), sections=(16, 24, 24),
    ),
    "Qwen2_5_VLForConditionalGeneration": Wrapper(
        "Qwen2.5-VL", "qwen2_5_vl", {"qwen2_5_vl_text": "qwen2"}, flat=True, either=True, theta=1e6,
        usual=_QWEN2, tower=("qwen2_vl", "QwenTower"), sections=(16, 24, 24),
    ),
    "Qwen3VLForConditionalGeneration": Wrapper(
        "Qwen3-VL", "qwen3_vl", {"qwen3_vl_text": "qwen3"}, kinds=_MOVING, theta=5e5,
        usual={"max_position_embeddings": 128000, "num_key_value_heads": 32},
    ),
    "Qwen3VLMoeForConditionalGeneration": Wrapper(
        "Qwen3-VL with experts", "qwen3_vl_moe", {"qwen3_vl_moe_text": "qwen3_moe"}, kinds=_MOVING, theta=5e5,
        turned=True,
        usual={
            "max_position_embeddings": 128000, "num_key_value_heads": 16, "norm_topk_prob": True,
            "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
        },
        only={"norm_topk_prob": (True,)},
    ),
}  # fmt: skip


def read(fields: Fields, row: Wrapper, family: Callable[[str], Any]) -> ModelConfig:
    """The decoder of a model's configuration.

    Args:
        fields: the file.
        row: the model.
        family: the module of a family.
    """
    text = decoder(
        fields, kinds=tuple(row.families), usual=row.usual, tied=row.tied, read=("vision_config", *row.others),
        flat=row.flat, either=row.either, prepared=_on_one_axis(row),
    )  # fmt: skip
    for key, values in row.only.items():
        text.only(key, values, "value, which transformers does not look at in this model")
    kind = text.raw("model_type")
    first = next(iter(row.families.values()))
    model: ModelConfig = family(row.families.get(kind, first) if isinstance(kind, str) else first).from_hf(text)
    if row.turned:
        model = replace(model, layers=tuple(replace(layer, mlp=_either_way(layer.mlp)) for layer in model.layers))
    if row.tower:
        model = _on_three_axes(fields, row, model)
    return replace(model, notes=(*row.notes, *model.notes))


def _on_one_axis(row: Wrapper) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The keys of a decoder without what says how several positions of a token are used."""

    def prepared(text: dict[str, Any]) -> dict[str, Any]:
        if row.theta is None:
            return text
        told = text.get("rope_theta") is not None
        for name in SECTIONS:
            rope = text.get(name)
            if not isinstance(rope, Mapping):
                continue
            told = told or rope.get("rope_theta") is not None
            kinds = {key: "default" for key in ("type", "rope_type") if rope.get(key) == "mrope"}
            if kinds and rope.get("rope_type") == "default":
                kinds["type"] = "default"
            text[name] = {key: value for key, value in rope.items() if key not in (*AXES, "mrope_interleaved")} | kinds
        return text if told else text | {"rope_theta": row.theta}

    return prepared


def _on_three_axes(fields: Fields, row: Wrapper, model: ModelConfig) -> ModelConfig:
    """The decoder with what says which dimensions a position in time, row or column turns."""
    inner = fields.raw(SECTION)
    text = inner if isinstance(inner, Mapping) else fields.whole
    said = [
        rope[key] for name in SECTIONS if isinstance(rope := text.get(name), Mapping) for key in AXES if key in rope
    ]
    attention = model.layers[0].attention
    assert isinstance(attention, SelfAttention) and attention.rope is not None
    pairs, found = attention.rotated // 2, said[0] if said else [*row.sections]
    sound = isinstance(found, list) and len(found) == 3 and all(type(one) is int and one > 0 for one in found)
    if not sound or sum(found) != pairs:
        fields.complain(f"{AXES[0]} = {shown(found)}: expected three whole numbers that make {pairs}")
        fields.check()
    rope = replace(attention.rope, sections=tuple(found))
    return replace(model, layers=tuple(_with_rope(layer, rope) for layer in model.layers))


def _with_rope(layer: LayerSpec, rope: Rope) -> LayerSpec:
    """A layer with another rotary embedding."""
    assert isinstance(layer.attention, SelfAttention)
    return replace(layer, attention=replace(layer.attention, rope=rope))


def _either_way(mlp: Any) -> Any:
    if not isinstance(mlp, Experts):
        return mlp
    return replace(mlp, names=replace(mlp.names, stacked=replace(mlp.names.stacked, either=True)))
