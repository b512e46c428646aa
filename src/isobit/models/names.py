"""Under which names a checkpoint holds a model's tensors: one prefix in front of all of them, found once.

A model's own names begin with ``model.`` and ``lm_head.``. Exports of the base model (Qwen3-Embedding) leave out the
first, wrappers (``torch.compile``, multimodal models) put something in front of both. Models that see or hear have
tensors beside those of their decoder: of towers, and of what brings their output to the decoder's width.
"""

from __future__ import annotations

from collections.abc import Iterable

from isobit.models.config import Norms

_INNER = ("embed_tokens.", "layers.", "norm.")
_HEAD = "lm_head."
# Beginnings of names of what stands beside a decoder; each may have ``model.`` in front.
BESIDE = (
    "visual.", "vit.", "vision_tower.", "vision_model.", "audio_tower.", "multi_modal_projector.", "mm_projector.",
    "embed_vision.",
)  # fmt: skip


def is_beside(name: str) -> bool:
    """Whether a tensor of a model that sees or hears stands beside its decoder."""
    return name.removeprefix("model.").startswith(BESIDE)


def renamed(names: Iterable[str], norms: Norms) -> dict[str, str]:
    """What to call tensors so that they have a model's own names: stored name -> name, those that differ.

    ``norms`` are those of the first layer; one of them is looked for, since none is ever quantized.
    Names that belong to no part of a decoder stay as they are, and so do all where the prefix is not clear.
    """
    names = list(names)
    norm = next(iter(norms.names.values()), None)
    anchor = f"layers.0.{norm}.weight"
    prefixes = {name.removesuffix(anchor) for name in names if _is_part(name, anchor)}
    if len(prefixes) != 1 or "model." in prefixes:
        return {}
    prefix = prefixes.pop()
    found = {}
    for name in names:
        inner, head = name.removeprefix(prefix), name.partition(_HEAD)
        if name.startswith(prefix) and inner.startswith(_INNER):
            found[name] = f"model.{inner}"
        elif head[1] and head[0].endswith(".") and prefix.startswith(head[0]):  # ``language_model.lm_head.weight``
            found[name] = _HEAD + head[2]
    return found if len({*found.values()} | {*names} - {*found}) == len(names) else {}


def _is_part(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")
