"""Batch-invariant models on a GPU: the same bits alone, in any batch, in pieces and from the cache."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import layer_oracle as oracle
import pytest
import torch

from isobit.bundled import model_path
from isobit.engine.answer import Completion
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy
from isobit.formats.schemes import WeightSpec, scheme
from isobit.kernels.gpu import card
from isobit.kernels.gpu.bind import BoundLinear, bind
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.heads import AttentionSpec
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.quantizer.grid import quantize_weight
from isobit.targets.table import target as lookup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
SCHEMES = ["bf16", "fp8", "int8", "int4", "int4-asym", "fp8-w8a16", "int8-w8a16", "fp8-block", "int3-g32"]
PARAMS = SamplingParams(max_tokens=40, logprobs=2, prompt_logprobs=2, ignore_eos=True)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1000, 1408), (12288, 4096)])
def test_a_row_is_the_same_among_any_number_of_others(name: str, n: int, k: int) -> None:
    row = scheme(name)
    group = row.weights.group if row.weights is not None and row.weights.group else 1
    if k % group or (name == "fp8-block" and k % 128):
        pytest.skip("the groups do not fit")
    torch.manual_seed(n + k)
    weight = torch.randn(n, k).bfloat16()
    if row.weights is not None:
        held = quantize_weight(weight.float(), row.weights, search="absmax", scale_dtype=torch.bfloat16)
        parts = (None if part is None else part.cuda() for part in (held.codes, held.scale, held.zero))
        weight = type(held)(held.spec, held.shape, *parts)  # type: ignore[assignment]
    else:
        weight = weight.cuda()
    bound = bind(weight, row.activations, None, None, alike=True)
    x = torch.randn(1100, k, device="cuda").bfloat16()
    check_rows(bound, x, row.activations is not None)


@pytest.mark.parametrize("element", ["e2m1", "e4m3fn", "int8"])
def test_a_row_by_codes_in_groups_is_the_same_among_any_number_of_others(element: str) -> None:
    n, k = 4096, 4096
    torch.manual_seed(5)
    codes = {
        "e2m1": torch.randint(-(2**31), 2**31 - 1, (n, k // 8), dtype=torch.int32),
        "e4m3fn": torch.randn(n, k).to(torch.float8_e4m3fn).view(torch.uint8),
        "int8": torch.randint(-127, 128, (n, k), dtype=torch.int8),
    }[element]
    scale = (torch.rand(n, k // 32) + 0.5).bfloat16()
    weight = QTensor(WeightSpec(element, "group", 32), (n, k), codes.cuda(), scale.cuda())
    x = torch.randn(1100, k, device="cuda").bfloat16()
    check_rows(bind(weight, None, None, None, alike=True), x, rounded=False)


def check_rows(bound: BoundLinear, x: torch.Tensor, rounded: bool) -> None:
    """That a linear gives the product, and each row its bits among any number of others."""
    weight, whole = bound.weight, bound(x)
    exact = x.double() @ (weight.dequantize() if isinstance(weight, QTensor) else weight).double().T
    near = (whole.double() - exact).norm() / exact.norm()
    assert near < (0.04 if rounded else 4e-3), "what it gives is the product"
    alone = torch.cat([bound(x[at : at + 1]) for at in range(40)])
    assert torch.equal(alone, whole[:40]), "alone"
    for tokens in (2, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129, 200, 256, 512, 513):
        assert torch.equal(bound(x[:tokens]), whole[:tokens]), tokens
        assert torch.equal(bound(x[-tokens:]), whole[-tokens:]), tokens


@pytest.fixture(scope="module", params=["bf16", "fp8", "int8", "int4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("alike") / request.param
    if request.param == "bf16":
        return load_model(model_path(), device="cuda", batch_invariant=True)
    quantize(model_path(), folder, Policy(scheme(request.param)), progress=False)
    return load_model(folder, device="cuda", batch_invariant=True)


def essence(found: Completion) -> object:
    return found.token_ids, found.logprobs, found.prompt_logprobs


def test_a_request_is_the_same_whatever_is_beside_it(model: Decoder) -> None:
    tokenizer = Tokenizer.from_folder(Path(model_path()))
    numbers = random.Random(3)
    shared = [numbers.randrange(300, 900) for _ in range(2 * BLOCK + 3)]
    prompts = [shared + [numbers.randrange(300, 900) for _ in range(count)] for count in (1, 30, 9, 200)] + [[300, 400]]
    alone = [essence(LLM(model, tokenizer, prefix_cache=False).generate([ids], PARAMS)[0]) for ids in prompts]
    assert list(map(essence, LLM(model, tokenizer).generate(prompts, PARAMS))) == alone, "in a batch"
    pieces = LLM(model, tokenizer, sequences=3, chunk=17)
    assert list(map(essence, pieces.generate(prompts, PARAMS))) == alone, "in pieces"
    warm = LLM(model, tokenizer)
    plain = SamplingParams(max_tokens=40, logprobs=2, ignore_eos=True)
    first, again = warm.generate(prompts, plain), warm.generate(prompts, plain)
    assert again[0].usage.cached_tokens == 2 * BLOCK
    for one, other in zip(first, again, strict=True):
        assert essence(one) == essence(other), "from the cache"


ATTENTIONS = {
    "llama": (AttentionSpec(32, 32, 128), ""),
    "grouped": (AttentionSpec(32, 8, 128), ""),
    "odd": (AttentionSpec(6, 3, 80), ""),
    "gemma": (AttentionSpec(8, 4, 256, window=300, softcap=50.0, scale=0.0625), ""),
    "sinks": (AttentionSpec(16, 2, 64, window=128, sinks=torch.linspace(-3, 3, 16)), ""),
    "chunks": (AttentionSpec(10, 2, 128, rope_dims=0, chunk=500, scaled=True), ""),
    "coded": (AttentionSpec(32, 8, 128), "e4m3fn"),
    "integers": (AttentionSpec(8, 2, 64), "int8"),
}
LENGTH, ALONE = 1300, (0, 1, 30, 63, 64, 255, 256, 257, 511, 700, 1023, 1024, 1299)


@pytest.mark.parametrize("lowering", [None, "sm_86"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_query_is_the_same_alone_and_in_a_prompt(name: str, lowering: str | None) -> None:
    """Alone, two and four at once, and in pieces, at both ends of parts and tiles of keys."""
    spec, element = ATTENTIONS[name]
    if spec.sinks is not None:
        spec = replace(spec, sinks=spec.sinks.cuda())
    layer = GpuLayer(card.machine(lookup(lowering) if lowering else None), Workspace(torch.device("cuda")), alike=True)
    for dtype in (torch.bfloat16, torch.float16):
        given = oracle.batch(ATTENTIONS[name][0], [(LENGTH, LENGTH)], 64, dtype, 7, "cuda", kv=element)
        wanted, _, _ = oracle.attention(ATTENTIONS[name][0], given)
        queries = layer.rope_append(spec, *given.arguments)
        whole = layer.attend(spec, queries, given.cached, given.sequences)
        assert oracle.error(whole, wanted) < (6e-3 if dtype == torch.bfloat16 else 1e-3)
        for new in (1, 2, 4):
            rows = [at for at in ALONE if at + new <= LENGTH]
            chosen = torch.tensor([at + more for at in rows for more in range(new)]).cuda()
            sequences = replace(
                given.sequences, starts=torch.arange(0, len(chosen) + 1, new).int().cuda(),
                lengths=torch.tensor([at + new for at in rows]).int().cuda(),
                table=given.sequences.table[:1].repeat(len(rows), 1), slots=given.sequences.slots[chosen],
                most_new=new, most=LENGTH,
            )  # fmt: skip
            found = layer.attend(spec, queries[chosen].contiguous(), given.cached, sequences)
            assert torch.equal(found, whole[chosen]), (dtype, new)
        pieces = replace(
            given.sequences, starts=torch.tensor([0, 150, 513, LENGTH]).int().cuda(),
            lengths=torch.tensor([150, 513, LENGTH]).int().cuda(), table=given.sequences.table[:1].repeat(3, 1),
        )  # fmt: skip
        assert torch.equal(layer.attend(spec, queries, given.cached, pieces), whole), (dtype, "in pieces")
