"""Attention of prompts that makes weights under the next products: the bits of the kernel that waits for each."""

from __future__ import annotations

import pytest
import torch

from isobit.kernels.cached import Cached
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
NEW, LENGTHS = [100, 3, 700, 65, 1, 513, 60], [100, 500, 1100, 65, 300, 513, 0]  # the last one is padding
BLOCK = 64
SPECS = {
    "llama": AttentionSpec(8, 8, 128),
    "grouped": AttentionSpec(8, 2, 128),
    "narrow": AttentionSpec(8, 1, 64),
    "window": AttentionSpec(8, 2, 128, window=300),
    "short window": AttentionSpec(8, 2, 64, window=7),
    "sinks": AttentionSpec(8, 2, 64, window=128, sinks=torch.linspace(-3, 3, 8)),
    "chunks": AttentionSpec(8, 2, 128, chunk=384),
    "cap": AttentionSpec(8, 4, 128, window=300, softcap=20.0),
}


def batch() -> Sequences:
    columns = -(-max(LENGTHS) // BLOCK)
    table = torch.randperm(len(NEW) * columns, generator=torch.Generator().manual_seed(1)).int().view(-1, columns)
    starts = torch.tensor([0, *NEW]).cumsum(0).int()
    slots = torch.zeros(sum(NEW), dtype=torch.int64)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    parts = (part.cuda() for part in (starts, lengths, table.contiguous(), slots))
    return Sequences(*parts, BLOCK, max(NEW), max(LENGTHS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SPECS)
def test_the_bits_are_those_of_the_kernel_that_waits(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from isobit.kernels.gpu import attending, card
    from isobit.kernels.gpu.layer import GpuLayer
    from isobit.kernels.gpu.workspace import Workspace

    machine = card.machine(None)
    if machine.target.name != "sm_90":
        pytest.skip(f"{machine.target.name} has no such kernel")
    layer, spec, sequences = GpuLayer(machine, Workspace(torch.device("cuda"))), SPECS[name], batch()
    spec = spec if spec.sinks is None else replace(spec, sinks=spec.sinks.cuda())
    shape = (sequences.table.numel(), spec.kv_heads, BLOCK, spec.dim)
    draw = torch.Generator("cuda").manual_seed(2)
    keys, values = (torch.randn(shape, generator=draw, device="cuda").to(dtype) for _ in "kv")
    blank = torch.tensor(float("nan"), dtype=dtype, device="cuda")
    for part in (keys, values):  # behind a sequence there is anything
        for row, length in enumerate(LENGTHS):
            last = int(sequences.table[row, min(length // BLOCK, sequences.table.shape[1] - 1)])
            part[last, :, length % BLOCK :] = blank
    q = torch.randn(sum(NEW), spec.heads * spec.dim, generator=draw, device="cuda").to(dtype)
    held = Cached(keys, values)
    found = layer.attend(spec, q, held, sequences)
    names = {entry for entry, _ in layer._kernels}
    assert "attention_ahead:attention_ahead" in names and "attention_many:attention_many" not in names
    monkeypatch.setattr(attending, "misfit_ahead", lambda *_: "not now")
    wanted = layer.attend(spec, q, held, sequences)
    assert bool(found.isfinite().all())
    assert torch.equal(found, wanted)
    assert not bool(found[-NEW[-1] :].any())
