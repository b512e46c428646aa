"""The models of speech once more, in numpy and float64, as their descriptions say it: one thing after the other."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

HEAD = 64


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.log1p(np.exp(x)))


def normed(x: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1, padding: int = 0,
              dilation: int = 1, groups: int = 1) -> np.ndarray:  # fmt: skip
    """``[C, T]``: every output by itself."""
    rows, per, kernel = weight.shape
    x = np.pad(x, ((0, 0), (padding, padding)))
    count = (x.shape[1] - dilation * (kernel - 1) - 1) // stride + 1
    out = np.zeros((rows, count))
    for row in range(rows):
        first = row // (rows // groups) * per
        for tap in range(kernel):
            begin = tap * dilation
            part = x[first : first + per, begin : begin + stride * (count - 1) + 1 : stride]
            out[row] += weight[row, :, tap] @ part
        out[row] += bias[row]
    return out


def transposed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """A transposed convolution: every input is spread over the kernel's length."""
    _, rows, kernel = weight.shape
    out = np.zeros((rows, (x.shape[1] - 1) * stride + kernel))
    for at in range(x.shape[1]):
        out[:, at * stride : at * stride + kernel] += np.einsum("i,iok->ok", x[:, at], weight)
    return out[:, padding : out.shape[1] - padding] + bias[:, None]


# ---------------------------------------------------------------------- the flow


def flow_velocity(tensors: dict[str, Tensor], x: np.ndarray, condition: np.ndarray, tokens: list[int], time: float,
                  speaker: np.ndarray | None, seen: np.ndarray | None) -> np.ndarray:  # fmt: skip
    """``[T, mel]`` of frames ``[T, mel]``."""
    w = {name.removeprefix("estimator."): each for name, each in arrays(tensors).items()}
    count = len(x)
    emb = np.stack([w["text_emb_layer.text_embed.weight"][tokens[at * len(tokens) // count]] for at in range(count)])
    width = emb.shape[1]
    for at in range(count):
        for pair in range(width // 2):
            angle = at * 10000 ** (-2 * pair / width)
            emb[at, pair] += math.cos(angle)
            emb[at, width // 2 + pair] += math.sin(angle)
    for number in range(2):
        front = f"text_emb_layer.text_blocks.{number}."
        inner = convolved(emb.T, w[front + "dwconv.weight"], w[front + "dwconv.bias"], padding=3, groups=width).T
        inner = normed(inner) * w[front + "norm.weight"] + w[front + "norm.bias"]
        inner = gelu(linear(w, front + "pwconv1", inner))
        lengths = np.sqrt((inner**2).sum(0))
        share = lengths / (lengths.mean() + 1e-6)
        inner = w[front + "grn.gamma"][0, 0] * inner * share + w[front + "grn.beta"][0, 0] + inner
        emb = emb + linear(w, front + "pwconv2", inner)
    turns = np.array([math.exp(-at * math.log(10000) / 127) for at in range(128)]) * 1000 * time
    when = linear(w, "time_embed.time_mlp.0", np.concatenate([np.sin(turns), np.cos(turns)]))
    when = linear(w, "time_embed.time_mlp.2", silu(when))
    when = when if speaker is None else np.concatenate([when, speaker])
    h = linear(w, "emb_concator.proj", np.concatenate([x, condition, emb], axis=1))
    near = h.T
    for number in (0, 2):
        front = f"emb_concator.conv_pos_embed.conv1d.{number}."
        near = mish(convolved(near, w[front + "weight"], w[front + "bias"], padding=15, groups=16))
    h = h + near.T
    for number in range(2):
        h = flow_block(w, f"transformer_blocks.{number}.", h, when, seen)
    scale, shift = np.split(linear(w, "norm_out.linear", silu(when)), 2)
    return linear(w, "proj_out", normed(h) * (1 + scale) + shift)


def flow_block(
    w: dict[str, np.ndarray], front: str, h: np.ndarray, when: np.ndarray, seen: np.ndarray | None
) -> np.ndarray:
    shift, scale, gate, shift_ff, scale_ff, gate_ff = np.split(linear(w, front + "attn_norm.linear", silu(when)), 6)
    x = normed(h) * (1 + scale) + shift
    q, k, v = (linear(w, front + f"attn.{one}", x) for one in ("to_q", "to_k", "to_v"))
    for each in (q, k):  # the first 64 numbers alone, in neighbouring pairs
        for at in range(len(each)):
            for pair in range(HEAD // 2):
                angle = at * 10000 ** (-2 * pair / HEAD)
                one, two = each[at, 2 * pair], each[at, 2 * pair + 1]
                each[at, 2 * pair] = one * math.cos(angle) - two * math.sin(angle)
                each[at, 2 * pair + 1] = two * math.cos(angle) + one * math.sin(angle)
    mixed = np.zeros_like(v)
    for head in range(v.shape[1] // HEAD):
        part = slice(head * HEAD, (head + 1) * HEAD)
        logits = q[:, part] @ k[:, part].T / math.sqrt(HEAD)
        logits = logits if seen is None else np.where(seen, logits, -np.inf)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        mixed[:, part] = weights / weights.sum(1, keepdims=True) @ v[:, part]
    h = h + gate * linear(w, front + "attn.to_out.0", mixed)
    x = normed(h) * (1 + scale_ff) + shift_ff
    return h + gate_ff * linear(w, front + "ff.ff.2", gelu_tanh(linear(w, front + "ff.ff.0.0", x)))


# ---------------------------------------------------------------------- the vocoder


def multiplied(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Weights of lengths and directions, row by row."""
    found = arrays(tensors)
    for one, two in (
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        (".weight_g", ".weight_v"),
    ):
        for name in [name for name in found if name.endswith(one)]:
            front = name.removesuffix(one)
            lengths, rows = found.pop(name), found.pop(front + two)
            found[front + ".weight"] = np.stack([
                length.item() * row / np.sqrt((row**2).sum()) for length, row in zip(lengths, rows, strict=True)
            ])  # fmt: skip
    return found


def snake(x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return x + np.sin(x * alpha[:, None]) ** 2 / (alpha[:, None] + 1e-9)


def resonated(w: dict[str, np.ndarray], front: str, x: np.ndarray) -> np.ndarray:
    for at, dilation in enumerate((1, 3, 5)):
        kernel = w[f"{front}.convs1.{at}.weight"].shape[2]
        inner = snake(x, w[f"{front}.activations1.{at}.alpha"])
        inner = convolved(inner, w[f"{front}.convs1.{at}.weight"], w[f"{front}.convs1.{at}.bias"],
                          padding=(kernel * dilation - dilation) // 2, dilation=dilation)  # fmt: skip
        inner = snake(inner, w[f"{front}.activations2.{at}.alpha"])
        inner = convolved(
            inner, w[f"{front}.convs2.{at}.weight"], w[f"{front}.convs2.{at}.bias"], padding=(kernel - 1) // 2
        )
        x = x + inner
    return x


def hertz(w: dict[str, np.ndarray], mel: np.ndarray) -> np.ndarray:
    x = mel.T
    for layer in (0, 2, 4, 6, 8):
        front = f"f0_predictor.condnet.{layer}"
        x = convolved(x, w[f"{front}.weight"], w[f"{front}.bias"], padding=1)
        x = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
    return np.abs(linear(w, "f0_predictor.classifier", x.T))[:, 0]


def throat(w: dict[str, np.ndarray], pitch: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """At the rate of samples from the first on, with a random phase of each harmonic at the first one."""
    interpolate = torch.nn.functional.interpolate
    every = np.repeat(pitch, 480)
    turns = torch.from_numpy(every[:, None] * np.arange(1, 10) / 24000 % 1)
    turns[0, 1:] += torch.rand(8, generator=torch.Generator().manual_seed(1)).double()  # what it is makes no difference
    slow = interpolate(turns.T[None], scale_factor=1 / 480, mode="linear")
    phase = interpolate(slow.cumsum(2) * 2 * math.pi * 480, scale_factor=480.0, mode="linear")[0].T.numpy()
    voiced = (every > 10).astype(float)[:, None]
    waves = 0.1 * np.sin(phase) * voiced + (voiced * 0.003 + (1 - voiced) * 0.1 / 3) * noise
    return np.tanh(linear(w, "m_source.l_linear", waves))[:, 0]


def vocoded(tensors: dict[str, Tensor], mel: np.ndarray, noise: np.ndarray) -> np.ndarray:
    w = multiplied(tensors)
    heard = throat(w, hertz(w, mel), noise)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(16) / 16)
    padded = np.pad(heard, 8, mode="reflect")
    spectrum = np.stack([np.fft.rfft(padded[at : at + 16] * window) for at in range(0, len(padded) - 15, 4)], axis=1)
    beside = np.concatenate([spectrum.real, spectrum.imag])
    x = convolved(mel.T, w["conv_pre.weight"], w["conv_pre.bias"], padding=3)
    stages = ((8, 16, 15, 7), (5, 11, 3, 1), (3, 7, 1, 0))
    for at, (times, kernel, down, padding) in enumerate(stages):
        x = transposed(
            np.where(x > 0, x, 0.1 * x), w[f"ups.{at}.weight"], w[f"ups.{at}.bias"], times, (kernel - times) // 2
        )
        if at == 2:
            x = np.concatenate([x[:, 1:2], x], axis=1)
        si = convolved(beside, w[f"source_downs.{at}.weight"], w[f"source_downs.{at}.bias"], down, padding)
        x = x + resonated(w, f"source_resblocks.{at}", si)
        x = sum(resonated(w, f"resblocks.{3 * at + one}", x) for one in range(3)) / 3
    x = convolved(np.where(x > 0, x, 0.01 * x), w["conv_post.weight"], w["conv_post.bias"], padding=3)
    size, angle = np.minimum(np.exp(x[:9]), 100), np.sin(x[9:])
    frames = np.fft.irfft(size * np.exp(1j * angle), 16, axis=0)
    out, weight = np.zeros(4 * (frames.shape[1] - 1) + 16), np.zeros(4 * (frames.shape[1] - 1) + 16)
    for at in range(frames.shape[1]):
        out[4 * at : 4 * at + 16] += frames[:, at] * window
        weight[4 * at : 4 * at + 16] += window**2
    return np.clip(out[8:-8] / weight[8:-8], -0.99, 0.99)
