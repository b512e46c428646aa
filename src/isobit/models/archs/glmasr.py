"""GLM-ASR: a plain Llama that is given what an encoder hears (``models/encoders/glmasr.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import ACTIVATIONS, MOST_LAYERS, Style, read_common, without_windows
from isobit.models.hf_keys import complain_of_unread
from isobit.models.hf_within import decoder

# What the decoder is where its section does not say it: GLM-ASR-Nano.
USUAL: dict[str, Any] = {
    "vocab_size": 59264,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
}
TOWER = ("audio_config", "audio_token_id", "projector_hidden_act")
MERGED = 4  # frames of the encoder that become one token
_WAVES = ("gelu", *(name for names in ACTIVATIONS.values() for name in names), "relu")


@dataclass(frozen=True)
class Encoder:
    """What hears.

    Attributes:
        hidden, intermediate, layers, heads, kv_heads: sizes of its layers.
        bands: of the spectrogram that it reads.
        activation, projector: what its MLPs and the projector behind it have, as transformers calls them.
        theta, rotated: of its rotary embedding, which is on that part of each head.
        token: id that stands for its tokens in prompts.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    bands: int
    activation: str
    projector: str
    theta: float
    rotated: float
    token: int


def from_hf(fields: Fields) -> ModelConfig:
    """Reads the decoder of a GlmAsrForConditionalGeneration configuration."""
    text = decoder(fields, kinds=("llama",), usual=USUAL, tied=True, read=TOWER)
    without_windows(text)
    bias = text.flag("attention_bias", False)
    style = Style(qkv_bias=bias, o_bias=bias, mlp_bias=text.flag("mlp_bias", False))
    encoder(fields, text.integer("vocab_size"))
    return read_common(text, "glmasr", style=style)


def encoder(fields: Fields, vocabulary: int) -> Encoder:
    """Reads the keys of the encoder; what is wrong with them is remembered by ``fields``."""
    token = fields.integer("audio_token_id", 59260, low=0)
    if fields.sound and token >= vocabulary:
        fields.problem("audio_token_id", f"is no token: the vocabulary has {vocabulary}")
    projector = _activation(fields, "projector_hidden_act")
    part = fields.section("audio_config") or fields.inner({}, "audio_config")
    part.only("model_type", ("glmasr_encoder",), "encoder")
    hidden, heads = part.integer("hidden_size", 1280), part.integer("num_attention_heads", 20)
    found = Encoder(
        hidden,
        part.integer("intermediate_size", 5120),
        part.integer("num_hidden_layers", 32, high=MOST_LAYERS),
        heads,
        part.integer("num_key_value_heads", heads),
        part.integer("num_mel_bins", 128, high=4096),
        _activation(part, "hidden_act"),
        projector,
        *_rotary(part),
        token,
    )
    part.integer("max_position_embeddings", 1500)  # which changes nothing: positions are rotated
    own = part.integer("head_dim", max(1, hidden // heads))
    if fields.sound:
        _complain(part, found, own)
    part.raw("dtype"), part.raw("torch_dtype")  # what it is stored in, its tensors say
    complain_of_unread(part, _sizes(found, own))
    return found


def _sizes(found: Encoder, head_dim: int) -> dict[str, Any]:
    """What other names of the same sizes must agree with."""
    return {
        "num_layers": found.layers, "num_heads": found.heads, "num_kv_heads": found.kv_heads,
        "hidden_size": found.hidden, "intermediate_size": found.intermediate, "head_dim": head_dim, "norm_eps": 1e-5,
        "vocab_size": 0,
    }  # fmt: skip


def _complain(part: Fields, found: Encoder, head_dim: int) -> None:
    """What sizes must have to do with each other."""
    if found.hidden % found.heads or head_dim != found.hidden // found.heads:
        part.problem("hidden_size", f"is not {found.heads} heads of {head_dim}")
    if found.heads % found.kv_heads:
        part.problem("num_attention_heads", f"is not a multiple of num_key_value_heads = {found.kv_heads}")
    if found.intermediate != MERGED * found.hidden:
        part.problem("intermediate_size", f"is not {MERGED} x hidden_size, of which the projector makes a token")
    if int(head_dim * found.rotated) % 2:
        part.complain(f"an odd part of each head is rotated ({found.rotated:g} of {head_dim})")


def _activation(fields: Fields, key: str) -> str:
    fields.only(key, _WAVES, "activation")
    named = fields.raw(key)
    return named if isinstance(named, str) else "gelu"


def _rotary(part: Fields) -> tuple[float, float]:
    """Theta, and which part of each head is rotated."""
    usual = part.number("partial_rotary_factor", 0.5, high=1.0)
    theta, rope = part.number("rope_theta", 10000.0), part.section("rope_parameters")
    if rope is None:
        return theta, usual
    rope.only("rope_type", ("default",), "rotary embedding")
    return rope.number("rope_theta", theta), rope.number("partial_rotary_factor", usual, high=1.0)


def tiny() -> dict[str, Any]:
    """A tiny test model, with an encoder that hears in two layers."""
    return {
        "text_config": {
            "model_type": "llama",
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "audio_config": {
            "model_type": "glmasr_encoder",
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "audio_token_id": 300,
        "tie_word_embeddings": False,
    }
