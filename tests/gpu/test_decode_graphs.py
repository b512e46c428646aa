"""Decoding through CUDA graphs on a GPU: the logits of steps that Python starts one by one, for answers in turns."""

from __future__ import annotations

import pytest
import torch

from isobit.bundled import model_path
from isobit.engine.generate import Generator, load_generator
from isobit.engine.runner import Seat
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


def by_hand(generator: Generator, seat: Seat, token: int) -> torch.Tensor:
    """Logits behind one more token, without a graph."""
    batch = seat.cache.batch([[token]], [seat.sequence], wanted="last")
    return generator.model.forward(batch, seat.cache)[0]


@torch.inference_mode()
def test_graphs_give_the_logits_of_single_steps_over_several_spans(generator: Generator) -> None:
    ids = (generator.tokenizer.encode(TEXT) * 60)[:250]  # behind it the span of 256 tokens ends
    seats = [generator.runner.open(300) for _ in range(3)]
    for seat in seats:
        generator.prefill(seat, ids)
    assert generator.model.layer_ops.recordable
    for token in range(20, 40):
        wanted = by_hand(generator, seats[0], token).clone()
        for seat in seats[1:]:  # two answers in turns, by the same graphs
            got = generator.runner.feed(seat, (token,))
            assert bool(got.isfinite().all())
            apart = float((got - wanted).norm() / wanted.norm())
            assert apart < 5e-2, token  # bfloat16 between the layers; rounded activations cross midpoints now and then
        torch.full((1 << 22,), float("nan"), device="cuda")  # what the graph does not own is overwritten
        assert len({seat.sequence.length for seat in seats}) == 1
    for seat in seats:
        seat.close()


@torch.inference_mode()
def test_a_cache_that_moved_is_recorded_anew(generator: Generator) -> None:
    ids = generator.tokenizer.encode(TEXT)
    first, plain = generator.runner.open(64), generator.runner.open(64)
    for seat in (first, plain):
        generator.prefill(seat, ids)
    generator.runner.feed(first, (20,))
    by_hand(generator, plain, 20)
    moves = first.cache.moves  # type: ignore[union-attr]
    large = generator.runner.open(4096)
    assert first.cache.moves > moves  # type: ignore[union-attr]
    torch.full((1 << 22,), float("nan"), device="cuda")
    got, wanted = generator.runner.feed(first, (21,)), by_hand(generator, plain, 21)
    assert float((got - wanted).norm() / wanted.norm()) < 5e-2
    for seat in (first, plain, large):
        seat.close()


def test_greedy_answers_come_again_and_nothing_is_recorded_for_them(generator: Generator) -> None:
    params = SamplingParams(max_tokens=64)
    first = generator.generate(TEXT, params)
    graphs = generator.runner._graphs
    second = generator.generate(TEXT, params)
    assert first.token_ids == second.token_ids and len(first.token_ids) > 8
    assert graphs is not None and generator.runner._graphs is graphs
