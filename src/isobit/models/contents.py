"""A checkpoint as a model: its tensors under a model's own names, held against its configuration, before any is used.

Loading, quantizing, packing and describing a checkpoint all begin here, so that they agree on which tensors there are:
under which prefix, whether the output projection is the embedding, and what is missing, misshapen or surplus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from isobit.checkpoint import kvscales
from isobit.checkpoint.ctconfig import KV_CACHE
from isobit.checkpoint.gguf.wording import in_its_words, notes_in_its_words
from isobit.checkpoint.layouts import table as layouts
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import PLAIN_DTYPES
from isobit.checkpoint.store import FileStore
from isobit.errors import CheckpointError
from isobit.models.archs import is_within, model_config
from isobit.models.blueprint import Shapes, expected_tensors, is_behind
from isobit.models.config import ModelConfig
from isobit.models.fitting import IGNORED_SUFFIXES, Problem, problems
from isobit.models.names import is_beside, renamed
from isobit.models.stacks import other_names, unstacked

TABLE, HEAD, NORM = "model.embed_tokens.", "lm_head.", "model.norm"
_LISTED, _LISTED_OF_A_KIND = 8, 4  # problems shown in full; the rest is counted
_COMPARED = 1 << 22  # numbers of two matrices compared at once


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds of a model.

    Attributes:
        ck: the checkpoint, its tensors under a model's own names.
        config: what the model is; ``tie_word_embeddings`` as the tensors have it.
        expected: every tensor of the unquantized model with its shape.
        left_out: tensors that no model needs: a second copy of a tied matrix, buffers of old checkpoints.
        kv_scales: tensors that are scales of a key-value cache.
        notes: what a person should know.
        stacks: tensors of all experts of a layer together -> those that they are read as.
        beside: tensors of what stands beside the decoder of a model that sees or hears, by their names in the files.
        fronts: what names of the decoder's tensors begin with here -> what they begin with in the files, in such a
            model; empty where they are called in files as they are here.
    """

    ck: Checkpoint
    config: ModelConfig
    expected: Shapes
    left_out: tuple[str, ...]
    kv_scales: tuple[str, ...]
    notes: tuple[str, ...]
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    fronts: Mapping[str, str] = field(default_factory=dict)

    def in_files(self, name: str) -> str:
        """What a tensor of the decoder is called where it is written beside others of its model."""
        for front, stored in self.fronts.items():
            if name.startswith(front):
                return stored + name.removeprefix(front)
        return name


def contents(ck: Checkpoint) -> Contents:
    """What a checkpoint holds, checked by its headers; of the data at most two matrices are compared.

    Raises:
        CheckpointError: tensors are missing, surplus, of a shape that config.json does not ask for or of a dtype that
            no such tensor has: all of them are listed. Or the quantization config is malformed.
        ModelError: the architecture or a setting is not implemented.
        Unsupported: the checkpoint is quantized by a method that isobit does not read.
    """
    found = resolve(ck)
    require_all(found)
    return found


def require_all(found: Contents) -> None:
    """That every tensor is there and fits.

    Raises:
        CheckpointError: as :func:`contents` says.
    """
    wrong = _problems(found)
    if wrong:
        with in_its_words(found.ck.path):
            raise listed(found.ck, wrong)


def resolve(ck: Checkpoint) -> Contents:
    """The same without the check that every tensor is there and fits; see :func:`contents`."""
    with in_its_words(ck.path):
        found = _resolved(ck)
    return replace(found, notes=notes_in_its_words(ck.path, found.notes))


def _resolved(ck: Checkpoint) -> Contents:
    ck.require_readable()  # what nobody can read is refused first: its tensors have names of their own
    config = model_config(ck.config, ck.tensors)
    notes: list[str] = []
    beside = tuple(name for name in ck.tensors if is_beside(name)) if is_within(ck.config) else ()
    ck = ck.without_review(beside) if beside else ck
    own = [name for name in ck.tensors if name not in ck.apart]
    names = renamed(own, config.layers[0].norms)
    if names and not is_within(ck.config):
        stored = next(iter(names))
        notes.append(f"tensors are read under other names than they have: {stored} as {names[stored]}, and so on")
    if names:
        ck = ck.renamed(names)
    fronts = _fronts(ck) if is_within(ck.config) else {}
    ck, stacks = _by_expert(ck, config)
    notes = [*config.notes, *ck.notes, *notes]
    ck, config, copies = _output_projection(ck, config, notes)
    scales = kvscales.kv_names(ck.tensors, config.num_layers)
    if scales:  # which says more than that the configuration asks for such a cache
        notes = [*(note for note in notes if note != KV_CACHE), kvscales.NOTE]
    left_out = (*copies, *(name for name in ck.tensors if name.endswith(IGNORED_SUFFIXES)))
    guessing = _guessing(ck, config)
    if guessing:
        left_out = (*left_out, *(name for name in guessing if name not in left_out))
        notes.append(
            f"{len(guessing)} tensors of layers that guess further tokens ({guessing[0]} and so on) are left out:"
            " isobit decodes one token after the other"
        )
    expected = expected_tensors(config)
    ck = ck.of_model(expected)
    return Contents(ck, config, expected, left_out, scales, tuple(notes), stacks, beside, fronts)


def _fronts(ck: Checkpoint) -> dict[str, str]:
    """What the names of a decoder's tensors begin with in files, by what they begin with here."""
    norm, head = NORM.rpartition(".")[2], HEAD.removesuffix(".")
    found = {"model.": ck.stored.get(NORM, NORM).removesuffix(norm), HEAD: f"{ck.stored.get(head, head)}."}
    return {front: stored for front, stored in found.items() if front != stored}


def _by_expert(ck: Checkpoint, config: ModelConfig) -> tuple[Checkpoint, dict[str, tuple[str, ...]]]:
    """The same with tensors of all experts together as those of each, and under the names that these have here."""
    names = other_names(ck.tensors, config)
    if names:
        ck = ck.renamed(names)
    parts = unstacked(ck.tensors, config) if isinstance(ck.store, FileStore) else {}
    found = {stored: tuple(part.name for part in of_it) for stored, of_it in parts.items()}
    for stored, names_of_it in found.items():
        twice = next((name for name in names_of_it if name in ck.tensors), None)
        if twice is not None:
            raise CheckpointError(
                f"is there by itself and as a part of {stored}: remove one of the two", file=ck.path, tensor=twice
            )
    return ck.viewed(parts) if parts else ck, found


def _guessing(ck: Checkpoint, config: ModelConfig) -> tuple[str, ...]:
    """Tensors of layers behind the last, which predict more than the next token."""
    return tuple(name for name in ck.tensors if is_behind(name, config))


def _output_projection(
    ck: Checkpoint, config: ModelConfig, notes: list[str]
) -> tuple[Checkpoint, ModelConfig, tuple[str, ...]]:
    """Whether the output projection is the embedding: config.json says so, and the tensors do not say otherwise.

    Two different matrices stay two. Of two equal ones the output projection's is a copy. A single one may have either
    name.
    """
    table, head = (_parts(ck, prefix) for prefix in (TABLE, HEAD))
    if not config.tie_word_embeddings or not head & {*layouts.CODE_PARTS}:
        return ck, config, ()
    if not table:
        return ck.renamed({HEAD + part: TABLE + part for part in head}), config, ()
    if table == head == {"weight"} and same_matrix(ck, TABLE + "weight", HEAD + "weight"):
        return ck, config, (HEAD + "weight",)
    notes.append(
        "config.json says that the output projection is the embedding (tie_word_embeddings), but lm_head holds another"
        " matrix: both are used, as transformers does; vLLM would use the embedding for both"
    )
    return ck, replace(config, tie_word_embeddings=False), ()


def _parts(ck: Checkpoint, prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in ck.tensors if name.startswith(prefix)}


def same_matrix(ck: Checkpoint, one: str, other: str) -> bool:
    """Whether two plain matrices have the same shape and hold the same numbers; they are read a few rows at a time."""
    infos = ck.info(one), ck.info(other)
    plain = all(info.dtype in PLAIN_DTYPES and len(info.shape) == 2 for info in infos)
    if not plain or infos[0].shape != infos[1].shape:
        return False
    rows, columns = infos[0].shape
    step = max(1, _COMPARED // max(columns, 1))
    for begin in range(0, rows, step):
        part, same = (ck.read(name, slice(begin, min(begin + step, rows))) for name in (one, other))
        wide = torch.promote_types(part.dtype, same.dtype) if part.dtype != same.dtype else part.dtype
        if not torch.equal(part.to(wide), same.to(wide)):
            return False
    return True


# ---------------------------------------------------------------------- what does not fit


def _problems(found: Contents) -> list[Problem]:
    """(tensor, what is wrong with it), those that are missing first."""
    known = {*found.left_out, *found.kv_scales, *found.beside}
    return problems(found.ck.tensors, found.config, found.expected, found.ck.quantization, known)


def listed(ck: Checkpoint, problems: list[tuple[str, str]]) -> CheckpointError:
    """One error for all problems: the first of each kind in full, the rest counted."""
    name, reason = problems[0]
    file = _file(ck, name)
    if len(problems) == 1:
        return CheckpointError(reason, file=file, tensor=name)
    lines = [
        f"tensor {tensor!r}{f' ({ck.tensors[tensor].file.name})' if tensor in ck.tensors else ''} {what}"
        for tensor, what in _first_of_each_kind(problems)
    ]
    text = listing(lines, len(problems))
    return CheckpointError(f"{len(problems)} tensors do not fit config.json:\n{text}", file=ck.path)


def _file(ck: Checkpoint, name: str) -> Path:
    """The file of a tensor; of a missing one, that of the others of its module."""
    if name in ck.tensors:
        return ck.tensors[name].file
    module = f"{layouts.split(name)[0]}."
    return next((info.file for other, info in ck.tensors.items() if other.startswith(module)), ck.path)


def _first_of_each_kind(problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if len(problems) <= _LISTED:
        return problems
    shown: list[tuple[str, str]] = []
    for problem in problems:
        if sum(problem[1].split()[:2] == other[1].split()[:2] for other in shown) < _LISTED_OF_A_KIND:
            shown.append(problem)
        if len(shown) == _LISTED:
            break
    return shown


def listing(problems: Iterable[str], total: int) -> str:
    """Lines of a list, at most eight, and how many there are besides."""
    lines = [f"  - {problem}" for problem in [*problems][:_LISTED]]
    return "\n".join([*lines, f"  - and {total - len(lines)} more"] if total > len(lines) else lines)
