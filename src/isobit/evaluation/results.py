"""What an evaluation found, as frozen rows: the one thing that tables, plots, the report and JSON are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isobit.evaluation.fidelity import Fidelity
    from isobit.evaluation.likelihood import Likelihood


@dataclass(frozen=True)
class Speed:
    """How fast a model decodes with one request, beside how fast the machine reads.

    Attributes:
        tokens_per_second: tokens, with everything that a token takes.
        memory_rate: bytes per second that the machine reads from memory when it does nothing else.
        again_rate: bytes per second of reading ``read_bytes`` again and again: from caches, as far as these hold them.
        read_bytes: stored bytes that a token reads: all weights but an embedding table of its own.
        kernel: what runs the linear layers, and the instruction set it uses.
        threads: of the kernels.
    """

    tokens_per_second: float
    memory_rate: float
    again_rate: float
    read_bytes: int
    kernel: str
    threads: int

    @property
    def rate(self) -> float:
        """Bytes of weights per second."""
        return self.read_bytes * self.tokens_per_second


@dataclass(frozen=True)
class SourceResult:
    """The model that the others were made from.

    Attributes:
        name: what to call it.
        parameters: how many numbers it consists of.
        bits_per_weight: stored bits per weight of its linear layers.
        size: bytes of its weight files.
        likelihood: how well it predicts the text.
        speed: how fast it decodes; None if not measured.
    """

    name: str
    parameters: int
    bits_per_weight: float
    size: int
    likelihood: Likelihood
    speed: Speed | None = None


@dataclass(frozen=True)
class SchemeResult:
    """One model made from the source.

    Attributes:
        name: its scheme, or its folder's name.
        note: one sentence about it.
        bits_per_weight: stored bits per weight of its linear layers, scales included.
        size: bytes of its weight files.
        fidelity: what it lost.
        speed: how fast it decodes; None if not measured.
        layer_errors: relative error of the hidden state after the embedding and after each decoder layer.
        weight_errors: (module, relative error of its weight) of each linear layer.
    """

    name: str
    note: str
    bits_per_weight: float
    size: int
    fidelity: Fidelity
    speed: Speed | None = None
    layer_errors: tuple[float, ...] = ()
    weight_errors: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class CompletionResult:
    """What one model wrote after a prompt."""

    model: str
    prompt: str
    text: str


@dataclass(frozen=True)
class ExecutionPath:
    """What ran one of the models that were measured; figures hold for this path.

    Attributes:
        model: its name.
        device: ``cpu`` or ``cuda``.
        target: whose lowering ran: that of the GPU, or the one that was asked for; on a CPU, the target that it is.
        dtype: what activations are computed in.
        linears: the kernels of its linear layers; isobit's own on the CPU with the instruction set they use.
        layers: what ran norms, rotation, attention and gates: ``cpu`` (isobit's own) or ``reference`` (PyTorch).
        batch_invariant: whether a token's numbers are the same bits whatever was computed beside it.
    """

    model: str
    device: str
    target: str
    dtype: str
    linears: str
    layers: str
    batch_invariant: bool = False

    def __str__(self) -> str:
        how = "; batch-invariant" if self.batch_invariant else ""
        return f"{self.device} ({self.target}), {self.dtype}; linears: {self.linears}; other parts: {self.layers}{how}"


@dataclass(frozen=True)
class Method:
    """How it was measured, so that it can be done again.

    Attributes:
        text: name of the text.
        text_bytes: its size in UTF-8.
        text_tokens: its size in tokens of this model.
        ctx: tokens per window.
        stride: how far apart windows begin.
        layer_tokens: tokens that the error by layer was measured on; 0 if it was not.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        paths: what ran each of the models.
        hardware: the machine.
        versions: (package, version).
        date: ISO 8601, UTC.
        command: the command that does it again.
    """

    text: str
    text_bytes: int
    text_tokens: int
    ctx: int
    stride: int
    layer_tokens: int
    seed: int
    resamples: int
    paths: tuple[ExecutionPath, ...]
    hardware: str
    versions: tuple[tuple[str, str], ...]
    date: str
    command: str

    def models_by_path(self) -> dict[str, list[str]]:
        """The paths in words -> the models that took them."""
        found: dict[str, list[str]] = {}
        for path in self.paths:
            found.setdefault(str(path), []).append(path.model)
        return found


@dataclass(frozen=True)
class Results:
    """Everything one evaluation found."""

    source: SourceResult
    schemes: tuple[SchemeResult, ...]
    completions: tuple[CompletionResult, ...]
    method: Method
