"""The rotary embedding of a ``config.json``: every spelling of it, compared where there are two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from isobit.models.config import LARGEST_CONTEXT
from isobit.models.fields import Fields, Number, shown
from isobit.models.rotary import Rope, RopeKind, SectionLayout

ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")
SECTIONS = ("rope_scaling", "rope_parameters")
TINY, HUGE = 1e-6, 1e6  # of a factor or of yarn's turns: beyond them frequencies overflow
ORIGINAL = "original_max_position_embeddings"
AXES = ("mrope_section", "xdrope_section")  # two names of one thing
MOST_AXES = 8


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
        theta: the base of rotary embeddings when its key is absent.
        theta_key: that key, beside a rope section.
        partial: partial_rotary_factor when the key is absent; None where the family rotates whole heads.
        dims_key: the key that says how many dimensions of a head are rotated, where the family has one.
        interleaved: whether rotary pairs are neighbours.
        alpha: rope types that may have a fixed ``alpha``, which stretches theta and nothing else (Hunyuan).
        rope_keys: keys of the rope section that the family reads itself.
        usual: the rope section where there is none.
        rope_names: other names of rope types, and what they mean in this family.
        original: original_max_position_embeddings when the key is absent; None for the longest context.
        sections: of a family whose tokens have positions on several axes: how many pairs of dimensions each axis turns
            when the key is absent, empty where they then have one position; None: of a family that knows no axes.
        section_layout: which pairs these are; see :class:`isobit.models.config.Rope`.
        mscales: whether longrope says itself what it multiplies cosines and sines by, of short and of longer sequences
            (Phi-3.5-MoE). In transformers all other types but the default then do so, too: they are refused.
    """

    kv_heads: int | None = None
    head_dim: int | None = None
    max_positions: int = 2048
    tied: bool = False
    activation: str = "hidden_act"
    norm_eps: str = "rms_norm_eps"
    eps: float = 1e-6
    theta: float = 10000.0
    theta_key: str = "rope_theta"
    partial: float | None = None
    dims_key: str | None = None
    interleaved: bool = False
    alpha: tuple[str, ...] = ()
    rope_keys: tuple[str, ...] = ()
    usual: Mapping[str, Any] | None = None
    rope_names: tuple[tuple[str, RopeKind], ...] = ()
    original: int | None = None
    sections: tuple[int, ...] | None = None
    section_layout: SectionLayout = "pairs"
    mscales: bool = False


def positions(config: Fields, common: Common) -> int:
    """The longest context, as config.json says it."""
    return config.integer("max_position_embeddings", common.max_positions, high=LARGEST_CONTEXT)


def read_rope(config: Fields, common: Common, head_dim: int) -> Rope:
    """The rotary embedding, from ``rope_parameters`` (transformers 5), or from ``rope_theta`` and ``rope_scaling``.

    Both spellings may be there when they mean the same; what one of them leaves out counts as its default.
    """
    sections = [section for key in SECTIONS if (section := config.section(key)) is not None]
    return _agreeing(config, sections, common, head_dim)


def read_ropes(config: Fields, common: Common, head_dim: int, local: tuple[str, float]) -> tuple[Rope, Rope]:
    """The rotary embeddings of layers that attend to all and of those with a window, where they differ (Gemma 3).

    ``rope_parameters`` has a section for each, ``full_attention`` and ``sliding_attention``; ``rope_scaling`` and
    ``rope_theta`` are about the first.

    Args:
        config: the file.
        common: how the family reads common keys.
        head_dim: width of a head.
        local: the key with the theta of layers with a window, and what it is where it is absent.
    """
    key, theta = local
    scaling, both = config.section("rope_scaling"), config.section("rope_parameters")
    whole, near = (None, None) if both is None else (both.section("full_attention"), both.section("sliding_attention"))
    if both is not None:
        refuse_unread(both)
    for section in filter(None, (whole, near)):  # transformers looks for it beside them
        if "truncate" in section and section.raw("truncate") is not True:
            section.problem("truncate", "within a kind of layers vLLM looks at it, transformers does not: remove it")
    first = _agreeing(config, [one for one in (scaling, whole) if one is not None], common, head_dim)
    own = replace(common, theta=theta, theta_key=key)
    return first, _agreeing(config, [] if near is None else [near], own, head_dim)


def refuse_unread(section: Fields) -> None:
    """Complains about keys of a rope section that nobody read and that say something."""
    for key, value in section.unread():
        if value:
            section.problem(key, "isobit does not implement this for this rope type")


def _agreeing(config: Fields, sections: list[Fields], common: Common, head_dim: int) -> Rope:
    """The rotary embedding that all sections mean."""
    if not sections:
        return _rope(config, config.inner(common.usual or {}, "usual rope_parameters"), common, head_dim)
    found = [_rope(config, section, common, head_dim) for section in sections]
    for section in sections:
        refuse_unread(section)
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


def _rope(config: Fields, section: Fields, common: Common, head_dim: int) -> Rope:
    """One spelling of the rotary embedding, with the keys that stand beside it."""
    alpha = _alpha(section, common.alpha)
    kind = "default" if alpha is not None else _rope_kind(section, common)
    section.raw("finetuned")  # YaRN's authors wrote it; without "dynamic" their own code does not look at it
    for key in common.rope_keys:
        section.raw(key)
    context = positions(config, common)
    usual, dims = common.original or context, _dims(config, section, common, head_dim)
    theta = _agreed(config, section, "rope_theta", config.number(common.theta_key, common.theta, low=1.0),
                    section.number("rope_theta", common.theta, low=1.0), common.theta_key)  # fmt: skip
    original = _agreed(config, section, ORIGINAL, config.integer(ORIGINAL, usual, high=LARGEST_CONTEXT),
                       section.integer(ORIGINAL, usual, high=LARGEST_CONTEXT))  # fmt: skip
    sections = _axes(section, common, dims // 2)
    plain = Rope(theta=theta, dims=dims if dims != head_dim else None, interleaved=common.interleaved,
                 sections=sections, section_layout=common.section_layout if sections else "pairs")  # fmt: skip
    if alpha is not None:
        return replace(plain, theta=theta * alpha ** (dims / (dims - 2)) if dims > 2 else theta)
    if kind == "default":
        section.only("factor", (1,), "factor of the default rope type")
        return plain
    plain = replace(plain, kind=kind)
    if common.mscales and kind != "longrope":
        section.complain(f"rope type {kind} is not implemented for this family; isobit knows default and longrope")
        section.skip()
        return plain
    if kind == "dynamic":
        return _dynamic(section, plain, context, original, dims)
    if kind == "linear":
        known = config.raw(ORIGINAL) is not None or section.raw(ORIGINAL) is not None
        return replace(
            plain, factor=section.number("factor", None, TINY, HUGE), original_context=original if known else 0
        )
    plain = replace(plain, original_context=original)
    if kind == "llama3":
        low, high = (section.number(key, None, TINY, HUGE) for key in ("low_freq_factor", "high_freq_factor"))
        if section.sound and low > high:
            section.problem("low_freq_factor", f"must not be above high_freq_factor = {high:g}")
        factor = section.number("factor", None, TINY, HUGE)
        return replace(plain, factor=factor, low_freq_factor=low, high_freq_factor=high)
    if kind == "longrope":
        return _longrope(section, plain, context, dims, common)
    return _yarn(section, plain, context)


def _dynamic(section: Fields, plain: Rope, context: int, original: int, dims: int) -> Rope:
    """Theta that grows with sequences longer than max_position_embeddings, as transformers counts."""
    if section.sound and original != context:
        section.complain(f"{ORIGINAL} = {original}: of the rope type dynamic it is max_position_embeddings = {context}")
    if section.sound and dims <= 2:
        section.complain("the rope type dynamic needs more than 2 rotated dimensions")
    return replace(plain, factor=section.number("factor", None, TINY, HUGE), original_context=context)


def _alpha(section: Fields, types: tuple[str, ...]) -> float | None:
    """Hunyuan's fixed ``alpha`` of a rope that it calls dynamic; None where there is none.

    What stands beside it, transformers and vLLM do not look at.
    """
    named = [name for name in (section.raw("rope_type"), section.raw("type")) if name is not None]
    if not types or not named or any(name not in types for name in named) or not section.raw("alpha"):
        return None
    for key in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        section.raw(key)
    return section.number("alpha", None, TINY, HUGE)


def _axes(section: Fields, common: Common, pairs: int) -> tuple[int, ...]:
    """How many pairs of dimensions are turned by each axis of positions."""
    if common.sections is None:
        return ()
    section.only("mrope_interleaved", (common.section_layout == "woven",), "order of the axes of positions")
    found = {key: value for key in AXES if (value := section.raw(key)) is not None}
    if not found:
        if common.sections and sum(common.sections) != pairs:
            section.complain(
                f"{AXES[0]} is absent, which means {list(common.sections)}: they do not make the {pairs} pairs of"
                " dimensions that are rotated"
            )
            return ()
        return common.sections
    read = [_section(section, key, value, pairs) for key, value in found.items()]
    if read[0] != read[-1]:
        section.complain(f"{' and '.join(found)} disagree: remove one of them")
    return read[0]


def _section(section: Fields, key: str, value: object, pairs: int) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) and len(value) <= MOST_AXES else []
    if not numbers or not all(_is_factor(one) and one == int(one) for one in numbers) or sum(numbers) != pairs:
        section.problem(key, f"expected 1 to {MOST_AXES} whole numbers that make {pairs}, the pairs that are rotated")
        return ()
    return tuple(int(one) for one in numbers)


def _dims(config: Fields, section: Fields, common: Common, head_dim: int) -> int:
    """How many dimensions of a head are rotated."""
    key = "partial_rotary_factor"
    if common.partial is None and common.dims_key is None:
        config.only(key, (1,), "partial rotary embedding")
        section.only(key, (1,), "partial rotary embedding")
        return head_dim
    said = None
    if common.dims_key is not None and config.raw(common.dims_key) is not None:
        said = config.integer(common.dims_key, high=4096)
    usual = common.partial or 1.0
    if said is not None:
        usual = said / head_dim
    for other in ("rope_percent", "rotary_percent", "rotary_pct", "rope_pct"):  # older names, which are not read there
        if other in config and config.raw(key) is not None:
            config.only(other, (config.raw(key),), f"share beside {key}")
    share = _agreed(config, section, key, config.number(key, usual, high=1.0), section.number(key, usual, high=1.0))
    dims = int(head_dim * share)
    if said is not None and config.sound and dims != said:
        config.problem(str(common.dims_key), f"{key} says {dims} of {head_dim} dimensions: correct one of the two")
    if config.sound and (dims % 2 or not dims):
        config.complain(
            f"{dims} of head_dim = {head_dim} dimensions are to be rotated: rotary embeddings need pairs ({key})"
        )
    return dims


def _rope_kind(section: Fields, common: Common) -> RopeKind:
    new, old = section.raw("rope_type"), section.raw("type")
    if new is not None and old is not None and new != old:
        section.complain(f"rope_type {shown(new)} and type {shown(old)} disagree: remove one of them")
        section.skip()
        return "default"
    named = new if new is not None else old if old is not None else "default"
    for name, kind in (*common.rope_names, *((kind, kind) for kind in ROPE_KINDS)):
        if name == named:
            return kind
    section.complain(f"rope type {shown(named)} is not implemented; isobit knows {', '.join(ROPE_KINDS)}")
    section.skip()
    return "default"


def _agreed(
    config: Fields, section: Fields, key: str, beside: Number, within: Number, other: str | None = None
) -> Number:
    """What a rope section says, or the key beside it, which may have another name; both only where they agree."""
    if section.raw(key) is None:
        return beside
    other = other or key
    if config.raw(other) is not None and config.sound and beside != within:
        section.problem(key, f"{other} = {beside} stands beside it: remove one of the two")
    return within


def _yarn(section: Fields, plain: Rope, context: int) -> Rope:
    section.only("extrapolation_factor", (1,), "factor")  # two of its authors' own code,
    factor = section.number("factor", context / plain.original_context, TINY, HUGE)
    given = _optional(section, "attn_factor")
    if given not in (None, 1):
        both = replace(plain, factor=factor).scale * given
        section.problem(
            "attn_factor",
            f"vLLM multiplies cosines and sines by it, transformers does not look at it. For the former write"
            f" attention_factor: {both:.6g} in its place, for the latter remove it",
        )
    section.only("apply_yarn_scaling", (True,), "yarn without attention factor")  # and one of vLLM's
    return replace(
        plain,
        factor=factor,
        beta_fast=section.optional("beta_fast", TINY, HUGE) or 32.0,
        beta_slow=section.optional("beta_slow", TINY, HUGE) or 1.0,
        attention_factor=_optional(section, "attention_factor"),
        mscale=section.optional("mscale", TINY, HUGE),
        mscale_all_dim=section.optional("mscale_all_dim", TINY, HUGE),
        truncate=section.flag("truncate", "truncate" not in section),  # null means no, to transformers and vLLM
    )


def _longrope(section: Fields, plain: Rope, context: int, dims: int, common: Common) -> Rope:
    """Two sets of factors, one for each pair of dimensions."""
    short, long = (_factors(section, key, dims // 2) for key in ("short_factor", "long_factor"))
    scale, long_scale = _optional(section, "attention_factor"), None
    if common.mscales:
        if scale is not None:
            section.problem("attention_factor", "transformers takes short_mscale and long_mscale here: remove it")
        scale, long_scale = (section.number(key, None, TINY, HUGE) for key in ("short_mscale", "long_mscale"))
    return replace(
        plain,
        factor=section.number("factor", context / plain.original_context, TINY, HUGE),
        attention_factor=scale,
        long_attention_factor=long_scale,
        short_factors=short,
        long_factors=long,
    )


def _factors(section: Fields, key: str, count: int) -> tuple[float, ...]:
    found = section.raw(key)
    numbers = found if isinstance(found, list) else []
    if len(numbers) != count or not all(_is_factor(one) for one in numbers):
        section.problem(key, f"expected {count} numbers from {TINY:g} to {HUGE:g}, one for each pair of dimensions")
        return (1.0,) * count
    return tuple(float(one) for one in numbers)


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and TINY <= value <= HUGE


def _optional(section: Fields, key: str) -> float | None:
    return None if section.raw(key) is None else section.number(key, None, TINY, HUGE)
