"""From sounds to a mel spectrogram: a diffusion transformer whose velocity is followed from noise, in float32.

Token ids become frames (each of them as often as frames go into a token), gain the cosines and sines of their places
and go through ConvNeXt-V2 blocks. Beside the frames so far and those of the reference they enter transformer blocks
whose norms are shifted, scaled and gated by time and speaker. Rotary embeddings turn the first head alone: the
published model was trained so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.errors import CheckpointError
from isobit.speech.blocks import visible
from isobit.speech.flow_config import FlowConfig
from isobit.speech.weights import Weights, counted, kept, linear, read_pt, size

HEAD, TIME, SPEAKER = 64, 256, 192
KERNEL, GROUPS, ROUND = 31, 16, 7  # of the convolutions over places, and of ConvNeXt's
_PLACES = 4096
WHAT = "flow of GLM-TTS"


@dataclass(frozen=True, eq=False)
class Flow:
    """The model.

    Attributes:
        config: of its file.
        weights: by the names of its file, without ``estimator.``.
        depth: transformer blocks.
        rounds: ConvNeXt blocks.
        affine: of the speaker, where it goes in beside the frames.
    """

    config: FlowConfig
    weights: Weights
    depth: int
    rounds: int
    affine: Weights = field(default_factory=dict)

    @property
    def sounds(self) -> int:
        """Token ids that there are."""
        return int(self.weights["text_emb_layer.text_embed.weight"].shape[0])


def load_flow(path: Path, config: FlowConfig) -> Flow:
    """The flow of a file.

    Raises:
        CheckpointError: it is damaged, or not what ``config`` says.
    """
    everything = read_pt(path)
    found = {n.removeprefix("estimator."): t for n, t in everything.items() if n.startswith("estimator.")}
    shapes = shapes_of(found, config, path)
    weights = kept(found, shapes, path, WHAT, (".inv_freq", ".freqs_cis", ".scale"))
    beside = {name: tensor for name, tensor in everything.items() if not name.startswith("estimator.")}
    wanted = {} if not config.beside else {
        "spk_embed_affine_layer.weight": (config.beside, SPEAKER), "spk_embed_affine_layer.bias": (config.beside,),
    }  # fmt: skip
    affine = kept(beside, wanted, path, WHAT)
    return Flow(
        config,
        weights,
        counted(weights, "transformer_blocks."),
        counted(weights, "text_emb_layer.text_blocks."),
        affine,
    )


def shapes_of(found: Weights, config: FlowConfig, path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a flow of the size that some of them say."""
    mel = config.mel
    dim = size(found, "proj_out.weight", 1, path, WHAT)
    sounds, text = (size(found, "text_emb_layer.text_embed.weight", axis, path, WHAT) for axis in (0, 1))
    depth, rounds = counted(found, "transformer_blocks."), counted(found, "text_emb_layer.text_blocks.")
    if dim % HEAD or dim % GROUPS or not depth or text % 2:
        raise CheckpointError(
            f"is no {WHAT} that isobit knows: {depth} blocks of width {dim}, heads of {HEAD}", file=path
        )
    hidden = size(found, "transformer_blocks.0.ff.ff.0.0.weight", 0, path, WHAT)
    speaker = SPEAKER if config.speaker_in_norms else 0
    shapes = _linear("time_embed.time_mlp.0", dim, TIME) | _linear("time_embed.time_mlp.2", dim, dim)
    shapes |= {"text_emb_layer.text_embed.weight": (sounds, text)}
    for at in range(rounds):
        front = f"text_emb_layer.text_blocks.{at}"
        inner = size(found, f"{front}.pwconv1.weight", 0, path, WHAT)
        shapes |= {f"{front}.dwconv.weight": (text, 1, ROUND), f"{front}.dwconv.bias": (text,)}
        shapes |= {f"{front}.norm.{part}": (text,) for part in ("weight", "bias")}
        shapes |= {f"{front}.grn.{part}": (1, 1, inner) for part in ("gamma", "beta")}
        shapes |= _linear(f"{front}.pwconv1", inner, text) | _linear(f"{front}.pwconv2", text, inner)
    shapes |= _linear("emb_concator.proj", dim, 2 * mel + config.beside + text)
    for at in (0, 2):
        front = f"emb_concator.conv_pos_embed.conv1d.{at}"
        shapes |= {f"{front}.weight": (dim, dim // GROUPS, KERNEL), f"{front}.bias": (dim,)}
    for at in range(depth):
        front = f"transformer_blocks.{at}"
        shapes |= _linear(f"{front}.attn_norm.linear", 6 * dim, dim + speaker)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= _linear(f"{front}.attn.{part}", dim, dim)
        shapes |= _linear(f"{front}.ff.ff.0.0", hidden, dim) | _linear(f"{front}.ff.ff.2", dim, hidden)
    return shapes | _linear("norm_out.linear", 2 * dim, dim + speaker) | _linear("proj_out", mel, dim)


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


# ---------------------------------------------------------------------- one velocity


def embedded(flow: Flow, tokens: Tensor, frames: int) -> Tensor:
    """Sounds as the transformer reads them.

    Args:
        tokens: int64 ``[B, L]``.
        frames: T, that they are spread over.

    Returns:
        ``[B, T, D]``.
    """
    w = flow.weights
    places = torch.arange(frames, device=tokens.device)
    x = F.embedding(tokens[:, places * tokens.shape[1] // frames], w["text_emb_layer.text_embed.weight"])
    x = x + _waves(places.clamp(max=_PLACES - 1), x.shape[2])
    for at in range(flow.rounds):
        x = _convolved(w, f"text_emb_layer.text_blocks.{at}", x)
    return x


def _waves(places: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of places at falling frequencies ``[T, width]``."""
    turns = 10000.0 ** -(torch.arange(0, width, 2, device=places.device).float() / width)
    angles = places.float()[:, None] * turns
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _convolved(w: Weights, front: str, x: Tensor) -> Tensor:
    """A ConvNeXt-V2 block; its response norm is over all frames."""
    width = x.shape[2]
    inner = F.conv1d(
        x.transpose(1, 2), w[f"{front}.dwconv.weight"], w[f"{front}.dwconv.bias"], padding=ROUND // 2, groups=width
    ).transpose(1, 2)
    inner = F.layer_norm(inner, (width,), w[f"{front}.norm.weight"], w[f"{front}.norm.bias"], 1e-6)
    inner = F.gelu(linear(w, f"{front}.pwconv1", inner))
    strength = inner.norm(dim=1, keepdim=True)
    strength = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
    inner = w[f"{front}.grn.gamma"] * (inner * strength) + w[f"{front}.grn.beta"] + inner
    return x + linear(w, f"{front}.pwconv2", inner)


def moment(flow: Flow, time: Tensor, speaker: Tensor | None) -> Tensor:
    """What shifts, scales and gates the norms at a time ``[B]``, of a speaker ``[B, 192]``: ``[B, D]``."""
    w, half = flow.weights, TIME // 2
    turns = torch.exp(torch.arange(half, device=time.device).float() * -(math.log(10000) / (half - 1)))
    angles = 1000 * time[:, None] * turns
    x = linear(w, "time_embed.time_mlp.0", torch.cat((angles.sin(), angles.cos()), dim=-1))
    x = linear(w, "time_embed.time_mlp.2", F.silu(x))
    return x if speaker is None else torch.cat((x, speaker), dim=-1)


def velocity(flow: Flow, x: Tensor, condition: Tensor, text: Tensor, when: Tensor, seen: Tensor | None) -> Tensor:
    """Where the frames go at one time.

    Args:
        x: the frames so far ``[B, T, mel]``.
        condition: those of the reference, zeros behind them, and the speaker where it goes in there ``[B, T, C]``.
        text: of :func:`embedded`.
        when: of :func:`moment`.
        seen: bool ``[T, T]``; None where every frame sees all.

    Returns:
        ``[B, T, mel]``.
    """
    w = flow.weights
    x = linear(w, "emb_concator.proj", torch.cat((x, condition, text), dim=-1))
    near = x.transpose(1, 2)
    for at in (0, 2):
        front = f"emb_concator.conv_pos_embed.conv1d.{at}"
        near = F.conv1d(near, w[f"{front}.weight"], w[f"{front}.bias"], padding=KERNEL // 2, groups=GROUPS)
        near = F.mish(near)
    x = near.transpose(1, 2) + x
    angles = _rotary(x.shape[1], x.device)
    for at in range(flow.depth):
        x = _block(w, f"transformer_blocks.{at}", x, when, angles, seen)
    scale, shift = linear(w, "norm_out.linear", F.silu(when))[:, None].chunk(2, dim=-1)
    return linear(w, "proj_out", F.layer_norm(x, x.shape[2:], eps=1e-6) * (1 + scale) + shift)


def _block(w: Weights, front: str, x: Tensor, when: Tensor, angles: Tensor, seen: Tensor | None) -> Tensor:
    parts = linear(w, f"{front}.attn_norm.linear", F.silu(when))[:, None].chunk(6, dim=-1)
    shift, scale, gate, shift_inner, scale_inner, gate_inner = parts
    normed = F.layer_norm(x, x.shape[2:], eps=1e-6) * (1 + scale) + shift
    x = x + gate * _attended(w, f"{front}.attn", normed, angles, seen)
    normed = F.layer_norm(x, x.shape[2:], eps=1e-6) * (1 + scale_inner) + shift_inner
    inner = F.gelu(linear(w, f"{front}.ff.ff.0.0", normed), approximate="tanh")
    return x + gate_inner * linear(w, f"{front}.ff.ff.2", inner)


def _attended(w: Weights, front: str, x: Tensor, angles: Tensor, seen: Tensor | None) -> Tensor:
    q, k, v = (linear(w, f"{front}.{part}", x) for part in ("to_q", "to_k", "to_v"))
    q, k, v = (
        each.view(*x.shape[:2], -1, HEAD).transpose(1, 2) for each in (_turned(q, angles), _turned(k, angles), v)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return linear(w, f"{front}.to_out.0", mixed.transpose(1, 2).flatten(2))


def _rotary(frames: int, device: torch.device) -> Tensor:
    turns = 10000.0 ** -(torch.arange(0, HEAD, 2, device=device).float() / HEAD)
    return torch.arange(frames, device=device).float()[:, None] * turns  # [T, HEAD / 2]


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Neighbours of the first :data:`HEAD` of all heads' numbers are turned; the others stay."""
    even, odd = x[..., 0:HEAD:2], x[..., 1:HEAD:2]
    turned = torch.stack((even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()), dim=-1)
    return torch.cat((turned.flatten(-2), x[..., HEAD:]), dim=-1)


# ---------------------------------------------------------------------- from noise to frames


@dataclass(frozen=True, eq=False)
class Reference:
    """What the flow takes of a voice.

    Attributes:
        sounds: int64 ``[L]``.
        mel: ``[T, mel]``, 50 frames a second.
        speaker: ``[192]``.
    """

    sounds: Tensor
    mel: Tensor
    speaker: Tensor


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames, and what they were at each step on the way.

    Attributes:
        mel: ``[T, mel]``, without those of the reference.
        states: before each step ``[T + reference, mel]``.
    """

    mel: Tensor
    states: tuple[Tensor, ...]


@torch.inference_mode()
def frames(
    flow: Flow,
    sounds: Sequence[int],
    voice: Reference,
    noise: Tensor,
    *,
    steps: int = 10,
    pattern: Sequence[int] | None = None,
    before: tuple[tuple[Tensor, ...], int] | None = None,
) -> Frames:
    """The frames of some sounds, in a voice.

    Args:
        sounds: one or more.
        voice: whose.
        noise: ``[T', mel]``, as many frames as reference and sounds have, or more.
        steps: of Euler's method.
        pattern: sizes of blocks in tokens, the first one the reference's; None where every frame sees all.
        before: states of an earlier call with fewer sounds, and how many frames of them hold.
    """
    config, device = flow.config, voice.mel.device
    tokens = torch.cat((voice.sounds, torch.tensor(list(sounds), device=device)))[None]
    count = config.frames(tokens.shape[1])
    given = min(count, len(voice.mel))
    known = torch.zeros(1, count, config.mel, device=device)
    known[0, :given] = voice.mel[len(voice.mel) - given :]
    condition, speaker = _conditions(flow, known, voice.speaker)
    text = embedded(flow, tokens, count).expand(2, -1, -1)
    if config.sounds_guided:
        text = torch.cat((text[:1], embedded(flow, torch.zeros_like(tokens), count)))
    seen = None if pattern is None else visible(pattern, count).to(device)
    times = (
        1 - torch.cos(torch.linspace(0, 1, steps + 1) * (0.5 * math.pi))
        if config.cosine
        else torch.linspace(0, 1, steps + 1)
    )
    x, states = noise[:count].to(device, torch.float32), []
    for step in range(steps):
        if before is not None:
            fixed = min(before[1], count, len(before[0][step]))
            x = torch.cat((before[0][step][:fixed], x[fixed:]))
        states.append(x)
        when = moment(flow, times[step].to(device).expand(2), speaker)
        sure, free = velocity(flow, x.expand(2, -1, -1), condition, text, when, seen)
        x = x + float(times[step + 1] - times[step]) * ((1 + config.guidance) * sure - config.guidance * free)
    return Frames(x[given:], tuple(states))


def _conditions(flow: Flow, known: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is told of reference and speaker; and, behind it, of none."""
    one = F.normalize(speaker[None], dim=1)
    if flow.config.beside:
        beside = linear(flow.affine, "spk_embed_affine_layer", one)
        known = torch.cat((known, beside[:, None].expand(-1, known.shape[1], -1)), dim=-1)
    condition = torch.cat((known, torch.zeros_like(known)))
    return condition, torch.cat((one, torch.zeros_like(one))) if flow.config.speaker_in_norms else None
