"""A decoder within another model: its keys are a section of ``config.json``, and some of them stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
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
    flat: bool = False,
    either: bool = False,
    aliases: Mapping[str, str] = MappingProxyType({}),
    left: Iterable[str] = (),
    prepared: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Fields:
    """The keys of the decoder, for :func:`isobit.models.hf.read_common`.

    Args:
        fields: the file.
        kinds: what its ``model_type`` may be.
        usual: keys that the family has where the section has not.
        tied: ``tie_word_embeddings`` where the file does not say it; the section's own does not count, as in
            transformers.
        read: keys of the whole that somebody else reads: of its towers.
        flat: whether the decoder's keys stand in the file itself where there is no section.
        either: whether the section's own ``tie_word_embeddings`` counts where the whole's is false.
        aliases: other names of keys of the decoder, and these: they count where the key itself is absent.
        left: keys of the decoder that transformers leaves in the file when it moves the others into a section.
        prepared: the keys as the family reads them, from those of the file.

    Returns:
        The section. What is wrong with the rest of the file is found with what is wrong with it.
    """
    given = fields.raw(SECTION)
    if given is not None and not isinstance(given, Mapping):
        fields.problem(SECTION, "expected an object")
    beside = (*read, "quantization_config")
    for key in beside:
        fields.raw(key)
    if flat and given is None:
        section = _flat(fields, {**(usual or {}), "tie_word_embeddings": tied}, (SECTION, *beside), aliases)
        return fields.inner(prepared(section))
    inner = given if isinstance(given, Mapping) else {}
    outer = {key: fields.raw(key) for key in left if fields.raw(key) is not None}
    section = _named({**(usual or {}), **outer, **inner}, aliases)
    for key in _BESIDE:
        if fields.raw(key) is not None and section.get(key) is None:
            section[key] = fields.raw(key)
    section["tie_word_embeddings"] = fields.flag("tie_word_embeddings", tied) or (
        either and inner.get("tie_word_embeddings") is True
    )
    _complain_of_rest(fields, section)
    found = fields.inner(prepared(section), SECTION)
    if found.raw("model_type") not in (None, *kinds):
        found.problem("model_type", f"the decoder of this family is one of {', '.join(kinds)}")
    return found


def _flat(fields: Fields, usual: dict[str, Any], beside: tuple[str, ...], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a decoder that stand in the file itself."""
    fields.raw("model_type")
    given = {key: value for key, value in fields.unread() if key not in beside}
    fields.skip()
    return _named({**usual, **given}, aliases)


def _named(section: dict[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Keys under their own names; an alias stays that says something else than the key."""
    for alias, key in aliases.items():
        value = section.get(alias)
        if value is not None and section.get(key) in (None, value):
            del section[alias]
            section[key] = value
    return section


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
