"""A model whose layers all have windows: blocks behind them are free while an answer goes on, and it stays the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import make_model, save
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.gpu_runner import GpuRunner
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.kernels.cpu import library as cpu_library
from isobit.models.batch import Batch
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model

WINDOW = 100


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


@pytest.fixture(scope="module", params=["cpu", "reference"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    if request.param == "cpu" and cpu_library.problem():
        pytest.skip(str(cpu_library.problem()))
    made = make_model(
        "MistralForCausalLM", tie_word_embeddings=False, sliding_window=WINDOW, max_position_embeddings=512
    )
    folder = save(made, Path(tmp_path_factory.mktemp("windows")) / "plain")
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "reference":
            patched.setattr(cpu_library, "problem", lambda: "not here")
        loaded = load_model(folder)
        assert loaded.layer_ops is not None
    return loaded


@pytest.mark.parametrize("ahead", [False, True])
def test_long_answers_hold_few_blocks(ahead: bool, model: Decoder, tokenizer: Tokenizer) -> None:
    if ahead and model.layer_ops.name == "reference":
        pytest.skip("it needs to know lengths on the host")
    params = SamplingParams(max_tokens=260, ignore_eos=True)
    runner = GpuRunner(model, 2) if ahead else None
    llm = LLM(model, tokenizer, runner, sequences=2, chunk=64, cache_tokens=8 * BLOCK, prefix_cache=False)
    assert llm.engine.scheduler.window == WINDOW
    prompts = [[7 * at % 300 + 1 for at in range(150)], [11 * at % 300 + 2 for at in range(90)]]
    ids = [llm.add(prompt, params) for prompt in prompts]
    found: dict[int, list[int]] = {id: [] for id in ids}
    held = []
    while llm.unfinished:
        for id, piece in llm.step():
            found[id] += piece.token_ids
        held.append(llm.engine.pool.count - llm.engine.pool.free)
    assert max(held[len(held) // 2 :]) <= 6 < 11, "both of them need 11 blocks for all of their tokens"
    assert llm.engine.scheduler.preemptions == 0
    for prompt, id in zip(prompts, ids, strict=True):  # one call for each, without a cache
        with torch.inference_mode():
            logits = model.forward(Batch.of([[*prompt, *found[id][:-1]]]))[len(prompt) - 1 :]
        ranks = (logits > logits.gather(1, torch.tensor(found[id])[:, None])).sum(1)
        assert int((ranks == 0).sum()) >= 258 and int(ranks.max()) <= 1  # sums of floats have another order
