"""The CPU kernels give a token the same bits in a prompt, in a part of one and alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import make_model, save, token_ids
from running import hidden, run
from torch import Tensor

from isobit.errors import IsobitError
from isobit.formats.rules import Policy
from isobit.formats.schemes import SCHEMES, scheme
from isobit.kernels.cpu import formats as cpu_formats
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu import linear as cpu
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.quantizer.grid import quantize_weight

PROBLEM = cpu_library.problem()
if PROBLEM:
    pytest.skip(PROBLEM, allow_module_level=True)

# Kernels see weights and activations under few-bit scales as others: test_microscaling.py.
PLAIN = {name: row for name, row in SCHEMES.items() if row.weights is None or row.weights.scale is None}
ROUNDED = [name for name, row in PLAIN.items() if row.activations]
KEPT = [
    name
    for name, row in PLAIN.items()
    if not row.activations and not (row.weights and cpu_formats.unsupported(row.weights, None))
]
ROWS = (2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 25, 32, 33, 41, 64, 65, 101, 257)
FEW = 12  # rows of activations that are not rounded, for which the same is promised (docs/numerics.md section 6)


def variants() -> list[str]:
    """The instruction sets of this machine, and AVX-512 as CPUs have it that lack its extensions."""
    found = [*cpu_library.isas()]
    before = cpu_library.isa()
    for name in ("avx512-bf16", "avx512-vnni"):
        try:
            cpu_library.use_isa(name)
        except IsobitError:
            continue
        found.append(name)
    cpu_library.use_isa(before)
    return found


@pytest.fixture(params=variants(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_library.isa()
    cpu_library.use_isa(request.param)
    yield request.param
    cpu_library.use_isa(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def bound(name: str, n: int, k: int, alike: bool = False) -> cpu.CpuLinear:
    row, bias = scheme(name), normal(n, seed=1)
    if row.weights is None:
        assert row.dtype is not None
        return cpu.bind(normal(n, k).to(getattr(torch, row.dtype)), None, None, bias, alike=alike)
    weight = quantize_weight(normal(n, k), row.weights, search="absmax", scale_dtype=torch.bfloat16)
    static = None if row.activations is None or row.activations.dynamic else torch.tensor([0.01])
    return cpu.bind(weight, row.activations, static, bias, alike=alike)


@pytest.mark.parametrize("name", [*ROUNDED, "w4a8-g256", *KEPT])
def test_a_row_is_the_same_among_any_number_of_others(name: str) -> None:
    row, before = scheme(name), cpu_library.threads()
    assert row.weights is None or row.weights.group is None or 1280 % row.weights.group == 0
    for k in (1280,) if row.weights and (row.weights.group or row.weights.block) else (1280, 1001):
        run = bound(name, 70, k)
        most = max(ROWS) if row.activations else FEW
        x = normal(most, k, seed=2)
        alone = torch.cat([run(x[at : at + 1]) for at in range(most)])
        try:
            for threads in (1, 2):
                cpu_library.set_threads(threads)
                for m in ROWS:
                    assert m > most or torch.equal(run(x[:m]), alone[:m]), (k, m)
        finally:
            cpu_library.set_threads(before)


@pytest.mark.parametrize("name", [*KEPT, "w4a8", "w4a8-g64", "w4a8-g96", "fp8-block"])
def test_where_it_is_asked_for_any_number_of_rows_is_alike(name: str) -> None:
    group = scheme(name).weights.group if scheme(name).weights else None  # type: ignore[union-attr]
    for k in (1280, 1152) if group or name == "fp8-block" else (1280, 1001, 4224):
        if k % (group or 1):
            continue
        run, usual = bound(name, 70, k, alike=True), bound(name, 70, k)
        x = normal(max(ROWS), k, seed=3)
        x[5] *= 1e-3
        x[5, ::7] *= 1e6  # a row that is not written in digits
        alone = torch.cat([run(x[at : at + 1]) for at in range(len(x))])
        assert torch.equal(alone, torch.cat([usual(x[at : at + 1]) for at in range(len(x))])), "few rows are as ever"
        for m in ROWS:
            assert torch.equal(run(x[:m]), alone[:m]), (k, m)
        together = cpu.linears([run, bound(name, 33, k, alike=True), usual], x)
        assert torch.equal(together[0], alone)


# Heads of every kind: one query head for each of keys, scores then added up by lanes; several; norms; windows.
MODELS = {
    "LlamaForCausalLM": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32},
    "Qwen3ForCausalLM": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 96},
    "MistralForCausalLM": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 20},
}
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}
DYNAMIC = [name for name in ROUNDED if not scheme(name).needs_calibration]


@pytest.fixture(scope="module", params=DYNAMIC)
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, made = tmp_path_factory.mktemp("same_bits"), []
    for name, heads in MODELS.items():
        source = save(make_model(name, **SIZES, **heads), folder / f"{name}-source")
        quantize(source, folder / name, Policy(scheme(request.param)), progress=False)
        made.append(folder / name)
    return made


@torch.inference_mode()
def in_parts(model: Decoder, ids: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """What the layers leave, and the last token's logits."""
    cache = model.new_cache(len(ids), ids.shape[1])
    parts = [hidden(model, ids[:, at : at + at_once], cache) for at in range(0, ids.shape[1] - 1, at_once)]
    return torch.cat(parts, 1), run(model, ids[:, -1:], cache, last_only=True)


@torch.inference_mode()
def test_a_prompt_at_once_is_the_same_as_token_by_token(checkpoints: list[Path]) -> None:
    for folder in checkpoints:
        model, ids = load_model(folder), token_ids(67, batch=1)
        assert {linear.kernel.name for _, linear in model.linears()} == {"cpu"}
        states, logits = in_parts(model, ids, 66)
        for at_once in (1, 6, 33):
            found, last = in_parts(model, ids, at_once)
            assert torch.equal(found, states), (folder.name, at_once)
            assert torch.equal(last, logits), (folder.name, at_once)
        assert torch.equal(run(model, ids, last_only=True), logits), folder.name
