"""Decoding through CUDA graphs on a GPU: the logits of steps that Python starts, in turns and together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from isobit.bundled import model_path
from isobit.engine.generate import load_llm
from isobit.engine.gpu_runner import GpuRunner
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.request import Part, Schedule
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.batch import lay_out
from isobit.models.cache.paged import BLOCK
from isobit.quantizer.driver import quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
TEXT = "def fibonacci(n):\n"


@pytest.fixture(scope="module", params=["bf16", "fp8", "int4"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("graphs") / request.param
    if request.param == "bf16":
        return load_llm(model_path(), device="cuda")
    quantize(model_path(), folder, Policy(scheme(request.param)), progress=False)
    return load_llm(folder, device="cuda")


def part(place: int, first: int, tokens: Sequence[int]) -> Part:
    """New tokens of a sequence that has five blocks of its own."""
    return Part(place, first, tuple(tokens), tuple(range(5 * place, 5 * place + 5)), True)


def by_graph(runner: GpuRunner, *parts: Part) -> torch.Tensor:
    return runner.run(Schedule(parts, BLOCK))


def by_hand(runner: GpuRunner, *parts: Part) -> torch.Tensor:
    """The logits without a graph."""
    assert runner._cache is not None
    new, past, blocks = [p.tokens for p in parts], [p.first for p in parts], [p.blocks for p in parts]
    batch = lay_out(new, past, blocks, BLOCK, wanted="last", device=runner.model.place.tensors)
    return runner.model.forward(batch, runner._cache)


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert bool(found.isfinite().all())
    return float((found - wanted).norm() / wanted.norm())


@torch.inference_mode()
def test_graphs_give_the_logits_of_single_steps_over_several_spans(llm: LLM) -> None:
    ids = (llm.tokenizer.encode(TEXT) * 60)[:250]  # behind it the span of 256 tokens ends
    runner = GpuRunner(llm.model, 3)  # type: ignore[arg-type]
    runner.reserve(30, 30)
    for place in range(6):
        by_hand(runner, part(place, 0, ids))
    assert runner.model.layer_ops.recordable
    for at, token in enumerate(range(20, 40), start=len(ids)):
        wanted = by_hand(runner, part(0, at, [token])).clone()
        for place in (1, 2):  # two sequences in turns, by the same graphs
            # bfloat16 between the layers; rounded activations cross midpoints now and then
            assert apart(by_graph(runner, part(place, at, [token])), wanted) < 5e-2, token
        together = by_graph(runner, *(part(place, at, [token]) for place in (3, 4, 5)))  # and a row of padding
        assert together.shape == (3, wanted.shape[1])
        assert apart(together, wanted.expand(3, -1)) < 5e-2, token
        torch.full((1 << 22,), float("nan"), device="cuda")  # what the graph does not own is overwritten


@torch.inference_mode()
def test_steps_of_prompts_are_recorded_when_they_come_again(llm: LLM) -> None:
    ids = (llm.tokenizer.encode(TEXT) * 60)[:200]
    runner = GpuRunner(llm.model, 12)  # type: ignore[arg-type]
    runner.reserve(80, 80)
    for turn in range(4):  # of other numbers of tokens, in the same graphs
        counts = (97 + turn, 1, 60, 3) if turn % 2 else (120, 1, 30 + turn)
        parts = [part(place, 0, ids[: 100 + place]) for place in range(len(counts))]
        by_hand(runner, *parts)
        new = [part(place, 100 + place, ids[:count]) for place, count in enumerate(counts)]
        wanted = by_hand(runner, *new).clone()
        found = by_graph(runner, *new)
        assert found.shape == wanted.shape and apart(found, wanted) < 5e-2, turn
        torch.full((1 << 22,), float("nan"), device="cuda")
    assert max(runner._prompts()._seen.values()) > 1


@torch.inference_mode()
def test_a_cache_that_moved_is_recorded_anew(llm: LLM) -> None:
    ids = llm.tokenizer.encode(TEXT)
    runner = GpuRunner(llm.model)  # type: ignore[arg-type]
    runner.reserve(10, 10)
    for place in (0, 1):
        by_hand(runner, part(place, 0, ids))
    by_graph(runner, part(0, len(ids), [20]))
    by_hand(runner, part(1, len(ids), [20]))
    assert runner.reserve(100, 100) >= 100 and runner._cache is not None and runner._cache.moves == 1
    torch.full((1 << 22,), float("nan"), device="cuda")
    got = by_graph(runner, part(0, len(ids) + 1, [21]))
    assert apart(got, by_hand(runner, part(1, len(ids) + 1, [21]))) < 5e-2


def test_greedy_answers_come_again_and_nothing_is_recorded_for_them(llm: LLM) -> None:
    params = SamplingParams(max_tokens=64)
    (first,) = llm.generate([TEXT], params)
    graphs = llm.engine._runner._graphs  # type: ignore[attr-defined]
    (second,) = llm.generate([TEXT], params)
    assert first.token_ids == second.token_ids and len(first.token_ids) > 8
    assert graphs is not None and llm.engine._runner._graphs is graphs  # type: ignore[attr-defined]


def test_many_prompts_at_once(llm: LLM) -> None:
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    prompts = [TEXT * count for count in (1, 9, 2, 5, 3)]
    alone = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
    together = [one.token_ids for one in llm.generate(prompts, params)]
    same = sum(one[:4] == other[:4] for one, other in zip(alone, together, strict=True))
    assert all(len(one) == 24 for one in together) and same >= 4  # sums of floats have another order in a batch
