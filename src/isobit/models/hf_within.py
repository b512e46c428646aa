"""A decoder within another model: its keys are a section of ``config.json``, and some of them stand beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from isobit.models.fields import Fields, equals_one_of
from isobit.models.hf_keys import SAME, is_harmless

SECTION = "text_config"
_BESIDE = ("dtype", "torch_dtype", "auto_map")  # keys of the whole that the decoder has where its section has not


def decoder(
    fields: Fields,
    *,
    kinds: tuple[str, ...],
    usual: Mapping[str, Any] | None = None,
    tied: bool = False,
    read: Iterable[str] = (),
) -> Fields:
    """The keys of the decoder, for :func:`isobit.models.hf.read_common`.

    Args:
        fields: the file.
        kinds: what its ``model_type`` may be.
        usual: keys that the family has where the section has not.
        tied: ``tie_word_embeddings`` where the file does not say it; the section's own does not count, as in
            transformers.
        read: keys of the whole that somebody else reads: of its towers.

    Returns:
        The section. What is wrong with the rest of the file is found with what is wrong with it.
    """
    given = fields.raw(SECTION)
    if given is not None and not isinstance(given, Mapping):
        fields.problem(SECTION, "expected an object")
    section = {**(usual or {}), **(given if isinstance(given, Mapping) else {})}
    for key in (*read, "quantization_config"):
        fields.raw(key)
    for key in _BESIDE:
        if fields.raw(key) is not None and section.get(key) is None:
            section[key] = fields.raw(key)
    section["tie_word_embeddings"] = fields.flag("tie_word_embeddings", tied)
    _complain_of_rest(fields, section)
    found = fields.inner(section, SECTION)
    if found.raw("model_type") not in (None, *kinds):
        found.problem("model_type", f"the decoder of this family is one of {', '.join(kinds)}")
    return found


def _complain_of_rest(fields: Fields, section: Mapping[str, Any]) -> None:
    """Keys of the whole that nobody reads: those of the decoder's section may be there again."""
    for key, value in fields.unread():
        if isinstance(key, str) and key in section and equals_one_of(value, (section[key],)):
            continue
        if not isinstance(key, str):
            fields.problem(key, "the names of keys are text")
        elif key in SAME or key == "attention_multiplier":
            if value:
                fields.problem(key, f"this is about the decoder, whose keys stand in {SECTION}")
        elif not is_harmless(key, value, {}):
            fields.problem(key, f"isobit does not know this key beside {SECTION}; remove it if it changes nothing")
