"""A shorter context than the model's own: what it limits, and which factors of longrope it chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model, save, token_ids
from running import run

import isobit
from isobit.cli.main import main
from isobit.engine import scoring
from isobit.errors import IsobitError, UsageError
from isobit.models.batch import lay_out
from isobit.models.weights import load_model

ORIGINAL, LONGEST = 64, 256  # of the tiny Phi-3


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """(transformers model, folder)."""
    small = {"hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64}
    model = make_model("Phi3ForCausalLM", **small, sliding_window=None)
    return model, save(model, tmp_path_factory.mktemp("phi3"))


def paged(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one sequence ``[T]`` through a cache in blocks, in two pieces."""
    cache, found = model.paged_cache(3), []
    for begin, end in ((0, 20), (20, len(ids))):
        batch = lay_out([ids[begin:end]], [begin], [(2, 0, 1)], cache.block)
        found.append(model.forward(batch, cache))
    return torch.cat(found)


@torch.inference_mode()
def test_the_longest_sequence_chooses_the_factors(phi3: tuple[Any, Path]) -> None:
    theirs, folder = phi3
    ids = token_ids(50, batch=1)
    short = theirs(ids).logits[0]
    whole, limited = load_model(folder), load_model(folder, context=ORIGINAL)
    assert whole.config.max_context == LONGEST and limited.config.max_context == ORIGINAL
    assert (run(whole, ids)[0] - short).abs().max() < 1e-4  # no cache: as long as it is
    assert (paged(limited, ids[0]) - short).abs().max() < 1e-4
    assert (paged(load_model(folder, context=ORIGINAL + 1), ids[0]) - short).abs().max() > 1e-2
    # What a sequence begins with is the same however long it becomes, in a cache that gives it room.
    ids = token_ids(100, batch=1)
    assert (paged(whole, ids[0]) - theirs(ids).logits[0]).abs().max() < 1e-4
    assert (paged(whole, ids[0][:50]) - theirs(ids).logits[0][:50]).abs().max() < 1e-4
    assert any("--context 64" in note for note in whole.notes)


@torch.inference_mode()
def test_what_is_measured_has_the_factors_of_its_windows(phi3: tuple[Any, Path]) -> None:
    theirs, folder = phi3
    model, ids = load_model(folder), token_ids(60, batch=1)
    rows = list(scoring.read([model], [(ids[0].tolist(), 1)], longest=60))
    found = torch.cat([one.logits[0].clone() for one in rows])
    assert (found - theirs(ids).logits[0, : len(found)]).abs().max() < 1e-4 and len(found) == 59


@pytest.mark.parametrize("context", [0, -1, LONGEST + 1])
def test_a_context_that_the_model_has_not_is_refused(phi3: tuple[Any, Path], context: int) -> None:
    with pytest.raises(UsageError, match=f"{context} tokens: this model's longest is 256"):
        load_model(phi3[1], context=context)


def test_the_interface_and_the_commands_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    llm = isobit.LLM("bundled", context=12)
    assert llm.context_length == 12
    assert main(["generate", "bundled", "def f(", "--max-tokens", "9", "--context", "12"]) == 0
    assert main(["generate", "bundled", "def f(", "--max-tokens", "10", "--context", "12"]) == 2
    assert "the context holds 12 tokens and the prompt has 3" in capsys.readouterr().err
    with pytest.raises(IsobitError, match="context"):
        isobit.load("bundled", context=0)
    assert main(["generate", "bundled", "x", "--context", "99999999"]) == 2
    assert "longest is" in capsys.readouterr().err
