"""HiFT: from a mel spectrogram to samples, by a source of sines and noise and an inverse Fourier transform, in float32.

480 samples of 24000 a second for each frame: 8 * 5 * 3 by transposed convolutions, 4 by the transform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.speech.weights import Weights, kept, linear, read_pt, size

WHAT = "HiFT vocoder"
RATE, HOP = 24000, 480  # samples a second, and of a frame
UPS = ((8, 16), (5, 11), (3, 7))  # times and kernel of each stage
DOWNS = (15, 3, 1)  # what brings the source to the rate of each stage
KERNELS, SOURCE_KERNELS = (3, 7, 11), (7, 7, 11)  # of the residual blocks of a stage, and of its source's
DILATIONS = (1, 3, 5)
TRANSFORM, STRIDE = 16, 4
HARMONICS = 9
_PITCH_LAYERS = (0, 2, 4, 6, 8)
_SINES, _NOISE, _VOICED = 0.1, 0.003, 10.0  # amplitudes, and the lowest pitch that counts as voiced in Hz
_LOUDEST, _LARGEST = 0.99, 100.0


@dataclass(frozen=True, eq=False)
class Vocoder:
    """The model.

    Attributes:
        weights: by the names of its file; norms of weights are multiplied out.
        mel: numbers of a frame.
    """

    weights: Weights
    mel: int


def load_vocoder(path: Path) -> Vocoder:
    """The vocoder of a file.

    Raises:
        CheckpointError: it is damaged, or no HiFT of 24 kHz.
    """
    found = whole(read_pt(path))
    weights = kept(found, shapes_of(found, path), path, WHAT)
    return Vocoder(weights, int(weights["conv_pre.weight"].shape[1]))


def whole(found: Weights) -> dict[str, Tensor]:
    """Weights in place of their directions and lengths, by both names that torch has for these."""
    made = dict(found)
    for lengths, directions in ((".weight_g", ".weight_v"), _PARAMETRIZED):
        for name in [name for name in made if name.endswith(lengths)]:
            front = name.removesuffix(lengths)
            if front + directions in made:
                length, direction = made.pop(name), made.pop(front + directions)
                axes = tuple(range(1, direction.dim()))
                made[f"{front}.weight"] = direction * (length / direction.norm(dim=axes, keepdim=True))
    return made


_PARAMETRIZED = (".parametrizations.weight.original0", ".parametrizations.weight.original1")


def shapes_of(found: Weights, path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a vocoder of the size that some of them say."""
    width, mel = (size(found, "conv_pre.weight", axis, path, WHAT) for axis in (0, 1))
    pitch = size(found, "f0_predictor.classifier.weight", 1, path, WHAT)
    parts = TRANSFORM + 2
    shapes = _convolution("conv_pre", width, mel, 7) | _convolution("conv_post", parts, width >> len(UPS), 7)
    shapes |= {"m_source.l_linear.weight": (1, HARMONICS), "m_source.l_linear.bias": (1,)}
    for at, layer in enumerate(_PITCH_LAYERS):
        shapes |= _convolution(f"f0_predictor.condnet.{layer}", pitch, pitch if at else mel, 3)
    shapes |= {"f0_predictor.classifier.weight": (1, pitch), "f0_predictor.classifier.bias": (1,)}
    for at, ((_, kernel), down, source) in enumerate(zip(UPS, DOWNS, SOURCE_KERNELS, strict=True)):
        above, here = width >> at, width >> (at + 1)
        shapes |= {f"ups.{at}.weight": (above, here, kernel), f"ups.{at}.bias": (here,)}
        shapes |= _convolution(f"source_downs.{at}", here, parts, 2 * down if down > 1 else 1)
        shapes |= _residual(f"source_resblocks.{at}", here, source)
        for number, kernel in enumerate(KERNELS):
            shapes |= _residual(f"resblocks.{at * len(KERNELS) + number}", here, kernel)
    return shapes


def _convolution(name: str, rows: int, columns: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns, kernel), f"{name}.bias": (rows,)}


def _residual(name: str, width: int, kernel: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for at in range(len(DILATIONS)):
        for part in ("1", "2"):
            shapes |= _convolution(f"{name}.convs{part}.{at}", width, width, kernel)
            shapes[f"{name}.activations{part}.{at}.alpha"] = (width,)
    return shapes


# ---------------------------------------------------------------------- from frames to samples


def pitch(weights: Weights, mel: Tensor) -> Tensor:
    """Hz of each frame ``[T]``, of frames ``[mel, T]``."""
    x = mel[None]
    for layer in _PITCH_LAYERS:
        front = f"f0_predictor.condnet.{layer}"
        x = F.elu(F.conv1d(x, weights[f"{front}.weight"], weights[f"{front}.bias"], padding=1))
    return linear(weights, "f0_predictor.classifier", x[0].T)[:, 0].abs()


def source(weights: Weights, hertz: Tensor, noise: Tensor) -> Tensor:
    """What the throat does: sines of the pitch and its harmonics where there is one, noise everywhere.

    Args:
        hertz: ``[T]``.
        noise: normal, ``[480 * T, 9]``.

    Returns:
        ``[480 * T]``.
    """
    turns = hertz.double()[:, None] * torch.arange(1, HARMONICS + 1, device=hertz.device) / RATE % 1
    phase = turns.cumsum(0) * (2 * math.pi * HOP)  # at the middle of each frame; between them in a straight line
    phase = F.interpolate(phase.T[None], scale_factor=float(HOP), mode="linear")[0].T
    sines = phase.sin().float() * _SINES
    voiced = (hertz > _VOICED).float().repeat_interleave(HOP)[:, None]
    heard = sines * voiced + (voiced * _NOISE + (1 - voiced) * (_SINES / 3)) * noise
    return linear(weights, "m_source.l_linear", heard)[:, 0].tanh()


def _snake(x: Tensor, alpha: Tensor) -> Tensor:
    alpha = alpha[None, :, None]
    return x + (x * alpha).sin() ** 2 / (alpha + 1e-9)


def _resonated(w: Weights, name: str, x: Tensor) -> Tensor:
    kernel = w[f"{name}.convs1.0.weight"].shape[2]
    for at, dilation in enumerate(DILATIONS):
        inner = x
        for part, reach in (("1", dilation), ("2", 1)):
            inner = _snake(inner, w[f"{name}.activations{part}.{at}.alpha"])
            front = f"{name}.convs{part}.{at}"
            padding = (kernel - 1) * reach // 2
            inner = F.conv1d(inner, w[f"{front}.weight"], w[f"{front}.bias"], padding=padding, dilation=reach)
        x = x + inner
    return x


def _window(device: torch.device) -> Tensor:
    return torch.hann_window(TRANSFORM, device=device)


@torch.inference_mode()
def samples(vocoder: Vocoder, mel: Tensor, noise: Tensor) -> Tensor:
    """Samples of some frames, from -0.99 to 0.99.

    Args:
        mel: ``[T, mel]``, T of 1 or more.
        noise: normal, ``[480 * T, 9]`` or more rows.

    Returns:
        ``[480 * T]``.
    """
    w, frames = vocoder.weights, mel.T
    throat = source(w, pitch(w, frames), noise[: HOP * mel.shape[0]].to(mel.device, torch.float32))
    spectrum = torch.stft(
        throat, TRANSFORM, STRIDE, TRANSFORM, _window(mel.device), center=True, pad_mode="reflect", return_complex=True
    )
    heard = torch.cat((spectrum.real, spectrum.imag))[None]
    x = F.conv1d(frames[None], w["conv_pre.weight"], w["conv_pre.bias"], padding=3)
    for at, ((times, kernel), down) in enumerate(zip(UPS, DOWNS, strict=True)):
        x = F.leaky_relu(x, 0.1)
        x = F.conv_transpose1d(x, w[f"ups.{at}.weight"], w[f"ups.{at}.bias"], times, padding=(kernel - times) // 2)
        if at == len(UPS) - 1:
            x = F.pad(x, (1, 0), mode="reflect")
        name = f"source_downs.{at}"
        beside = F.conv1d(heard, w[f"{name}.weight"], w[f"{name}.bias"], down, padding=down // 2)
        x = x + _resonated(w, f"source_resblocks.{at}", beside)
        first = at * len(KERNELS)
        x = torch.stack([_resonated(w, f"resblocks.{first + one}", x) for one in range(len(KERNELS))]).mean(0)
    x = F.conv1d(F.leaky_relu(x), w["conv_post.weight"], w["conv_post.bias"], padding=3)[0]
    size = x[: TRANSFORM // 2 + 1].exp().clamp(max=_LARGEST)
    angle = x[TRANSFORM // 2 + 1 :].sin()
    made = torch.istft(torch.polar(size, angle), TRANSFORM, STRIDE, TRANSFORM, _window(mel.device))
    return made.clamp(-_LOUDEST, _LOUDEST)
