"""The attention of families with experts, layer by layer, against transformers' own modules; the law of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from isobit.cli import slow_path
from isobit.formats.caches import AUTO
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec
from isobit.models import hf_attention
from isobit.models.attention import Attention
from isobit.models.batch import Batch
from isobit.models.cache.memory import new_layers
from isobit.models.config import GatedMlp, Kept, LayerSpec, QueryScale, Rope, SelfAttention
from isobit.models.fields import Fields
from isobit.models.hf_rope import read_rope
from isobit.models.linear import Linear
from isobit.models.norms import Norm
from isobit.models.ops import reference
from isobit.models.ops.limits import FEATURES, lacking
from isobit.models.parts import Vector
from isobit.models.place import Place
from isobit.models.rope import Angles, query_factors
from isobit.models.step import Step

TOKENS = 90  # more than every window, chunk and step of the tiny models
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 4, "head_dim": 32,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "num_experts_per_tok": 2}  # fmt: skip
FEW = {"num_local_experts": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": ("GptOssForCausalLM", FEW | {
        "sliding_window": 16, "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "truncate": False,
                                                  "original_max_position_embeddings": 32, "rope_theta": 1e4}}),
    "llama4": ("Llama4ForCausalLM", FEW | {
        "intermediate_size_mlp": 32, "attention_chunk_size": 24, "floor_scale": 16, "attn_scale": 0.5,
        "attention_bias": True, "no_rope_layer_interval": 2, "interleave_moe_layer_step": 2,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}),
    "llama4 of another kind": ("Llama4ForCausalLM", FEW | {
        "intermediate_size_mlp": 32, "attention_chunk_size": 32, "attn_temperature_tuning": False,
        "use_qk_norm": False, "no_rope_layers": [1, 0, 0, 1],
        "layer_types": ["full_attention", "chunked_attention", "full_attention", "chunked_attention"]}),
    "minimax_m2": ("MiniMaxM2ForCausalLM", FEW | {"rotary_dim": 16}),
    "glm4_moe": ("Glm4MoeForCausalLM", {
        "n_routed_experts": 4, "moe_intermediate_size": 32, "attention_bias": True, "use_qk_norm": True}),
    "glm4_moe without norms": ("Glm4MoeForCausalLM", {
        "n_routed_experts": 4, "moe_intermediate_size": 32, "partial_rotary_factor": 0.25}),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """(the function that reads its attention, a random transformers model)."""
    architecture, keys = FAMILIES[request.param]
    torch.manual_seed(3)
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**SIZES, **keys)).float().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15) if parameter.dim() > 1 else parameter.data.uniform_(0.5, 1.5)
    return request.param.split()[0], model


def specs(name: str, model: Any) -> list[SelfAttention]:
    """The attention of each layer, as config.json says it."""
    fields = Fields(model.config.to_dict())
    reading = getattr(hf_attention, name)(fields)
    style, rope = reading.style, read_rope(fields, reading.common, 32)
    plain = SelfAttention(4, 2, 32, rope, qk_norm=style.qk_norm, bias=style.qkv_bias, o_bias=style.o_bias)
    windows = reading.windows or (None,) * 4
    layers = [
        style.vary(number, LayerSpec(replace(plain, window=window), GatedMlp(8)))
        for number, window in enumerate(windows)
    ]
    fields.check()
    assert all(isinstance(layer.attention, SelfAttention) for layer in layers)
    return [layer.attention for layer in layers]  # type: ignore[misc]


def ours(spec: SelfAttention, theirs: Any, eps: float) -> Attention:
    """The same attention of isobit's, with the same weights."""
    parts: dict[str, nn.Module] = {"before_attention": Norm(NormSpec(torch.ones(64), eps))}
    for role in "qkvo":
        linear = getattr(theirs, f"{role}_proj")
        parts[role] = Linear(linear.weight.data, bias=None if linear.bias is None else linear.bias.data)
        assert (linear.bias is not None) == (spec.o_bias if role == "o" else spec.bias)
    for role in ("q_norm", "k_norm"):
        if hasattr(theirs, role):
            parts[role] = Norm(NormSpec(getattr(theirs, role).weight.data, eps))
    if hasattr(theirs, "sinks"):
        parts["sinks"] = Vector(theirs.sinks.data)
    assert ("q_norm" in parts) == (spec.qk_norm in ("head", "width")) and ("sinks" in parts) == spec.sinks
    return Attention(spec, 0, parts, eps)


def step(spec: SelfAttention, batch: Batch, dtype: torch.dtype = torch.float32) -> Step:
    angles = Angles(spec.rope, spec.dim, dtype, None)
    room = [(span.end - span.begin, span.length) for span in batch.spans]
    turned = angles.at(batch.positions, batch.sequences.most, room)
    kept = Kept(spec.kv_heads, spec.dim, spec.dim)
    held = new_layers([kept], len(batch.spans), batch.sequences.block, dtype, None, AUTO)
    factors = None if spec.query_scale is None else query_factors(spec.query_scale, batch.positions)
    return Step(reference.ROW.make(Place()), batch, lambda _: turned, held.__getitem__, 0, factors=lambda _: factors)


@torch.inference_mode()
def test_attention_equals_transformers(family: tuple[str, Any]) -> None:
    name, model = family
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        seen.append((kwargs["hidden_states"][0], out[0][0]))

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(note, with_kwargs=True)
    model(torch.randint(0, 64, (1, TOKENS), generator=torch.Generator().manual_seed(1)))
    found = specs(name, model)
    assert len(found) == len(seen) == 4
    for spec, layer, (x, wanted) in zip(found, model.model.layers, seen, strict=True):
        mine = ours(spec, layer.self_attn, model.config.rms_norm_eps)
        got = mine(x, step(spec, Batch.of([list(range(TOKENS))])))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def by_hand(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scales: Tensor) -> Tensor:
    """One sequence, one number after the other, in float64: the law as its words have it."""
    q, k, v, cos, sin = (part.double() for part in (q, k, v, cos, sin))
    tokens, half = len(q), spec.rotated // 2
    heads = [part.view(tokens, -1, spec.dim).clone() for part in (q, k)]
    for part, weight in zip(heads, (spec.q_norm, spec.k_norm), strict=True):

        def norm(part: Tensor = part, weight: Tensor | None = weight) -> None:
            if weight is not None:
                part *= (part.square().mean(-1, keepdim=True) + spec.eps).rsqrt() * weight.double()

        norm() if not spec.norm_behind else None
        for pair in range(half):
            one, other = (2 * pair, 2 * pair + 1) if spec.interleaved else (pair, pair + half)
            first, second = part[..., one].clone(), part[..., other].clone()
            c, s = cos[:, None, pair], sin[:, None, pair]
            part[..., one], part[..., other] = first * c - second * s, second * c + first * s
        norm() if spec.norm_behind else None
    query, key, value = heads[0], heads[1], v.view(tokens, -1, spec.dim)
    out = torch.zeros(tokens, spec.heads, spec.dim, dtype=torch.float64)
    for at in range(tokens):
        first = max(0, at + 1 - spec.window) if spec.window else 0
        first = max(first, at - at % spec.chunk) if spec.chunk else first
        for head in range(spec.heads):
            own = head // (spec.heads // spec.kv_heads)
            scores = key[first : at + 1, own] @ query[at, head] * spec.factor * scales[at].double()
            if spec.softcap:
                scores = torch.tanh(scores / spec.softcap) * spec.softcap
            sink = [] if spec.sinks is None else [spec.sinks[head].double()]
            weights = torch.softmax(torch.cat([scores, torch.stack(sink)]) if sink else scores, 0)
            out[at, head] = weights[: len(scores)] @ value[first : at + 1, own]
    return out.flatten(1)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no rope": {"rope_dims": 0},
    "in part": {"rope_dims": 8},
    "neighbours": {"interleaved": True},
    "neighbours in part, normed behind": {"interleaved": True, "rope_dims": 12, "norm_behind": True},
    "normed in front, in part": {"rope_dims": 4, "window": 7},
    "sinks": {"sinks": numbers(4, seed=5), "window": 5},
    "sinks and caps": {"sinks": numbers(4, seed=5), "softcap": 3.0, "scale": 0.4},
    "chunks": {"chunk": 6},
    "chunks, growing": {"chunk": 4, "scaled": True, "interleaved": True},
    "growing, capped": {"scaled": True, "softcap": 2.0, "rope_dims": 0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normed", [False, True])
@torch.inference_mode()
def test_the_law_in_ragged_batches(kind: str, normed: bool) -> None:
    spec = AttentionSpec(4, 2, 16, eps=1e-5, **KINDS[kind])
    if normed:
        spec = replace(spec, q_norm=numbers(16, seed=8).abs(), k_norm=numbers(16, seed=9).abs())
    lengths = (11, 1, 23)
    batch = Batch.of([range(length) for length in lengths])
    q, k, v = (numbers(sum(lengths), count * 16, seed=seed) for seed, count in ((1, 4), (2, 2), (3, 2)))
    angles = numbers(sum(lengths), spec.rotated // 2, seed=4).repeat(1, 2)
    scales = 1 + numbers(sum(lengths), seed=6).abs() if spec.scaled else torch.ones(sum(lengths))
    held = new_layers([Kept(2, 16, 16)], 3, batch.sequences.block, torch.float32, None, AUTO)
    at = Step(
        reference.ROW.make(Place()), batch, lambda _: (angles.cos(), angles.sin()), held.__getitem__, 0,
        factors=lambda _: scales if spec.scaled else None,
    )  # fmt: skip
    got = reference.attend(spec, 0, q, k, v, at)
    for span in batch.spans:
        own = slice(span.begin, span.end)
        parts = q[own], k[own], v[own], angles[own].cos(), angles[own].sin(), scales[own]
        torch.testing.assert_close(got[own].double(), by_hand(spec, *parts), rtol=0, atol=2e-6)


ASKED: dict[str, dict[str, Any]] = {
    "no-rope": {"rope": None}, "partial-rope": {"rope": Rope(dims=8)}, "interleaved": {"rope": Rope(interleaved=True)},
    "norm-behind": {"qk_norm": "l2"}, "sinks": {"sinks": True}, "chunks": {"chunk": 8},
    "query-scale": {"query_scale": QueryScale(8, 0.1)},
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_a_row_says_what_it_lacks(name: str) -> None:
    plain = LayerSpec(SelfAttention(4, 2, 16), GatedMlp(8))
    asks = replace(plain, attention=replace(plain.attention, **ASKED[name]))
    words = {row.name: row.words for row in FEATURES}
    assert lacking([plain], ()) is None and lacking([plain, asks], {name}) is None
    assert words[name] in (lacking([plain, asks], words.keys() - {name}) or "")


def test_what_runs_in_pytorch_for_lack_of_a_kernel_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        kernels_lack = lacking([LayerSpec(SelfAttention(4, 2, 16, sinks=True), GatedMlp(8))], ())

        def linears(self) -> list[Any]:
            return []

    slow_path.warn(Model())
    assert "PyTorch, slowly: the kernel does not compute attention sinks yet" in capsys.readouterr().err
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    slow_path.warn(Model())
    monkeypatch.delenv("ISOBIT_KERNEL")
    Model.kernels_lack = None
    slow_path.warn(Model())
    assert not capsys.readouterr().err
