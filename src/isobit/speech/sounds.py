"""The tokenizer of sounds: a Whisper encoder that ends at one of its layers, and the codebook entry nearest to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from isobit.checkpoint.folder import weight_files
from isobit.checkpoint.jsonfile import read_json, short
from isobit.errors import CheckpointError, UsageError
from isobit.speech.spectra import LOW_RATE, WHISPER_HOP, whisper_mel
from isobit.speech.weights import Weights, kept, linear, read_safetensors

WHAT = "tokenizer of sounds"
LONGEST = 30.0  # seconds
_FRONT = "model.encoder."
_STRIDE = 2  # of the second convolution
_IDLE = ("ema_count", "ema_weight", "layer_norm.weight", "layer_norm.bias")
# Names that older copies have for the same tensors.
_RENAMED = (
    (".attn.query.", ".self_attn.q_proj."), (".attn.key.", ".self_attn.k_proj."),
    (".attn.value.", ".self_attn.v_proj."), (".attn.out.", ".self_attn.out_proj."),
    (".attn_ln.", ".self_attn_layer_norm."), (".mlp_ln.", ".final_layer_norm."),
    (".mlp.0.", ".fc1."), (".mlp.2.", ".fc2."),
)  # fmt: skip


@dataclass(frozen=True)
class EncoderConfig:
    """What ``speech_tokenizer/config.json`` says.

    Attributes:
        width, heads, inner, bins, places: of the encoder: numbers of a frame, heads, of its MLPs, of a mel frame, and
            frames that have a place.
        layers: that are run.
        codes: of the codebook.
        pooled: frames that make one, behind layer ``pooled_behind``; 1 for none.
        highest: whether it is the highest of them (or their mean).
        causal: whether convolutions look back alone.
        block: frames of a block that sees itself and what is before it; None where every frame sees all.
    """

    width: int
    heads: int
    inner: int
    bins: int
    places: int
    layers: int
    codes: int
    pooled: int
    pooled_behind: int
    highest: bool
    causal: bool
    block: int | None


@dataclass(frozen=True, eq=False)
class SoundTokenizer:
    """The model."""

    config: EncoderConfig
    weights: Weights


def load_sounds(folder: Path) -> SoundTokenizer:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: a file is missing or damaged, or is not what isobit knows.
    """
    config = _config(folder / "config.json", read_json(folder / "config.json"))
    found = {_named(name): tensor for name, tensor in read_safetensors(folder, weight_files(folder), _FRONT).items()}
    beyond = tuple(f"layers.{at}." for at in range(config.layers, 256))
    run = {name: tensor for name, tensor in found.items() if not name.startswith(beyond)}
    return SoundTokenizer(config, kept(run, _shapes(config), folder, WHAT, _IDLE))


def _named(name: str) -> str:
    if name == "embed_positions":
        return "embed_positions.weight"
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name


def _config(path: Path, found: Mapping[str, Any]) -> EncoderConfig:
    def whole(key: str, usual: int | None = None) -> int:
        value = found.get(key)
        value = usual if value is None else value
        if type(value) is not int or not 0 < value < 1 << 20:
            raise CheckpointError(f"{key} must be a positive integer, not {short(found.get(key))}", file=path)
        return value

    for key in ("encoder_causal_attention", "quantize_causal_encoder", "scale_embedding"):
        if found.get(key):
            raise CheckpointError(f"{key} is {short(found[key])}, which isobit does not know", file=path)
    if found.get("activation_function", "gelu") != "gelu":
        raise CheckpointError(
            f"activation_function is {short(found['activation_function'])}: isobit has gelu", file=path
        )
    kind, none = found.get("pooling_type", "max"), found.get("pooling_kernel_size") is None
    if kind not in ("max", "avg"):
        raise CheckpointError(f"pooling_type is {short(kind)}: isobit has max and avg", file=path)
    layers = whole("quantize_position", 16)
    if layers > whole("encoder_layers"):
        raise CheckpointError(
            f"quantize_position is {layers}, and there are {found['encoder_layers']} layers", file=path
        )
    behind = found.get("pooling_position")
    if not none and not (type(behind) is int and 0 < behind <= layers):
        raise CheckpointError(f"pooling_position must be between 1 and {layers}, not {short(behind)}", file=path)
    width, heads = whole("d_model"), whole("encoder_attention_heads")
    if width % heads:
        raise CheckpointError(f"d_model is {width} and encoder_attention_heads {heads}", file=path)
    return EncoderConfig(
        width, heads, whole("encoder_ffn_dim"), whole("num_mel_bins", 128), whole("max_source_positions", 1500), layers,
        whole("quantize_vocab_size"), 1 if none else whole("pooling_kernel_size"), 0 if none else int(behind or 0),
        kind == "max", bool(found.get("encoder_causal_convolution")),
        None if found.get("quantize_causal_block_size") is None else whole("quantize_causal_block_size"),
    )  # fmt: skip


def _shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    width = config.width
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, config.bins, 3), "conv1.bias": (width,),
        "conv2.weight": (width, width, 3), "conv2.bias": (width,),
        "embed_positions.weight": (config.places, width),
        "embed_positions2.weight": (-(-config.places // config.pooled), width),
        "codebook.weight": (config.codes, width),
    }  # fmt: skip
    for at in range(config.layers):
        front = f"layers.{at}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{front}.self_attn.{part}.weight"] = (width, width)
            if part != "k_proj":
                shapes[f"{front}.self_attn.{part}.bias"] = (width,)
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{front}.{part}.weight": (width,), f"{front}.{part}.bias": (width,)}
        shapes |= {f"{front}.fc1.weight": (config.inner, width), f"{front}.fc1.bias": (config.inner,)}
        shapes |= {f"{front}.fc2.weight": (width, config.inner), f"{front}.fc2.bias": (width,)}
    return shapes


# ---------------------------------------------------------------------- from samples to tokens


@torch.inference_mode()
def sounds(model: SoundTokenizer, samples: NDArray[np.float64]) -> list[int]:
    """The tokens of samples at 16 kHz.

    Raises:
        UsageError: they last longer than 30 seconds, or than the model has places for; or not long enough for one.
    """
    config = model.config
    if len(samples) > LONGEST * LOW_RATE:
        raise UsageError(f"the voice lasts {len(samples) / LOW_RATE:.1f} seconds; {LONGEST:g} can be used: cut it")
    if len(samples) <= WHISPER_HOP * 2:
        raise UsageError(f"the voice is too short: it has {len(samples) / LOW_RATE:.3f} seconds")
    unit = WHISPER_HOP * _STRIDE * config.pooled  # samples of a token
    padded = np.zeros(-(-len(samples) // unit) * unit)
    padded[: len(samples)] = samples
    features = torch.from_numpy(whisper_mel(padded, config.bins))
    frames = -(-len(samples) // WHISPER_HOP)  # of the features that the samples reach into
    heard = torch.arange(features.shape[1])[::_STRIDE] < frames
    if len(heard) > config.places:
        raise UsageError(f"the voice makes {len(heard)} frames; the tokenizer of sounds has places for {config.places}")
    found, valid = encoded(model, features.to(model.weights["conv1.weight"].device), heard)
    tokens: list[int] = nearest(found, model.weights["codebook.weight"])[valid].tolist()
    return tokens


def encoded(model: SoundTokenizer, features: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
    """Frames behind the last layer that is run.

    Args:
        features: ``[bins, T]``.
        heard: bool ``[T / 2]``, which frames belong to the sound; the others are not attended to.

    Returns:
        (``[L, width]``, bool ``[L]``: which of them belong to the sound).
    """
    config, w = model.config, model.weights
    x, heard = features[None], heard.to(features.device)
    padding = 0 if config.causal else 1
    for name, stride in (("conv1", 1), ("conv2", _STRIDE)):
        x = F.pad(x, (2, 0)) if config.causal else x
        x = F.gelu(F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding=padding))
    x = x[0].T
    x = x + w["embed_positions.weight"][: len(x)]
    block = config.block
    seen = _seen(heard, block)
    for at in range(config.layers):
        x = _layer(w, f"layers.{at}", x, seen, config.heads)
        if at + 1 == config.pooled_behind:
            short_by = -len(x) % config.pooled
            x = F.pad(x.T[None], (0, short_by))
            x = (F.max_pool1d if config.highest else F.avg_pool1d)(x, config.pooled)[0].T
            heard = heard[:: config.pooled]
            block = None if block is None else max(1, block // config.pooled)
            seen = _seen(heard, block)
    return x, heard


def _seen(heard: Tensor, block: int | None) -> Tensor:
    """bool ``[T, T]``: which frames see which."""
    count = len(heard)
    if block is None:
        return heard[None].expand(count, -1)
    numbers = torch.arange(count, device=heard.device) // block
    return (numbers[:, None] >= numbers[None]) & heard[None]


def _layer(w: Weights, front: str, x: Tensor, seen: Tensor, heads: int) -> Tensor:
    normed = _norm(w, f"{front}.self_attn_layer_norm", x)
    q, k, v = (
        linear(w, f"{front}.self_attn.{part}", normed).view(len(x), heads, -1).transpose(0, 1)
        for part in ("q_proj", "k_proj", "v_proj")
    )
    mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen)[0]
    x = x + linear(w, f"{front}.self_attn.out_proj", mixed.transpose(0, 1).flatten(1))
    inner = F.gelu(linear(w, f"{front}.fc1", _norm(w, f"{front}.final_layer_norm", x)))
    return x + linear(w, f"{front}.fc2", inner)


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """The places ``[L]`` of the nearest rows of a codebook; of equally near ones the first."""
    return ((codebook**2).sum(1) - 2 * x @ codebook.T).argmin(1)
