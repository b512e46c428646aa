"""Prompts that come and go at any time in a cache that is too small for them, through recorded steps on a GPU."""

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
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
BLOCKS = 9  # of the cache: less than the sequences that may run at once need


@pytest.fixture(scope="module", params=["fp8", "int4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("storm") / request.param
    quantize(model_path(), folder, Policy(scheme(request.param)), progress=False)
    return load_model(folder, device="cuda", batch_invariant=True)


def test_answers_are_undisturbed_by_arrivals_aborts_and_a_tiny_cache(model: Decoder) -> None:
    tokenizer, draw = Tokenizer.from_folder(Path(model_path())), random.Random(11)
    shared = [draw.randrange(300, 900) for _ in range(BLOCK + 5)]
    prompts = [
        shared * draw.randrange(2) + [draw.randrange(300, 900) for _ in range(draw.randrange(1, 3 * BLOCK))]
        for _ in range(24)
    ]
    params = [
        SamplingParams(max_tokens=draw.randrange(1, 90), ignore_eos=True, logprobs=1)
        if number % 3
        else SamplingParams(max_tokens=60, ignore_eos=True, logprobs=1, temperature=0.8, top_p=0.9, seed=number)
        for number in range(len(prompts))
    ]
    quiet = LLM(model, tokenizer, prefix_cache=False)
    wanted = [essence(quiet.generate([ids], one)[0]) for ids, one in zip(prompts, params, strict=True)]

    llm = LLM(model, tokenizer, cache_tokens=BLOCKS * BLOCK, chunk=64, sequences=6)
    llm.prepare()
    running: dict[int, int] = {}
    finished = aborted = 0
    for turn in range(4000):
        if turn < 3000 and len(running) < 12 and draw.random() < 0.5:
            number = draw.randrange(len(prompts))
            running[llm.add(prompts[number], params[number])] = number
        for id, piece in llm.step() if llm.unfinished else []:
            assert piece.error is None
            if piece.completion is not None:
                assert essence(piece.completion) == wanted[running.pop(id)]
                finished += 1
        if running and draw.random() < 0.02:
            id = draw.choice(sorted(running))
            gone = llm.abort(id)
            assert gone is not None
            said = wanted[running.pop(id)][0]
            assert tuple(gone.token_ids) == said[: len(gone.token_ids)], "what was said before it was stopped"
            aborted += 1
        if turn >= 3000 and not running:
            break
    assert not running
    assert finished > 100
    assert aborted > 20
    assert llm.engine.scheduler.preemptions > 0, "the cache was large enough for all"


def essence(found: Completion) -> tuple[tuple[int, ...], object]:
    return tuple(found.token_ids), found.logprobs
