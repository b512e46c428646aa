"""What GLM-ASR hears with: an encoder like Whisper's, half a minute at a time, and a projector behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isobit.checkpoint.files import is_there
from isobit.checkpoint.jsonfile import read_json
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, UsageError
from isobit.media.sounds import RATES
from isobit.models.archs.glmasr import MERGED, Encoder, encoder
from isobit.models.encoders.processors import TOGETHER, settings
from isobit.models.encoders.weights import filled
from isobit.models.fields import Fields
from isobit.models.media import Hearing, Kind, MediaPrompt, Medium, Piece, Placed, Sound

INSTRUCTION = "Please transcribe this audio into text"
LONGEST = 655  # seconds: 8192 tokens nearly
_LARGEST = 1 << 20  # bytes of a file of settings
_PARTS = ("audio_tower", "multi_modal_projector")


@dataclass(frozen=True)
class Spectrogram:
    """How a sound becomes what the encoder reads.

    Attributes:
        bands: of frequencies.
        rate: samples a second.
        hop: samples from a frame to the next.
        window: samples of a frame.
        seconds: of what is encoded at once; what is shorter is filled up with silence.
        padding: the value of that.
    """

    bands: int
    rate: int = 16_000
    hop: int = 160
    window: int = 400
    seconds: int = 30
    padding: float = 0.0

    @property
    def chunk(self) -> int:
        """Samples of what is encoded at once."""
        return self.rate * self.seconds

    @cached_property
    def extractor(self) -> Any:
        """Of transformers."""
        from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

        made: Any = WhisperFeatureExtractor
        return made(
            feature_size=self.bands, sampling_rate=self.rate, hop_length=self.hop, chunk_length=self.seconds,
            n_fft=self.window, padding_value=self.padding, return_attention_mask=True,
        )  # fmt: skip


class GlmAsrTower:
    """Hears: see :class:`isobit.models.media.Tower`.

    Args:
        ck: the checkpoint.
        dtype, device: of the decoder.

    Attributes:
        kinds: sounds.
        placeholders: the token of a part of a sound.
        hearing: what transcribing asks of it.

    Raises:
        ModelError: the configuration asks for what is not implemented.
        CheckpointError: tensors are missing or misshapen, or a file beside them is wrong.
        UsageError: transformers is not installed.
    """

    kinds: frozenset[Kind] = frozenset({"audio"})

    def __init__(self, ck: Checkpoint, dtype: torch.dtype, device: torch.device | None = None) -> None:
        self._dtype, self._device = dtype, device
        keys = Fields(ck.config)
        text = keys.section("text_config") or Fields({})
        vocabulary, self._width = text.integer("vocab_size", 59264), text.integer("hidden_size", 2048)
        self._encoder = encoder(keys, vocabulary)
        keys.check()
        self.placeholders = frozenset({self._encoder.token})
        self._spectrogram = _spectrogram(ck.path, self._encoder.bands)
        self.hearing = _hearing(ck.path, self._spectrogram)
        self._module = _module(ck, self._encoder, self._width, dtype, device)

    def messages(self, messages: Sequence[Mapping[str, Any]], media: Sequence[Medium]) -> Sequence[Mapping[str, Any]]:
        """Messages as transformers hands them to the template; takes and raises what ``Tower.messages`` does.

        A part that is a sound has it in its key ``audio``: templates ask for that, or for the type.
        """
        for medium in media:
            if medium.kind not in self.kinds:
                raise UsageError(f"this model hears and does not see: it takes sounds, and no {medium.kind}")
        found = sum(_sounds(message.get("content")) for message in messages)
        if found != len(media):
            raise UsageError(f"the messages have {found} parts of type audio, and there are {len(media)} sounds")
        return [{**message, "content": _with_keys(message.get("content"))} for message in messages]

    def prompt(self, ids: Sequence[int], media: Sequence[Medium]) -> MediaPrompt:
        """The prompt with as many tokens as a sound has, where there was one for it."""
        token = self._encoder.token
        if (found := sum(id == token for id in ids)) != len(media):
            raise UsageError(
                f"the prompt has {found} places for sounds (token {token}), and there are {len(media)} sounds"
            )
        pieces = iter([self.piece(medium) for medium in media])
        made: list[int] = []
        placed: list[Placed] = []
        for id in ids:
            if id != token:
                made.append(id)
                continue
            piece = next(pieces)
            placed.append(Placed(piece, tuple(range(len(made), len(made) + piece.tokens))))
            made += [token] * piece.tokens
        return MediaPrompt(tuple(made), tuple(placed))

    def piece(self, medium: Medium) -> Piece:
        """A sound as the encoder reads it: spectrograms ``[parts, bands, frames]``, and how many of the frames count.

        Raises:
            UsageError: it is no sound, empty, too short or too long, or its samples are no numbers.
        """
        if not isinstance(medium, Sound):
            raise UsageError(f"this model hears and does not see: it takes sounds, and no {medium.kind}")
        form = self._spectrogram
        samples = resampled(medium, form.rate)
        if len(samples) > self.hearing.longest * form.rate:
            raise UsageError(
                f"a sound lasts {len(samples) / form.rate:.1f} seconds, and this model hears {self.hearing.longest:g}"
                " at most: cut it (`isobit transcribe` does that by itself)"
            )
        parts = [samples[begin : begin + form.chunk] for begin in range(0, len(samples), form.chunk)]
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
            found = form.extractor(parts, sampling_rate=form.rate, return_attention_mask=True, return_tensors="pt")
        if not bool(found["input_features"].isfinite().all()):
            raise UsageError("a sound has samples that are too large to be heard: full scale is 1")
        frames = found["attention_mask"].sum(-1).to(torch.int64)
        tokens = sum(_tokens(int(one)) for one in frames)
        if tokens == 0:
            raise UsageError(f"a sound lasts {len(samples) / form.rate:.3f} seconds, which is too short to be heard")
        return Piece.of("audio", {"input_features": found["input_features"].float(), "frames": frames}, tokens)

    def encode(self, piece: Piece) -> Tensor:
        """Embeddings ``[piece.tokens, hidden]``; half a minute is encoded by itself, whatever comes beside it."""
        features, frames = piece.inputs["input_features"], piece.inputs["frames"]
        with torch.no_grad():
            heard = [self._heard(features[at : at + 1], int(frames[at])) for at in range(len(frames))]
        return torch.cat(heard)

    def _heard(self, features: Tensor, frames: int) -> Tensor:
        states = self._module["audio_tower"](features.to(self._device, self._dtype)).last_hidden_state
        merged = states.reshape(-1, MERGED * states.shape[-1])
        found: Tensor = self._module["multi_modal_projector"](merged[: _tokens(frames)])
        return found


def resampled(sound: Sound, rate: int) -> NDArray[np.float32]:
    """The samples of a sound at another rate, as librosa computes them for transformers (soxr in high quality).

    Raises:
        UsageError: it has no samples, some are no numbers, or its rate is none that a sound has; or soxr is missing.
    """
    samples = np.asarray(sound.samples, np.float32)
    if samples.ndim != 1 or len(samples) == 0:
        raise UsageError("a sound has no samples: give one channel of at least one sample")
    if not RATES[0] <= sound.rate <= RATES[1]:
        raise UsageError(f"a sound has {sound.rate} samples a second; {RATES[0]} to {RATES[1]} can be heard")
    if not bool(np.isfinite(samples).all()):
        raise UsageError("a sound has samples that are NaN or infinite: it is damaged")
    if sound.rate == rate:
        return samples
    try:
        import soxr
    except ImportError:
        reason = f"a sound has {sound.rate} samples a second and the model hears {rate}"
        raise UsageError(f"{reason}, and soxr is not installed: pip install 'isobit[media]'") from None
    wanted = math.ceil(len(samples) * rate / sound.rate)
    made = np.asarray(soxr.resample(samples, sound.rate, rate, quality="HQ"), np.float32)[:wanted]
    return np.pad(made, (0, wanted - len(made)))


def _tokens(frames: int) -> int:
    """Tokens of so many frames: one convolution keeps them, one halves them, four become one."""
    halved = (frames - 1) // 2 + 1
    return halved // MERGED


def _with_keys(content: Any) -> Any:
    """The content of a message, its sounds with the key that they have in transformers."""
    if not isinstance(content, list | tuple):
        return content
    return [{"audio": "sound", **part} if _is_sound(part) else part for part in content]


def _is_sound(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "audio"


def _sounds(content: Any) -> int:
    """Parts of a message that are sounds."""
    if not isinstance(content, list | tuple):
        return 0
    return sum(_is_sound(part) for part in content)


def _spectrogram(folder: Path, bands: int) -> Spectrogram:
    """What the files beside the weights say of it."""
    given, path = settings(folder, "feature_extractor")
    keys = Fields(given, path.name)
    keys.only("feature_extractor_type", ("WhisperFeatureExtractor",), "feature extractor")
    keys.only("do_normalize", (False,), "normalization")
    keys.only("padding_side", ("right",), "side")
    keys.only("dither", (0,), "noise")
    form = Spectrogram(
        bands=keys.integer("feature_size", bands, high=4096),
        rate=keys.integer("sampling_rate", 16_000, low=1000, high=192_000),
        hop=keys.integer("hop_length", 160, low=16, high=4096),
        window=keys.integer("n_fft", 400, low=16, high=16_384),
        seconds=keys.integer("chunk_length", 30, high=600),
        padding=float(keys.optional("padding_value", low=-1e3, high=1e3) or 0.0),
    )
    if keys.sound and form.bands != bands:
        keys.problem("feature_size", f"config.json says num_mel_bins = {bands}")
    if keys.sound and form.chunk % (2 * MERGED * form.hop):
        keys.complain(f"{form.seconds} seconds are no whole number of tokens of {2 * MERGED * form.hop} samples")
    keys.check()
    return form


def _hearing(folder: Path, form: Spectrogram) -> Hearing:
    keys = Fields(read_json(folder / TOGETHER, _LARGEST) if is_there(folder / TOGETHER) else {}, TOGETHER)
    said = keys.raw("default_transcription_prompt")
    longest = keys.number("max_audio_len", LONGEST, high=1e6)
    keys.check()
    instruction = said if isinstance(said, str) and said else INSTRUCTION
    return Hearing(instruction, longest, form.rate, form.rate / (2 * MERGED * form.hop))


def _module(
    ck: Checkpoint, size: Encoder, width: int, dtype: torch.dtype, device: torch.device | None
) -> nn.ModuleDict:
    """Encoder and projector with their weights."""
    front = _front(ck)
    made = filled(lambda: parts(size, width), ck, lambda name: front + name, dtype=dtype, device=device)
    assert isinstance(made, nn.ModuleDict)
    tower = made["audio_tower"]
    tower.rotary_emb = type(tower.rotary_emb)(tower.config).to(device)  # which no checkpoint has
    return made


def parts(size: Encoder, width: int) -> nn.ModuleDict:
    """Encoder and projector, of transformers, where new tensors are made.

    Args:
        size: of the encoder.
        width: of the decoder.

    Raises:
        UsageError: transformers is not installed.
    """
    try:
        from transformers.models.glmasr.configuration_glmasr import GlmAsrConfig
        from transformers.models.glmasr.modeling_glmasr import GlmAsrEncoder, GlmAsrMultiModalProjector
    except ImportError:
        raise UsageError(
            "what hears of this model needs transformers 5, which is not installed: pip install 'isobit[media]'"
        ) from None
    rope = {"rope_type": "default", "rope_theta": size.theta, "partial_rotary_factor": size.rotated}
    config = GlmAsrConfig(
        audio_config={
            "model_type": "glmasr_encoder", "hidden_size": size.hidden, "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads,
            "num_mel_bins": size.bands, "hidden_act": size.activation, "rope_parameters": rope,
        },
        text_config={"model_type": "llama", "hidden_size": width},
        projector_hidden_act=size.projector,
    )  # fmt: skip
    heard: Any = config.audio_config
    return nn.ModuleDict({_PARTS[0]: GlmAsrEncoder(heard), _PARTS[1]: GlmAsrMultiModalProjector(config)})


def _front(ck: Checkpoint) -> str:
    """What stands in front of the names of its tensors: nothing in published checkpoints."""
    anchor = f"{_PARTS[0]}.conv1.weight"
    for front in ("", "model."):
        if front + anchor in ck.tensors:
            return front
    raise CheckpointError("is missing: this checkpoint holds no encoder for sounds", file=ck.path, tensor=anchor)
