"""Static activation scales: the source model runs over a text, and the largest input of each linear sets its scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from isobit.bundled import HELDOUT_NAME, heldout_path
from isobit.checkpoint.files import read_file
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.text.fast import ENCODING_BYTES, SPARE_BYTES, guarded, has_tokenizer, read_fast
from isobit.engine import scoring
from isobit.errors import CheckpointError, UsageError
from isobit.formats.codec import SMALLEST_ACTIVATION_SCALE
from isobit.formats.rules import Policy
from isobit.formats.table import element
from isobit.models.blueprint import HEAD
from isobit.models.decoder import Decoder
from isobit.models.parts import Part
from isobit.models.place import place
from isobit.models.weights import load_model
from isobit.quantizer.jobs import InputScales
from isobit.shortage import require_headroom

WINDOW, WINDOWS = 512, 16  # tokens per window, and windows taken, evenly spread over the text
_LARGEST_TEXT = 64 << 20  # bytes


@dataclass(frozen=True)
class Calibration:
    """What static activation scales are measured on.

    Attributes:
        text: what the source model reads.
        own: whether it is the user's; else it is the one that comes with isobit.
        device: what runs the source model: ``cpu`` or ``cuda``.
        target: whose lowering runs on a GPU; None on a CPU.
    """

    text: str
    own: bool
    device: str = "cpu"
    target: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the scales."""
        said = []
        if not self.own:
            said.append(
                f"activation scales are calibrated on {HELDOUT_NAME}, on which isobit eval measures, too, unless it is"
                " given a text; --calibration FILE takes one of your own"
            )
        if self.target is not None:
            said.append(
                f"activation scales are calibrated on a GPU, by the lowering of {self.target}: a CPU, which sums in "
                "another order and in float32, gives scales that may differ in their last bit"
            )
        return tuple(said)


def prepare(
    path: Path | None, policy: Policy, *, device: str = "cpu", lowering: str | None = None
) -> Calibration | None:
    """The text and the place to calibrate, checked; None if nothing is calibrated.

    Args:
        path: the user's text; None for the one that comes with isobit.
        policy: decides whether there is something to calibrate.
        device: what runs the source model: ``cpu`` or ``cuda``.
        lowering: target whose lowering runs on the GPU; None for the GPU's own.

    Raises:
        UsageError: the text cannot be used, there is no such device, or one of the two is given although nothing is
            calibrated.
        Unsupported: there is no such GPU.
    """
    text = read_text(path, policy)
    if text is None and (device, lowering) != ("cpu", None):
        given = f"device {device}" if lowering is None else f"device {device}, target {lowering}"
        raise UsageError(
            f"{given}: quantizing computes on the CPU, and a GPU runs the model to calibrate static activation scales,"
            " which no scheme here has: leave it out, or use fp8-static"
        )
    target = place(device, lowering).target
    if text is None:
        return None
    return Calibration(text, path is not None, device, None if target is None else target.name)


def needs_calibration(policy: Policy) -> bool:
    """Whether some scheme of the policy has static activation scales."""
    schemes = [policy.default, *(rule.scheme for rule in policy.rules)]
    return any(scheme is not None and scheme.needs_calibration for scheme in schemes)


def read_text(path: Path | None, policy: Policy) -> str | None:
    """The text to calibrate on; None if nothing needs one.

    Args:
        path: the user's file; None for the held-out text that comes with isobit: the same bytes in every version, so
            that these give the same scales. `isobit eval` measures on it by default, too: on it the bundled model has
            a KL of 0.0106 (0.0098 to 0.0114), and 0.0111 (0.0102 to 0.0120) with scales of another text.
        policy: decides whether a text is needed.

    Raises:
        UsageError: the file cannot be read, is empty, or is given although nothing is calibrated.
    """
    if not needs_calibration(policy):
        if path is not None:
            raise UsageError(
                f"a calibration text ({path}) is given, but no scheme has static activation scales: leave it out,"
                " or use fp8-static"
            )
        return None
    if path is None:
        path = heldout_path()
    try:
        data = read_file(path, _LARGEST_TEXT)
    except CheckpointError as error:
        raise UsageError(f"the calibration text cannot be used: {error}") from None
    text = data.decode("utf-8", errors="replace")
    if not text.strip():
        raise UsageError(f"the calibration text {path} is empty")
    return text


def input_scales(
    ck: Checkpoint, modules: Set[str], text: str, *, device: str = "cpu", lowering: str | None = None
) -> InputScales:
    """Runs the source model over ``text`` and measures the inputs of ``modules``.

    Args:
        ck: the source.
        modules: names of linears.
        text: the text; windows of 512 tokens are taken from all over it.
        device: what runs the model: ``cpu`` or ``cuda``.
        lowering: target whose lowering runs on the GPU; None for the GPU's own.

    Returns:
        module -> scale: the largest absolute input over 448 (the largest e4m3fn value), rounded up to bfloat16.

    Raises:
        CheckpointError: the model has no tokenizer, or its activations are not finite.
        UsageError: a module that is no linear layer of the model.
        Unsupported: there is no such GPU, or it has no kernel for the source's formats.
    """
    model = load_model(ck, device=device, lowering=lowering)
    cut = _windows(_tokens(ck, text, model.config.vocab_size), min(WINDOW, model.config.max_context))
    windows = [window.tolist() for window in cut]
    largest: dict[str, float] = {}
    hooks = []
    for part, names in _places(model):
        wanted = [name for name in names if name in modules]
        if wanted:
            largest |= dict.fromkeys(wanted, 0.0)
            hooks.append(part.register_forward_pre_hook(partial(_observe, largest, wanted)))
    unknown = sorted(modules - largest.keys())
    if unknown:
        raise UsageError(
            f"static activation scales can be measured for linear layers only, not for {', '.join(unknown)}"
        )
    try:
        # The logits are nobody's: what the linears are given is looked at, lm_head's inputs where they are wanted.
        sequences = [(ids, 1 if HEAD in modules else len(ids)) for ids in windows]
        for _ in scoring.read([model], sequences, longest=max(map(len, windows))):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _scale(ck, name, amax) for name, amax in largest.items()}


def _places(model: Decoder) -> Iterator[tuple[Part, tuple[str, ...]]]:
    """What can be listened to, with the modules whose input it is shown.

    All experts of a layer have one scale for what goes into them and one for what goes into their down, so that a token
    is rounded once for all of its experts, and those that no token reached have a scale, too.
    """
    for name, linear in model.linears():
        yield linear, (name,)
    for part, inner, outer in model.mixtures():
        yield part.entry, inner
        yield part.middle, outer


def _observe(
    largest: dict[str, float], names: list[str], module: torch.nn.Module, inputs: tuple[Tensor, ...]
) -> None:  # fmt: skip
    amax = float(inputs[0].abs().amax())
    # Not max(): that would lose a NaN.
    largest |= dict.fromkeys(names, amax if math.isnan(amax) or amax > largest[names[0]] else largest[names[0]])


def _scale(ck: Checkpoint, name: str, amax: float) -> float:
    if not math.isfinite(amax):
        raise CheckpointError(f"the inputs of {name} are not finite: this model cannot be calibrated", file=ck.path)
    scale = torch.tensor(amax, dtype=torch.float32) / torch.tensor(element("e4m3fn").max, dtype=torch.float32)
    return max(_bfloat16_above(scale), SMALLEST_ACTIVATION_SCALE)


def _bfloat16_above(scale: Tensor) -> float:
    """The smallest bfloat16 number that is not below ``scale``.

    transformers casts every scale to the model's dtype when it loads: a scale of 8 significant bits stays what it is.
    Upwards, so that the largest input seen still does not saturate.
    """
    rounded = scale.bfloat16()
    if rounded.float() < scale:
        rounded = torch.nextafter(rounded, torch.tensor(torch.inf, dtype=torch.bfloat16))
    return float(rounded)


def _tokens(ck: Checkpoint, text: str, vocabulary: int) -> Tensor:
    """Token ids of ``text``, int64 ``[T]``, of which the model has so many."""
    path = ck.path / "tokenizer.json"
    if not has_tokenizer(ck.path):
        raise CheckpointError(
            "is missing: without it there is no way to calibrate activation scales on text", file=path
        )
    tokenizer = read_fast(ck.path).tokenizer
    require_headroom(ENCODING_BYTES * len(text) + SPARE_BYTES, "splitting the calibration text into tokens")
    encoded = guarded(path, "this tokenizer cannot encode the calibration text", tokenizer.encode, text)
    ids = torch.tensor(encoded.ids, dtype=torch.int64)
    if ids.numel() == 0 or int(ids.max()) >= vocabulary:
        raise CheckpointError(f"gives token ids beyond the model's vocabulary of {vocabulary}", file=path)
    return ids


def _windows(ids: Tensor, length: int) -> Iterator[Tensor]:
    """Up to 16 windows of ``length`` tokens, evenly spread; each begins with the text's first token (often a BOS)."""
    starts = range(0, max(ids.numel() - length, 0) + 1, length)
    step = max(len(starts) // WINDOWS, 1)
    for start in list(starts)[::step][:WINDOWS]:
        window = ids[start : start + length].clone()
        window[0] = ids[0]
        yield window
