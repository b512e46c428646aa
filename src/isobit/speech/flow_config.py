"""``flow/config.yaml``: what of it is read, what changes nothing here, and what is refused.

The published file is one of HyperPyYAML, whose tags make Python objects. Here tags are dropped and nothing is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.checkpoint.files import read_file
from isobit.checkpoint.jsonfile import short
from isobit.errors import CheckpointError

_LARGEST = 1 << 20  # bytes
_IDLE = frozenset({"calc_prompt_mel_loss", "loss_type", "use_mdt"})  # of training
_SIZES = frozenset({"speech_token_dim", "vocab_size", "big_model"})  # the tensors say them
# key: what it is where the file leaves it out, as the published code has it
_KEYS: dict[str, Any] = {
    "mel_dim": 80, "input_frame_rate": 12.5, "mel_framerate": 86, "spk_embed_dim": 80, "spkr_emb_adaLN": False,
    "speech_token_cfg": True, "remove_spkr_concat_condition": False, "t_scheduler": "cosine", "use_wavlm_emb": False,
}  # fmt: skip


@dataclass(frozen=True)
class FlowConfig:
    """How a flow is made and followed.

    Attributes:
        mel: numbers of a frame.
        sounds_rate, frames_rate: of a second.
        beside: numbers of the speaker beside each frame; 0 where it only goes into the norms.
        speaker_in_norms: whether it does.
        sounds_guided: whether guidance leaves the sounds out, too.
        cosine: whether steps are short at the beginning.
        guidance: how much further it goes from what it would do without reference and speaker.
    """

    mel: int = 80
    sounds_rate: float = 25
    frames_rate: float = 50
    beside: int = 0
    speaker_in_norms: bool = True
    sounds_guided: bool = False
    cosine: bool = True
    guidance: float = 0.7

    def frames(self, sounds: int) -> int:
        """Frames that so many sounds make, one or more; cut, as the published code does: 29 sounds make 57."""
        return max(1, int(sounds / self.sounds_rate * self.frames_rate))


def read_flow_config(path: Path) -> FlowConfig:
    """Reads the file.

    Raises:
        CheckpointError: it cannot be read, or has a key or a value that isobit does not know.
    """
    found = _flow(path)
    unknown = sorted(set(found) - set(_KEYS) - _IDLE - _SIZES)
    if unknown:
        raise CheckpointError(f"flow has {', '.join(map(short, unknown))}, which isobit does not know", file=path)
    values = _KEYS | {key: value for key, value in found.items() if key in _KEYS}
    for key, usual in _KEYS.items():
        fits = (int, float) if isinstance(usual, int | float) and not isinstance(usual, bool) else type(usual)
        if isinstance(values[key], bool) != isinstance(usual, bool) or not isinstance(values[key], fits):
            raise CheckpointError(f"flow.{key} cannot be {short(values[key])}", file=path)
    if values["use_wavlm_emb"]:
        raise CheckpointError("flow.use_wavlm_emb is true: a second speaker embedding, which isobit lacks", file=path)
    if values["t_scheduler"] not in ("cosine", "linear"):
        raise CheckpointError(
            f"flow.t_scheduler is {short(values['t_scheduler'])}: isobit knows cosine and linear", file=path
        )
    rates = values["input_frame_rate"], values["mel_framerate"]
    if rates != (25, 50):
        reason = (
            f"flow makes {rates[1]} frames of {rates[0]} sounds a second; the vocoder that isobit has needs 50 of 25"
        )
        raise CheckpointError(reason, file=path)
    if not 0 < values["mel_dim"] <= 1024 or not 0 < values["spk_embed_dim"] <= 4096:
        raise CheckpointError("flow.mel_dim and flow.spk_embed_dim must be positive and small", file=path)
    return FlowConfig(
        mel=int(values["mel_dim"]),
        sounds_rate=rates[0],
        frames_rate=rates[1],
        beside=0 if values["remove_spkr_concat_condition"] else int(values["spk_embed_dim"]),
        speaker_in_norms=values["spkr_emb_adaLN"],
        sounds_guided=values["speech_token_cfg"],
        cosine=values["t_scheduler"] == "cosine",
    )


def _flow(path: Path) -> dict[str, Any]:
    """The mapping ``flow`` of the file, with references to other values of it replaced."""
    import yaml

    Plain: Any = type("Plain", (yaml.SafeLoader,), {})  # its own: what is added to it is no other's
    Plain.add_multi_constructor("!", _untagged)
    try:
        whole = yaml.load(read_file(path, _LARGEST), Loader=Plain)  # plain values alone
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"is no YAML that can be read: {short(first)}", file=path) from None
    flow = whole.get("flow") if isinstance(whole, dict) else None
    if not isinstance(flow, dict):
        raise CheckpointError("has no mapping called flow", file=path)
    found = {str(key): value for key, value in flow.items()}
    for key, value in found.items():
        if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
            found[key] = whole.get(value[1:-1])
    return found


def _untagged(loader: Any, tag: str, node: Any) -> Any:
    """The value of a node, whatever its tag says it should be made into."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)
