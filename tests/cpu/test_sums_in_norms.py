"""What a layer adds is summed by the norm that reads it, unless somebody wants to see the sum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import LAYERS, VOCAB, save_model

from isobit.models.batch import Batch
from isobit.models.weights import load_model


@torch.inference_mode()
def test_who_listens_to_layers_sees_the_stream_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    model = load_model(save_model(tmp_path / "tiny"))
    batch = Batch.of([torch.arange(11) % VOCAB])
    alone = model.hidden_states(batch)
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out.clone())) for layer in model.layers]
    listened = model.hidden_states(batch)
    for hook in hooks[:-1]:
        hook.remove()
    last_alone = model.hidden_states(batch)
    hooks[-1].remove()
    assert torch.equal(alone, listened) and torch.equal(alone, last_alone)
    assert len(seen) == LAYERS + 1 and torch.equal(seen[LAYERS - 1], alone) and torch.equal(seen[-1], alone)


@torch.inference_mode()
def test_no_sum_between_layers_is_a_launch_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from isobit.models import decoder

    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    model = load_model(save_model(tmp_path / "tiny"))
    ops, sums = model.layer_ops, []

    def add(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        sums.append(x.shape)
        return x + delta

    monkeypatch.setattr(decoder, "choose", lambda *_: replace(ops, add=add))
    model.__dict__.pop("layer_ops", None)
    model.hidden_states(Batch.of([torch.arange(5) % VOCAB]))
    assert len(sums) == 1  # behind the last layer
