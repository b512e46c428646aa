"""quantize and predict: what they take, checked, and handed to the quantizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.api.finding import DEVICES, default_name, find, model_named
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme as scheme_named

if TYPE_CHECKING:
    from isobit.quantizer.driver import Prediction
    from isobit.quantizer.report import QuantizeReport

DEFAULT_SHARD_BYTES = 5_000_000_000
SEARCHES = ("absmax", "mse")
MOST_THREADS = 4096


def quantize(
    model: str | Path,
    out: str | Path | None = None,
    scheme: str = "fp8",
    *,
    rules: Iterable[tuple[str, str]] = (),
    allow_mixed_fused: bool = False,
    from_quantized: bool = False,
    search: str | None = None,
    calibration: str | Path | None = None,
    device: str = "cpu",
    target: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    threads: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> QuantizeReport:
    """Quantize a checkpoint into a folder in the compressed-tensors layout (docs/interop.md: which engines load what).

    Memory stays bounded whatever the model's size. Interrupted at any moment, the same call goes on where it stopped
    and gives the same bytes.

    Args:
        model: a local folder, a Hugging Face id, or ``"bundled"``. Of a pipeline of speech the language model is
            quantized, and the other parts are copied as they are.
        out: the folder to write; by default the model's name and the scheme's, in the current folder.
        scheme: what the linear layers become: any name or alias in :mod:`isobit.formats.schemes`.
        rules: ``(regex, scheme or "keep")`` pairs over module names; the first match wins.
        allow_mixed_fused: let rules give different schemes to layers that engines fuse (q, k and v; gate and up):
            isobit and transformers compute what is stored, vLLM does not.
        from_quantized: take a model that is quantized already as the numbers it stands for: both errors add up, and
            the report has the second one alone.
        search: ``"absmax"`` or ``"mse"``; by default absmax for 8-bit formats and mse below.
        calibration: a text file that static activation scales are calibrated on; the bundled held-out text if None.
        device: what runs the model to calibrate: ``"cpu"`` or ``"cuda"``; all else is computed on the CPU.
        target: whose lowering calibrates on a GPU, e.g. ``"sm_86"``; the GPU's own if None.
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
    from isobit.quantizer.driver import quantize as run

    name, policy = model_named("model", model, revision), make_policy(scheme, rules)
    folder = output_folder(name, out, policy)
    settings = _settings(policy, search, calibration, device, target, max_shard_bytes)
    workers = arguments.optional_whole("threads", threads, 1, MOST_THREADS)
    flags = {"overwrite": overwrite, "resume": resume, "progress": progress, "allow_mixed_fused": allow_mixed_fused}
    flags["from_quantized"] = from_quantized
    for flag, value in flags.items():
        arguments.flag(flag, value)
    source = find(name, revision=revision)
    return run(
        source,
        _beside(name, source, folder, overwrite),
        policy,
        **settings,
        allow_mixed_fused=allow_mixed_fused,
        from_quantized=from_quantized,
        threads=workers,
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
    from_quantized: bool = False,
    search: str | None = None,
    calibration: str | Path | None = None,
    device: str = "cpu",
    target: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    revision: str | None = None,
) -> Prediction:
    """What :func:`quantize` would write: tensors, bytes, bits per weight. Reads headers and writes nothing.

    Takes and raises what :func:`quantize` does before it writes.
    """
    from isobit.quantizer.driver import predict as run

    name, policy = model_named("model", model, revision), make_policy(scheme, rules)
    folder = output_folder(name, out, policy)
    settings = _settings(policy, search, calibration, device, target, max_shard_bytes)
    settings["allow_mixed_fused"] = arguments.flag("allow_mixed_fused", allow_mixed_fused)
    settings["from_quantized"] = arguments.flag("from_quantized", from_quantized)
    return run(find(name, revision=revision), folder, policy, **settings)


def _beside(name: str, source: Path, folder: Path, overwrite: bool) -> Path:
    """Where the model itself goes: of a pipeline, whose other parts are copied first, into a folder of the output's."""
    from isobit.checkpoint.pipelines import MODEL, copy_others
    from isobit.checkpoint.source import expanded

    whole = expanded(name)
    if source != whole / MODEL:
        return folder
    copy_others(whole, folder, overwrite)
    return folder / MODEL


def _settings(
    policy: Policy, search: str | None, text: str | Path | None, device: str, target: str | None, shard: int
) -> dict[str, Any]:
    """What :func:`quantize` and :func:`predict` hand over alike, checked before anything is fetched."""
    from isobit.quantizer import calibrate

    named = arguments.optional_path("calibration", text)
    found: dict[str, Any] = {
        "search": arguments.optional_choice("search", search, SEARCHES),
        "calibration": None if named is None else Path(named),
        "max_shard_bytes": arguments.whole("max_shard_bytes", shard, 1),
        "device": arguments.choice("device", device, DEVICES),
        "lowering": arguments.optional_text("target", target),
    }
    calibrate.prepare(found["calibration"], policy, device=device, lowering=target)
    return found


def make_policy(scheme: str, rules: Iterable[tuple[str, str]]) -> Policy:
    """The policy of a default scheme and ``(regex, scheme or "keep")`` pairs."""
    checked = arguments.pairs("rules", rules)
    return Policy(scheme_named(arguments.text("scheme", scheme)), tuple(Rule(*pair) for pair in checked))


def output_folder(model: str | Path, out: str | Path | None, policy: Policy) -> Path:
    """The folder to write: what the user named, or the model's name and the scheme's."""
    named = arguments.optional_path("out", out)
    return Path(named if named is not None else f"{default_name(model)}-{policy.default.name}")
