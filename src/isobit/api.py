"""The Python interface: quantize, load, evaluate, info. The command line goes through here too."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.errors import CheckpointWarning, UsageError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme as scheme_named

if TYPE_CHECKING:
    from isobit.engine.generate import Completion, Generator
    from isobit.evaluation.info import CheckpointInfo
    from isobit.evaluation.measure import Evaluation
    from isobit.quantizer.driver import Prediction
    from isobit.quantizer.report import QuantizeReport

DEFAULT_SHARD_BYTES = 5_000_000_000


def quantize(
    model: str | Path,
    out: str | Path | None = None,
    scheme: str = "fp8",
    *,
    rules: Iterable[tuple[str, str]] = (),
    allow_mixed_fused: bool = False,
    search: str | None = None,
    calibration: str | Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    threads: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> QuantizeReport:
    """Quantize a checkpoint into a folder that isobit, vLLM and transformers load.

    Memory stays bounded whatever the model's size. Interrupted at any moment, the same call goes on where it stopped
    and gives the same bytes.

    Args:
        model: a local folder, a Hugging Face id, or ``"bundled"``.
        out: the folder to write; by default the model's name and the scheme's, in the current folder.
        scheme: what the linear layers become: any name or alias in :mod:`isobit.formats.schemes`.
        rules: ``(regex, scheme or "keep")`` pairs over module names; the first match wins.
        allow_mixed_fused: let rules give different schemes to layers that engines fuse (q, k and v; gate and up):
            isobit and transformers compute what is stored, vLLM does not.
        search: ``"absmax"`` or ``"mse"``; by default absmax for 8-bit formats and mse below.
        calibration: a text file that static activation scales are calibrated on.
        max_shard_bytes: the largest weight file, in bytes.
        threads: how many threads to use; every core this process may use if None.
        revision: branch, tag or commit of a Hugging Face id.
        overwrite: replace ``out`` if it is a finished checkpoint of isobit's.
        resume: go on after an interruption instead of starting over.
        progress: show progress on stderr.

    Returns:
        What was done, per module and in total.

    Raises:
        IsobitError: bad input, an unusable scheme, or too little memory or disk; the message says what to do.
    """
    from isobit.checkpoint.source import resolve
    from isobit.quantizer.driver import quantize as run

    policy = make_policy(scheme, rules)
    return run(
        resolve(model, revision=revision),
        output_folder(model, out, policy),
        policy,
        search=search,
        calibration=None if calibration is None else Path(calibration),
        max_shard_bytes=max_shard_bytes,
        allow_mixed_fused=allow_mixed_fused,
        threads=threads,
        overwrite=overwrite,
        resume=resume,
        progress=progress,
    )


def predict(
    model: str | Path,
    out: str | Path | None = None,
    scheme: str = "fp8",
    *,
    rules: Iterable[tuple[str, str]] = (),
    allow_mixed_fused: bool = False,
    revision: str | None = None,
) -> Prediction:
    """What :func:`quantize` would write: tensors, bytes, bits per weight. Reads headers and writes nothing.

    Takes and raises what :func:`quantize` does before it writes.
    """
    from isobit.checkpoint.source import resolve
    from isobit.quantizer.driver import predict as run

    policy = make_policy(scheme, rules)
    folder = resolve(model, revision=revision)
    return run(folder, output_folder(model, out, policy), policy, allow_mixed_fused=allow_mixed_fused)


def make_policy(scheme: str, rules: Iterable[tuple[str, str]]) -> Policy:
    """The policy of a default scheme and ``(regex, scheme or "keep")`` pairs."""
    return Policy(scheme_named(scheme), tuple(Rule(pattern, action) for pattern, action in rules))


def output_folder(model: str | Path, out: str | Path | None, policy: Policy) -> Path:
    """The folder to write: what the user named, or the model's name and the scheme's."""
    return Path(out) if out is not None else Path(f"{default_name(model)}-{policy.default.name}")


def default_name(model: str | Path) -> str:
    """The last part of a folder's path or of a Hugging Face id, for naming an output folder."""
    name = str(model).rstrip("/").rpartition("/")[2]
    return name if name not in ("", ".", "..") else Path(model).resolve().name


class Model:
    """A loaded model that generates text. Made by :func:`load`."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def generate(self, prompt: str | list[int], **sampling: Any) -> Completion:
        """Complete a prompt.

        Args:
            prompt: text, or token ids.
            sampling: fields of :class:`isobit.engine.sampling.SamplingParams`, e.g. ``max_tokens=64, temperature=0.7``.
                Where nothing is given, what the model's generation_config.json asks for holds (:attr:`sampling`).
        """
        return self._generator.generate(prompt, self._params(sampling))

    def stream(self, prompt: str | list[int], **sampling: Any) -> Iterator[Any]:
        """Complete a prompt piece by piece; takes what :meth:`generate` takes."""
        return self._generator.stream(prompt, self._params(sampling))

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know who use this checkpoint: what of it isobit, or another engine, does otherwise."""
        return tuple(self._generator.notes)

    @property
    def sampling(self) -> dict[str, Any]:
        """What :meth:`generate` takes from the model's generation_config.json; empty for greedy decoding."""
        return dict(self._generator.tokenizer.defaults.choose({}).used)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with ``encode`` and ``decode``."""
        return self._generator.tokenizer

    def _params(self, sampling: dict[str, Any]) -> Any:
        from isobit.engine.sampling import SamplingParams

        unknown = sorted(set(sampling) - set(SamplingParams.__dataclass_fields__))
        if unknown:
            known = ", ".join(SamplingParams.__dataclass_fields__)
            raise UsageError(f"unknown sampling option {', '.join(unknown)}; the options are: {known}")
        replace(SamplingParams(), **sampling)  # checks what was given before anything is made of it
        return SamplingParams(**self._generator.tokenizer.defaults.choose(sampling).settings)


def load(model: str | Path, *, dtype: str | None = None, revision: str | None = None, device: str = "cpu") -> Model:
    """Load a checkpoint, quantized or not, ready to generate.

    Args:
        model: a local folder, a Hugging Face id, or ``"bundled"``.
        dtype: what activations are computed in: ``"float32"`` (the default on a CPU), ``"bfloat16"`` or ``"float16"``.
        revision: branch, tag or commit of a Hugging Face id.
        device: ``"cpu"`` or ``"cuda"``.

    Warns:
        CheckpointWarning: what people should know about this checkpoint; :attr:`Model.notes` has it, too.
    """
    from isobit.checkpoint.source import resolve
    from isobit.engine.generate import load_generator

    loaded = Model(load_generator(resolve(model, revision=revision), dtype=dtype, device=device))
    for note in loaded.notes:
        warnings.warn(note, CheckpointWarning, stacklevel=2)
    return loaded


def evaluate(
    model: str | Path,
    against: str | Path | None = None,
    *,
    text: str | Path | None = None,
    ctx: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure how well a model predicts a text, and what it lost against the model it was made from.

    Args:
        model: a local folder, a Hugging Face id, or ``"bundled"``.
        against: the source to compare with; without it there is perplexity but no KL divergence.
        text: a UTF-8 file or a folder of them; held-out Python code if None.
        ctx: tokens per window; 512 or what the model can read if None.
        tokens: about how many tokens to score, spread over the text; 32768 if None, all of them if 0.
        seed: of the bootstrap behind the confidence intervals.

    Returns:
        The likelihood and, given a source, the fidelity: mean and 99th-percentile KL divergence in nats, top-1
        agreement and perplexities, each with a 95 % confidence interval.
    """
    from isobit.checkpoint.source import resolve
    from isobit.evaluation import corpus, measure
    from isobit.evaluation.likelihood import DEFAULT_TOKENS

    return measure.evaluate(
        resolve(model),
        corpus.heldout() if text is None else corpus.read_corpus(Path(text)),
        against=None if against is None else resolve(against),
        ctx=ctx,
        tokens=DEFAULT_TOKENS if tokens is None else tokens or None,
        seed=seed,
    )


def info(model: str | Path, *, revision: str | None = None) -> CheckpointInfo:
    """What is in a checkpoint, by any tool: schemes, bytes, bits per weight. Reads headers and scales, no weights."""
    from isobit.checkpoint.source import resolve
    from isobit.evaluation.info import describe

    return describe(resolve(model, revision=revision))
