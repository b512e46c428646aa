"""The rotary embedding of a ``config.json``: every spelling of it, compared where there are two."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from isobit.models.config import LARGEST_CONTEXT, Rope, RopeKind
from isobit.models.fields import Fields, Number, shown

ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn")
TINY, HUGE = 1e-6, 1e6  # of a factor or of yarn's turns: beyond them frequencies overflow
ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Common:
    """What differs between families in how the common keys are read.

    Attributes:
        kv_heads: num_key_value_heads when the key is absent; None for the number of query heads.
        head_dim: head_dim when the key is absent; None for hidden_size / num_attention_heads.
        max_positions: max_position_embeddings when the key is absent.
        tied: tie_word_embeddings when the key is absent.
        activation: the key that names the activation of the MLP.
        norm_eps, eps: the key of the epsilon of norms, and what it is when absent.
    """

    kv_heads: int | None = None
    head_dim: int | None = None
    max_positions: int = 2048
    tied: bool = False
    activation: str = "hidden_act"
    norm_eps: str = "rms_norm_eps"
    eps: float = 1e-6


def positions(config: Fields, common: Common) -> int:
    """The longest context, as config.json says it."""
    return config.integer("max_position_embeddings", common.max_positions, high=LARGEST_CONTEXT)


def read_rope(config: Fields, common: Common) -> Rope:
    """The rotary embedding, from ``rope_parameters`` (transformers 5), or from ``rope_theta`` and ``rope_scaling``.

    Both spellings may be there when they mean the same; what one of them leaves out counts as its default.
    """
    sections = [section for key in ("rope_scaling", "rope_parameters") if (section := config.section(key)) is not None]
    if not sections:
        return _rope(config, Fields({}), common)
    found = [_rope(config, section, common) for section in sections]
    for section in sections:
        for key, value in section.unread():
            if value:
                section.problem(key, "isobit does not implement this for this rope type")
    if {rope.kind for rope in found} == {"linear"}:  # the original context changes no frequency here
        found = [replace(rope, original_context=max(one.original_context for one in found)) for rope in found]
    differences = _differences(found[0], found[-1])
    if config.sound and differences:
        config.complain(
            f"rope_scaling and rope_parameters disagree: {differences}; write all of it into one of them"
            " (transformers 5 reads rope_scaling, and the rope_theta beside it, when both are there)"
        )
    return found[0]


def _differences(scaling: Rope, parameters: Rope) -> str:
    """Where two rotary embeddings differ, with both values; empty where they compute the same."""
    names = {"kind": "rope_type", "theta": "rope_theta", "original_context": ORIGINAL}
    derived = ("attention_factor", "mscale", "mscale_all_dim")  # three ways to say one number
    pairs = [
        (names.get(field.name, field.name), getattr(scaling, field.name), getattr(parameters, field.name))
        for field in fields(Rope)
        if field.name not in derived
    ]
    if not math.isclose(scaling.scale, parameters.scale, rel_tol=1e-6):
        pairs.append(("attention_factor", scaling.scale, parameters.scale))
    return ", ".join(f"{name} {one} against {other}" for name, one, other in pairs if one != other)


def _rope(config: Fields, section: Fields, common: Common) -> Rope:
    """One spelling of the rotary embedding, with the keys that stand beside it."""
    kind = _rope_kind(section)
    section.only("partial_rotary_factor", (1,), "partial rotary embedding")
    section.raw("finetuned")  # YaRN's authors wrote it; without "dynamic" their own code does not look at it
    context = positions(config, common)
    theta = _agreed(config, section, "rope_theta", config.number("rope_theta", 10000.0, low=1.0),
                    section.number("rope_theta", 10000.0, low=1.0))  # fmt: skip
    original = _agreed(config, section, ORIGINAL, config.integer(ORIGINAL, context, high=LARGEST_CONTEXT),
                       section.integer(ORIGINAL, context, high=LARGEST_CONTEXT))  # fmt: skip
    if kind == "default":
        section.only("factor", (1,), "factor of the default rope type")
        return Rope(theta=theta)
    if kind == "linear":
        known = config.raw(ORIGINAL) is not None or section.raw(ORIGINAL) is not None
        return Rope("linear", theta, section.number("factor", None, TINY, HUGE), original if known else 0)
    if kind == "llama3":
        low, high = (section.number(key, None, TINY, HUGE) for key in ("low_freq_factor", "high_freq_factor"))
        if section.sound and low >= high:
            section.problem("low_freq_factor", f"must be below high_freq_factor = {high:g}")
        return Rope("llama3", theta, section.number("factor", None, TINY, HUGE), original, low, high)
    return _yarn(section, theta, original, context)


def _rope_kind(section: Fields) -> RopeKind:
    new, old = section.raw("rope_type"), section.raw("type")
    if new is not None and old is not None and new != old:
        section.complain(f"rope_type {shown(new)} and type {shown(old)} disagree: remove one of them")
        section.skip()
        return "default"
    named = new if new is not None else old if old is not None else "default"
    for kind in ROPE_KINDS:
        if kind == named:
            return kind
    section.complain(f"rope type {shown(named)} is not implemented; isobit knows {', '.join(ROPE_KINDS)}")
    section.skip()
    return "default"


def _agreed(config: Fields, section: Fields, key: str, beside: Number, within: Number) -> Number:
    """What a rope section says, or the key beside it; both only where they agree."""
    if section.raw(key) is None:
        return beside
    if config.raw(key) is not None and config.sound and beside != within:
        section.problem(key, f"{key} = {beside} stands beside it: remove one of the two")
    return within


def _yarn(section: Fields, theta: float, original: int, context: int) -> Rope:
    section.only("extrapolation_factor", (1,), "factor")  # two of its authors' own code,
    section.only("attn_factor", (1,), "factor")
    section.only("apply_yarn_scaling", (True,), "yarn without attention factor")  # and one of vLLM's
    return Rope(
        "yarn",
        theta,
        section.number("factor", context / original, TINY, HUGE),
        original,
        beta_fast=section.optional("beta_fast", TINY, HUGE) or 32.0,
        beta_slow=section.optional("beta_slow", TINY, HUGE) or 1.0,
        attention_factor=_optional(section, "attention_factor"),
        mscale=section.optional("mscale", TINY, HUGE),
        mscale_all_dim=section.optional("mscale_all_dim", TINY, HUGE),
        truncate=section.flag("truncate", "truncate" not in section),  # null means no, to transformers and vLLM
    )


def _optional(section: Fields, key: str) -> float | None:
    return None if section.raw(key) is None else section.number(key, None, TINY, HUGE)
