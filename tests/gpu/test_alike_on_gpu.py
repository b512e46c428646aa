"""Batch-invariant models on a GPU: the same bits alone, in any batch, in pieces and from the cache."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from isobit.bundled import model_path
from isobit.engine.answer import Completion
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.kernels.gpu.bind import bind
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.quantizer.grid import quantize_weight

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
    whole = bound(x)
    alone = torch.cat([bound(x[at : at + 1]) for at in range(40)])
    assert torch.equal(alone, whole[:40]), "alone"
    for tokens in (2, 7, 8, 9, 16, 17, 33, 64, 65, 200, 512, 513):
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
