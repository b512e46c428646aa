"""The law of attention, word by word in float64, and what a row of kernels says that it lacks of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from isobit.cli import slow_path
from isobit.formats.caches import AUTO
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.heads import AttentionSpec
from isobit.models.batch import Batch
from isobit.models.cache.memory import new_layers
from isobit.models.config import Kept, LayerSpec, SelfAttention
from isobit.models.feed_forward import GatedMlp
from isobit.models.ops import cpu, reference
from isobit.models.ops.limits import FEATURES, lacking
from isobit.models.place import Place
from isobit.models.rotary import QueryScale, Rope
from isobit.models.step import LayerRow, Step


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


@pytest.mark.parametrize("row", [reference.ROW, cpu.ROW], ids=lambda row: row.name)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normed", [False, True])
@torch.inference_mode()
def test_the_law_in_ragged_batches(row: LayerRow, kind: str, normed: bool) -> None:
    if row is cpu.ROW and cpu_library.problem():
        pytest.skip(str(cpu_library.problem()))
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
        row.make(Place()), batch, lambda _: (angles.cos(), angles.sin()), held.__getitem__, 0,
        factors=lambda _: scales if spec.scaled else None,
    )  # fmt: skip
    got = at.ops.attend(spec, 0, q.clone(), k.clone(), v, at)  # which may be turned where they lie
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
