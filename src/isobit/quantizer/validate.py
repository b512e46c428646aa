"""Everything that can be known to be wrong before a byte is written; every problem is listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from isobit.checkpoint.cttargets import fused_conflicts
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import WIDE, TensorInfo
from isobit.errors import CheckpointError, SchemeError, UsageError
from isobit.formats.fitting import check_shape, refitted
from isobit.formats.rules import QUANTIZABLE_KINDS, ModuleKind, Policy
from isobit.formats.schemes import Scheme
from isobit.models.contents import listing
from isobit.quantizer.jobs import FLOATS, is_weight, module_of, scheme_of


def check_paths(source: Path, out: Path) -> None:
    """The output must not be the source, nor lie where it would be mistaken for a part of it.

    Raises:
        UsageError: it does.
    """
    if source.resolve() == out.resolve():
        raise UsageError(f"the output folder {out} is the source: name another one")


def check_not_quantized(ck: Checkpoint) -> None:
    """The source must hold plain weights.

    Raises:
        CheckpointError: it is quantized already, by its configuration or by the dtypes of its tensors.
    """
    advice = (
        "quantize the original model instead, for quantizing twice adds both errors; or insist with --from-quantized"
        " (Python: from_quantized=True), which takes it as the numbers it stands for"
    )
    if ck.quantization is not None:
        kinds = ", ".join(dict.fromkeys((ck.quantization.method, ck.quantization.format)))
        raise CheckpointError(
            f"this checkpoint is quantized already ({kinds}); {advice}",
            file=ck.path / "config.json",
        )
    for info in ck.tensors.values():
        if is_weight(info) and info.dtype not in FLOATS:
            more = "save the model in float32 or bfloat16" if info.dtype in WIDE else advice
            raise CheckpointError(
                f"its dtype is {info.dtype}; weights are read from {', '.join(FLOATS)}; {more}",
                file=info.file,
                tensor=info.name,
            )


def twice_quantized(ck: Checkpoint) -> tuple[str, ...]:
    """What a person should know of a source that is quantized; nothing of one that is not."""
    quantization = ck.quantization
    if quantization is None:
        return ()
    shown = ", ".join(filter(None, (quantization.method, quantization.format)))
    return (
        f"the source is quantized ({shown}): it is taken as the float32 numbers it stands for, and the errors reported"
        " are against those; what it lost itself comes on top, and nobody can measure that without its own source",
    )


def check_schemes(tensors: list[TensorInfo], kinds: Callable[[str], ModuleKind], policy: Policy) -> None:
    """Every weight must fit the scheme it is to get, and some weight must get one.

    Raises:
        SchemeError: group or block sizes that don't divide; lists the sizes that do.
        UsageError: a rule does nothing; see :func:`check_rules`.
    """
    problems: dict[tuple[str, int], list[str]] = {}  # one entry per scheme and K, not one per layer
    for info in tensors:
        chosen = scheme_of(info, kinds(info.name), policy)
        if chosen is None or chosen.weights is None:
            continue
        try:
            n, k = info.shape
            check_shape(chosen.weights, n, k, module_of(info.name), chosen.activations)
        except SchemeError as error:
            problems.setdefault((chosen.name, info.shape[1]), []).append(f"scheme {chosen.name}: {error}")
    if problems:
        found_here = [found[0] + _and_more(len(found) - 1) for found in problems.values()]
        raise SchemeError(found_here[0] if len(found_here) == 1 else listing(found_here, len(found_here)))
    check_rules({module_of(info.name): kinds(info.name) for info in tensors}, policy)


def refitted_widths(tensors: list[TensorInfo], kinds: Callable[[str], ModuleKind], policy: Policy) -> tuple[str, ...]:
    """What to say of weights that groups or blocks of the scheme they were to get do not divide."""
    asked: dict[Scheme, list[tuple[str, int]]] = {}
    for info in tensors:
        chosen = policy.scheme_for(module_of(info.name), kinds(info.name)) if is_weight(info) else None
        if chosen is not None:
            asked.setdefault(chosen, []).append((module_of(info.name), info.shape[1]))
    return tuple(note for row, widths in asked.items() for note in refitted(row, widths))


def check_rules(modules: Mapping[str, ModuleKind], policy: Policy) -> None:
    """Every rule must do something.

    Args:
        modules: every module with what it is.
        policy: which module gets which scheme.

    Raises:
        UsageError: a rule matches no module, none that can be quantized, or only those that a rule before it takes.
    """
    matrices = [module for module, kind in modules.items() if kind in QUANTIZABLE_KINDS]
    taken: set[str] = set()
    problems = []
    for rule in policy.rules:
        reached = {module for module in matrices if rule.matches(module)}
        vectors = [] if reached else [module for module in modules if rule.matches(module)]
        if reached <= taken and reached:
            problems.append(f"rule {rule.pattern!r}: an earlier rule takes every module that it matches; put it first")
        elif vectors and rule.scheme is not None:
            problems.append(
                f"rule {rule.pattern!r}: {vectors[0]} and what else it matches cannot be quantized: a scheme is for "
                "linear layers, embeddings, routers, lm_head and what latent attention absorbs"
            )
        elif not reached and not vectors:
            problems.append(f"rule {rule.pattern!r} matches no module; they are named like {', '.join(matrices[:4])}")
        taken |= reached
    if problems:
        raise UsageError(problems[0] if len(problems) == 1 else f"useless rules:\n{listing(problems, len(problems))}")


def assignments(
    tensors: list[TensorInfo], kinds: Callable[[str], ModuleKind], policy: Policy, tied_head: str | None
) -> dict[str, Scheme | None]:
    """Module -> scheme for every linear, lm_head, router and embedding, for ``quantization_config``.

    Args:
        tensors: the source tensors.
        kinds: tensor name -> what it is.
        policy: which module gets which scheme.
        tied_head: name of an lm_head without tensors of its own, which stays as it is.
    """
    found = {
        module_of(info.name): scheme_of(info, kinds(info.name), policy)
        for info in tensors
        if is_weight(info) and kinds(info.name) in QUANTIZABLE_KINDS
    }
    if tied_head is not None:
        found.setdefault(tied_head, None)
    return found


def mixed_fused(assigned: Mapping[str, Scheme | None], allowed: bool) -> list[str]:
    """What other engines make of layers that they fuse and that get different schemes.

    Raises:
        SchemeError: there are such layers and they are not ``allowed``; names them, their schemes and both remedies.
    """
    names = {module: None if row is None or row.weights is None else row.name for module, row in assigned.items()}
    conflicts = fused_conflicts(names)
    if conflicts and not allowed:
        lines = listing((f"{conflict}: {conflict.consequence}" for conflict in conflicts), len(conflicts))
        parts = "|".join(part for part, _ in conflicts[0].schemes)
        raise SchemeError(
            f"layers that engines fuse would get different schemes:\n{lines}\n"
            f"  instead: rules for whole groups, for example '({parts})=SCHEME'; or, for isobit and transformers "
            "alone, insist with --allow-mixed-fused (Python: allow_mixed_fused=True)"
        )
    return [f"{conflict}: {conflict.consequence}" for conflict in conflicts]


def _and_more(others: int) -> str:
    return "" if others == 0 else f" ({others} more {'module has' if others == 1 else 'modules have'} the same K)"
