"""The step of fixed shapes that CUDA graphs are recorded from, run without a graph: the same logits as the model's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_model

from isobit.engine import graphs
from isobit.engine.graphs import FixedStep, span_of
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model

PROMPT, BEHIND = 5, 6


def test_spans_grow_by_doubling_up_to_the_cache() -> None:
    assert [span_of(tokens, 1000) for tokens in (1, 256, 257, 512, 513, 1000)] == [256, 256, 512, 512, 1000, 1000]
    assert span_of(3, 17) == 17


def windowed(model: Decoder, window: int | None) -> Decoder:
    """The model with a window in its first layer."""
    for index, layer in enumerate(model.layers):
        if index == 0:
            layer.self_attn.heads = replace(layer.self_attn.heads, window=window)  # type: ignore[union-attr]
    first = model.config.layers[0]
    other = replace(first, attention=replace(first.attention, window=window))
    model.config = replace(model.config, layers=(other, *model.config.layers[1:]))
    return model


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@torch.inference_mode()
def test_a_fixed_step_gives_the_models_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, window: int | None
) -> None:
    if kernel == "reference":
        monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    monkeypatch.setattr(graphs, "SHORTEST", 8)
    model = windowed(load_model(save_model(tmp_path / "tiny")), window)
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["num_key_value_heads"] < 10  # grouped heads
    ids = torch.randint(1, 300, (1, PROMPT + BEHIND), generator=torch.Generator().manual_seed(1))
    plain, fixed = model.new_cache(1, PROMPT + BEHIND), model.new_cache(1, PROMPT + BEHIND)
    for cache in (plain, fixed):
        for held in cache.room_of_all(0):
            held.fill_(float("nan"))
        model.forward(ids[:, :PROMPT], cache)
    for held in fixed.room_of_all(0):
        held[:, :, :, PROMPT:].zero_()
    token, position = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for at in range(PROMPT, PROMPT + BEHIND):
        wanted = model.forward(ids[:, at : at + 1], plain, last_only=True)[0, -1]
        token.fill_(int(ids[0, at]))
        position.fill_(fixed.length)
        got = FixedStep(model, fixed, token, position, span_of(fixed.length + 1, fixed.max_len))()
        fixed.advance(1)
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    for one, other in zip(plain.room_of_all(0), fixed.room_of_all(0), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
