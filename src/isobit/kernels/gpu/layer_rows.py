"""The kernels of a layer beside its linears as rows, which the proof and docs/support.md read; no torch, no Triton.

``layer.py`` launches them, in the configurations of ``layer_tiles.py`` and ``row_tiles.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from isobit.kernels.gpu import attention_alike_tiles as alike
from isobit.kernels.gpu import choosing_tiles, grouped_rows, latent_tiles, one_tiles, routing_tiles, row_tiles
from isobit.kernels.gpu import layer_tiles as tiles
from isobit.kernels.gpu.ahead_tiles import attention_ahead, misfit_ahead
from isobit.kernels.gpu.before_tiles import RANGE
from isobit.kernels.gpu.choosing_tiles import ChoiceShape, LogitsShape, Rounds
from isobit.kernels.gpu.latent_tiles import LatentShape, ProductShape
from isobit.kernels.gpu.layer_tiles import AttentionShape, RareRope, RopeShape
from isobit.kernels.gpu.one_tiles import OneShape
from isobit.kernels.gpu.routing_tiles import PlacesShape, RouterShape, SumShape
from isobit.kernels.gpu.row_tiles import RowShape
from isobit.kernels.gpu.tiles import CODES, Config
from isobit.kernels.gpu.variant import Requires, compiles, has_bf16, has_unit, widens_first
from isobit.targets.spec import Target


@dataclass(frozen=True)
class LayerRow:
    """One kernel of a layer.

    Attributes:
        name: unique, for people.
        entry: ``module:function`` of the Triton function.
        configurations: how it is compiled for usual models on a target.
        requires: why a target cannot run it, or None.
        multiplies: dtype of what it multiplies on matrix units; None if it does not.
        attends: what it is an attention of, which plans name: ``heads`` or ``latent``; empty where it is none.
        promises: regular expressions of mnemonics, each of which the hot loop must show on that target.
        groups: whether an attention reads caches whose groups share a scale, where a target has bfloat16.
    """

    name: str
    entry: str
    configurations: Callable[[Target], Iterator[Config]]
    requires: Requires = compiles
    multiplies: str | None = None
    attends: str = ""
    promises: Callable[[Target], tuple[str, ...]] = field(default=lambda target: ())
    groups: bool = False


_MODULES = "isobit.kernels.gpu.triton"
_ATTENTIONS = "few", "many", "one"
_CODED: dict[str, tuple[str, ...]] = {"bfloat16": ("e4m3fn", "int8"), "float16": ("e5m2",), "float32": ()}
_FORMS: tuple[row_tiles.Form, ...] = ("apart", "words")
_SMALL_TILES = {"HGMMA": "HMMA", "UTCHMMA": "HMMA"}  # a tile of 16 queries is too low for the units of warp groups


def _shapes(dtype: str) -> tuple[AttentionShape, ...]:
    """Attentions of usual models: grouped queries; wide heads with a window and a cap; more heads than tiles hold;
    sinks; chunks; and caches of codes, each format once."""
    plain = AttentionShape(dtype, 32, 8, 128)
    coded = tuple(replace(plain, element=element) for element in _CODED[dtype])
    if dtype != "bfloat16":
        return plain, *coded
    odd = AttentionShape(dtype, 16, 8, 256, True, True), AttentionShape(dtype, 32, 32, 80, block=16)
    sinks = AttentionShape(dtype, 64, 8, 64, True, sinks=True)
    return plain, *odd, sinks, AttentionShape(dtype, 40, 8, 128, chunk=True), *coded


def _attentions(family: str, dtype: str) -> Callable[[Target], Iterator[Config]]:
    if family == "one":
        return lambda target: (one_tiles.attention_one(shape, target) for shape in _of_one(dtype))
    shapes, configure = _shapes(dtype), tiles.attention_few
    if family == "many":
        shapes = tuple(replace(shape, fused=one_tiles.fuses(shape.heads, shape.kv_heads)) for shape in shapes)
        configure = tiles.attention_many
    return lambda target: (configure(shape, target) for shape in (*shapes, *grouped_rows.attentions(dtype, target)))


def _of_one(dtype: str) -> Iterator[OneShape]:
    """One of each kind, heads with keys of their own, and in groups; the first in all ways of spreading a step."""
    shapes = [replace(shape, heads=32, kv_heads=32, fused=True) for shape in _shapes(dtype)]
    for number, shape in enumerate(shapes):
        rope = RopeShape(dtype, 32, 32, shape.dim, element=shape.element)
        yield OneShape(shape, rope, 1, True)
        if not number:
            yield OneShape(shape, replace(rope, norm=True), 1, True)
            yield OneShape(shape, rope, 1)
            yield OneShape(shape, rope, 2)
            yield OneShape(shape, rope, 2, True)
    shape, rope = AttentionShape(dtype, 32, 8, 128, fused=True), RopeShape(dtype, 32, 8, 128)
    yield from (OneShape(shape, rope, ahead, split) for ahead in (1, 2) for split in (False, True))


def _shows(family: str, dtype: str) -> Callable[[Target], tuple[str, ...]]:
    """Float32 is multiplied in whatever a target has for it, and so is one token's attention."""

    def promises(target: Target) -> tuple[str, ...]:
        unit = target.unit(dtype, dtype)
        if dtype == "float32" or unit is None or family == "one":
            return ()
        return (_SMALL_TILES.get(unit.instruction, unit.instruction) if family == "few" else unit.instruction,)

    return promises


def _attention_rows() -> Iterator[LayerRow]:
    for family in _ATTENTIONS:
        for short, dtype in (("bf16", "bfloat16"), ("f16", "float16"), ("f32", "float32")):
            yield LayerRow(
                f"attention-{family}-{short}", f"{_MODULES}.attention_{family}:attention_{family}",
                _attentions(family, dtype), has_bf16 if short == "bf16" else compiles, dtype,
                "heads", _shows(family, dtype), family != "one",
            )  # fmt: skip


_ALIKE = {
    "few": alike.attention_alike_few, "many": alike.attention_alike_many, "merge": alike.attention_alike_merge
}  # fmt: skip


def _is_alike(dtype: str) -> Requires:
    def requires(target: Target) -> str | None:
        reason = has_bf16(target) if dtype == "bfloat16" else compiles(target)
        if reason or alike.few_of(_shapes(dtype)[0], target):
            return reason
        return f"the bits of sums in few rows and many were not compared with the units of {target.name}"

    return requires


def _alike_rows() -> Iterator[LayerRow]:
    """Attention of batch-invariant models."""

    def configurations(family: str, dtype: str) -> Callable[[Target], Iterator[Config]]:
        shapes = _shapes(dtype) if family != "merge" else (*_shapes(dtype), *_shapes("float16"))

        read = "" if family == "merge" else dtype  # which reads no keys
        return lambda target: (
            _ALIKE[family](replace(shape, alike=True), target)
            for shape in (*shapes, *grouped_rows.formats(read, target))
        )

    for family in _ALIKE:
        for short, dtype in (("bf16", "bfloat16"), ("f16", "float16")):
            if family != "merge" or short == "bf16":  # which has no products
                yield LayerRow(
                    f"attention-alike-{family}" + ("" if family == "merge" else f"-{short}"),
                    f"{_MODULES}.attention_alike:attention_alike_{family}", configurations(family, dtype),
                    _is_alike(dtype), None if family == "merge" else dtype,
                )  # fmt: skip


def _ahead_rows() -> Iterator[LayerRow]:
    """Prompts, where a warp group multiplies by itself."""

    def requires(dtype: str) -> Requires:
        return lambda target: compiles(target) or misfit_ahead(AttentionShape(dtype, 32, 8, 128), target)

    def configurations(dtype: str) -> Callable[[Target], Iterator[Config]]:
        found = [shape for shape in _shapes(dtype) if not shape.element]
        wide = AttentionShape(dtype, 32, 8, 128)
        found += [replace(wide, window=True, softcap=True), replace(wide, kv_heads=32)]
        return lambda target: (attention_ahead(one, target) for one in found if misfit_ahead(one, target) is None)

    for short, dtype in (("bf16", "bfloat16"), ("f16", "float16")):
        yield LayerRow(
            f"attention-ahead-{short}", f"{_MODULES}.attention_ahead:attention_ahead", configurations(dtype),
            requires(dtype), dtype, "heads", lambda target: ("HGMMA",),
        )  # fmt: skip


def _merges(target: Target) -> Iterator[Config]:
    for shape in _shapes(_usual(target)):
        yield tiles.attention_merge(shape, target)


def _usual(target: Target) -> str:
    return "bfloat16" if has_bf16(target) is None else "float16"


def _ropes(target: Target) -> Iterator[Config]:
    dtype = _usual(target)
    for norm, element in ((False, ""), (True, ""), (False, "e4m3fn"), (True, "int8")):
        for late in (False, True):
            yield tiles.rope_append(RopeShape(dtype, 32, 8, 128, norm, late=late, element=element), target)


def _rare_ropes(target: Target) -> Iterator[Config]:
    """Llama 4's two kinds of layers, GLM-4's rotation, Hunyuan's norms, MiniMax-M2's rotation and norms; and any layer
    over a cache whose groups share a scale."""
    plain = RopeShape(_usual(target), 32, 8, 128, late=True)
    for rare in grouped_rows.ropes(target):
        yield tiles.rope_append_any(rare, target)
    for element in ("", "e4m3fn"):
        shape = replace(plain, element=element)
        yield tiles.rope_append_any(RareRope(shape, "none", 0, scaled=True), target)
        yield tiles.rope_append_any(RareRope(shape, "none", 64, interleaved=True), target)
        yield tiles.rope_append_any(RareRope(shape, "head-behind", 128), target)
        yield tiles.rope_append_any(RareRope(shape, "width", 64), target)


def _norms(target: Target) -> Iterator[Config]:
    dtype, parts = _usual(target), row_tiles.parts_of_norm(4096, 1)
    for late in (False, True):
        for add in (False, True):
            yield row_tiles.norm_token(RowShape(dtype, 4096, add, late=late), target)
        for element in ("e4m3fn", "int8"):
            plain = RowShape(dtype, 4096, False, element, CODES[element], late=late)
            yield row_tiles.norm_token(replace(plain, add=True), target)
            yield row_tiles.norm_token(replace(plain, parts=parts), target)
            if late:
                yield row_tiles.norm_token(plain, target)
                yield row_tiles.norm_token(replace(plain, centred=True, bias=True, add=True), target)
    for bias in (False, True):
        centred = RowShape(dtype, 4096, True, late=True, centred=True, bias=bias)
        yield row_tiles.norm_token(centred, target)
    if _narrows(target):
        for add in (False, True):
            yield row_tiles.norm_token(RowShape(dtype, 4096, add, RANGE, "*fp16", late=True), target)


def _narrows(target: Target) -> bool:
    """Whether a linear of very many tokens of bfloat16 takes them in float16."""
    return widens_first("bfloat16")(target) is None and has_unit("float16")(target) is None


def _gates(target: Target) -> Iterator[Config]:
    kinds = ("silu", ""), ("gelu_tanh", ""), ("silu", "int8"), ("gelu", ""), ("relu2", ""), ("limited", "")
    for activation, element in kinds:
        for form in _FORMS:
            shape = RowShape(_usual(target), 11008, element=element, activation=activation, form=form)
            yield row_tiles.gate(replace(shape, late=True, limit=7.0 if activation == "limited" else 0.0), target)
    for activation in ("gelu_tanh", "gelu"):
        yield row_tiles.gate(RowShape(_usual(target), 11008, activation=activation, form="alone", late=True), target)


def _gates_of_tokens(target: Target) -> Iterator[Config]:
    """Of what has experts or not, in each format; gates of words, and of linears that are apart."""
    narrowed = ((RANGE, "*fp16"),) if _narrows(target) else ()
    for k in (4096, 11008):
        for element, codes in (*CODES.items(), *narrowed):
            shape = RowShape(_usual(target), k, element=element, codes=codes, form="words", late=True)
            yield row_tiles.gate_token(shape, target)
            if k > 4096:
                yield row_tiles.gate_token(replace(shape, form="apart"), target)
    for form in _FORMS:
        shape = RowShape(_usual(target), 14336, element="e4m3fn", form=form, late=True)
        yield row_tiles.gate_token(shape, target)
        yield row_tiles.gate_token(replace(shape, activation="gelu_tanh", codes="*fp16"), target)


def _roundings(target: Target) -> Iterator[Config]:
    for element in CODES:
        shape = RowShape(_usual(target), 11008, element=element, codes=CODES[element])
        yield row_tiles.quantize_parts(replace(shape, late=True), target)


def _routers(target: Target) -> Iterator[tuple[RouterShape, int]]:
    """Qwen3-MoE's, gpt-oss's, Phi-3.5-MoE's and DeepSeek V3's routers, and K."""
    dtype = _usual(target)
    yield RouterShape(dtype, 128, 8), 2048
    yield RouterShape(dtype, 32, 4, "softmax-behind", renormalize=False, bias=True), 2880
    yield RouterShape(dtype, 16, 2, "sparsemixer", renormalize=False), 4096
    yield RouterShape(dtype, 256, 8, "sigmoid", 8, 4, by_two=True, corrected=True), 7168


def _logits(
    configure: Callable[[LogitsShape, Target], Config], sizes: tuple[int | None, ...]
) -> Callable[[Target], Iterator[Config]]:
    """Routers with weights of the activations' dtype and in float32, that round for the experts or do not."""

    def configurations(target: Target) -> Iterator[Config]:
        for router, k in _routers(target):
            for tile in (None if size is None else choosing_tiles.tile_of(size) for size in sizes):
                plain = LogitsShape(router, k, True, tile=tile)
                yield configure(plain, target)
                for element in CODES if router.scores == "softmax" else ():
                    yield configure(replace(plain, rounds=Rounds(element, CODES[element], k=k)), target)
                yield configure(replace(plain, narrow=False), target)

    return configurations


def _choices(
    configure: Callable[[ChoiceShape, Target], Config], *, later: bool = False
) -> Callable[[Target], Iterator[Config]]:
    """Choices of one token, of as many as a program has, and of those of several programs."""

    def configurations(target: Target) -> Iterator[Config]:
        for router, _ in _routers(target):
            for tokens, width in ((300, 64), (2048, 64), *(((64, 8),) if later else ((1, 0), (8, 8), (64, 8)))):
                tile, at_once = choosing_tiles.tile_of(tokens), choosing_tiles.tokens_at_once(tokens, router.experts)
                splits = 1 if tile is None else tile[2]
                if later and tokens <= at_once:
                    continue
                yield configure(ChoiceShape(router, splits, at_once, width, tokens <= at_once), target)

    return configurations


def _of_experts() -> Iterator[LayerRow]:
    """What stands beside the linears of experts."""
    places = tuple(PlacesShape(128, tile) for tile in (8, 16, 64, 128))

    def of_routers(configure: Callable[[RouterShape, Target], Config]) -> Callable[[Target], Iterator[Config]]:
        return lambda target: (configure(shape, target) for shape, _ in _routers(target))

    def of_places(configure: Callable[[PlacesShape, Target], Config]) -> Callable[[Target], Iterator[Config]]:
        return lambda target: (configure(shape, target) for shape in places)

    def sums(target: Target) -> Iterator[Config]:
        for weighted in (True, False):
            for adds in (True, False):
                yield routing_tiles.add_experts(SumShape(_usual(target), 8, weighted, adds), target)

    def weighed(target: Target) -> Iterator[Config]:
        yield routing_tiles.weigh_inputs(SumShape(_usual(target), 1), target)

    def gates(target: Target) -> Iterator[Config]:
        yield routing_tiles.gate_by(_usual(target), target)

    for name, function, configurations in (
        ("router-many", "router_many", of_routers(routing_tiles.router_many)),
        ("choose-experts", "choose_experts", of_routers(routing_tiles.choose_experts)),
        ("count-pairs", "count_pairs", of_places(routing_tiles.count_pairs)),
        ("place-pairs", "place_pairs", of_places(routing_tiles.place_pairs)),
        ("add-experts", "add_experts", sums),
        ("weigh-inputs", "weigh_inputs", weighed),
        ("gate-by", "gate_by", gates),
    ):
        yield LayerRow(name, f"{_MODULES}.routing:{function}", configurations)
    for name, function, configurations in (
        ("router-token", "routers:router_token", _logits(choosing_tiles.router_token, (None,))),
        ("router-tiles", "routers:router_tiles", _logits(choosing_tiles.router_tiles, (17, 512, 2048))),
        ("choose-pairs", "choosing:choose_pairs", _choices(choosing_tiles.choose_pairs)),
        ("place-ranked", "choosing:place_ranked", _choices(choosing_tiles.place_ranked, later=True)),
    ):
        yield LayerRow(name, f"{_MODULES}.{function}", configurations)


def _latents(dtype: str, target: Target) -> Iterator[LatentShape]:
    """Latent attention of DeepSeek V2-Lite and V3; and caches of codes, each format once."""
    for element in ("", *_CODED[dtype]):
        yield LatentShape(dtype, 16, element=element, late=True)
    yield from grouped_rows.latents(dtype, target)
    if dtype == "bfloat16":
        yield LatentShape(dtype, 128)


def _shows_either(dtype: str) -> Callable[[Target], tuple[str, ...]]:
    """As ``_shows``, whether tiles are low or high."""
    return lambda target: tuple(one.replace("HMMA", "HG?MMA") for one in _shows("few", dtype)(target))


def _has_latents(dtype: str) -> Requires:
    return lambda target: (has_bf16(target) if dtype == "bfloat16" else None) or latent_tiles.requires(target)


def _latent_rows() -> Iterator[LayerRow]:
    attentions = {"few": latent_tiles.few, "many": latent_tiles.many}

    def of(configure: Callable[[LatentShape, Target], Config], dtype: str = "") -> Callable[[Target], Iterator[Config]]:
        return lambda target: (configure(shape, target) for shape in _latents(dtype or _usual(target), target))

    def products(target: Target) -> Iterator[Config]:
        for back in (False, True):
            for many in (False, True):
                shape = LatentShape(_usual(target), 16)
                yield latent_tiles.product(ProductShape(shape, back, many), target)

    for family, configure in attentions.items():
        for short, dtype in (("bf16", "bfloat16"), ("f16", "float16")):
            yield LayerRow(
                f"latent-{family}-{short}", f"{_MODULES}.attention_latent:latent_{family}", of(configure, dtype),
                _has_latents(dtype), dtype, "latent", _shows_either(dtype), True,
            )  # fmt: skip
    for name, function, configurations in (
        ("latent-append", "latent_append:latent_append", of(latent_tiles.append)),
        ("latent-merge", "attention_latent:latent_merge", of(latent_tiles.merge)),
        ("latent-product", "latent_product:latent_product", products),
    ):  # fmt: skip
        yield LayerRow(name, f"{_MODULES}.{function}", configurations, latent_tiles.requires)


LAYER_ROWS: tuple[LayerRow, ...] = (
    *_attention_rows(),
    *_latent_rows(),
    *_alike_rows(),
    *_ahead_rows(),
    LayerRow("attention-merge", f"{_MODULES}.attention_few:attention_merge", _merges),
    LayerRow("rope-append", f"{_MODULES}.rope:rope_append", _ropes),
    LayerRow("rope-append-any", f"{_MODULES}.rope:rope_append_any", _rare_ropes),
    LayerRow("norm", f"{_MODULES}.norm:norm_token", _norms),
    LayerRow("gate", f"{_MODULES}.gate:gate", _gates),
    LayerRow("gate-token", f"{_MODULES}.gate:gate_token", _gates_of_tokens),
    LayerRow("quantize-parts", f"{_MODULES}.quantize:quantize_parts", _roundings),
    LayerRow("take-rows", f"{_MODULES}.take:take_rows", lambda target: iter((routing_tiles.take_rows(8, target),))),
    *_of_experts(),
)
