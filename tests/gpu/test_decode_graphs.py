"""Decoding through CUDA graphs on a GPU: the tokens and logits of steps that Python starts one by one."""

from __future__ import annotations

import pytest
import torch

from isobit.bundled import model_path
from isobit.engine.generate import Generator, load_generator
from isobit.engine.sampling import SamplingParams
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
TEXT = "def fibonacci(n):\n"


@pytest.fixture(scope="module", params=["bf16", "fp8", "int4"])
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tmp_path_factory.mktemp("graphs") / request.param
    if request.param == "bf16":
        return load_generator(model_path(), device="cuda")
    quantize(model_path(), folder, Policy(scheme(request.param)), progress=False)
    return load_generator(folder, device="cuda")


@torch.inference_mode()
def test_graphs_give_the_logits_of_single_steps_over_several_spans(generator: Generator) -> None:
    ids = generator.tokenizer.encode(TEXT) * 40  # behind it the span of 256 tokens ends
    ids = ids[:250]
    cache, plain = (generator.model.new_cache(1, 600) for _ in range(2))
    for held in cache.room_of_all(0):
        held.fill_(float("nan"))
    for one in (cache, plain):
        generator.prefill(ids, one)
    after = generator.decoding(cache)
    for token in range(20, 40):
        wanted = generator.prefill((token,), plain).clone()
        got = after(token)
        assert bool(got.isfinite().all())
        apart = float((got - wanted).norm() / wanted.norm())
        assert apart < 5e-2, token  # bfloat16 between the layers; rounded activations cross midpoints now and then
        torch.full((1 << 22,), float("nan"), device="cuda")  # what the graph does not own is overwritten
        assert plain.length == cache.length


def test_greedy_answers_come_again(generator: Generator) -> None:
    params = SamplingParams(max_tokens=64)
    first, second = (generator.generate(TEXT, params) for _ in range(2))
    assert first.token_ids == second.token_ids and len(first.token_ids) > 8
