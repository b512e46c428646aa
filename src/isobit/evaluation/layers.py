"""How far a model's hidden states move from its source's, layer by layer, while both read the same text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from isobit.evaluation.windows import Window
from isobit.models.batch import Batch
from isobit.models.decoder import Decoder


def hidden_states(model: Decoder, ids: Tensor) -> list[Tensor]:
    """The hidden state after the embedding and after each decoder layer, float32 [T, hidden size] each.

    Args:
        model: the model.
        ids: token ids, int64 [T].
    """
    states: list[Tensor] = []

    def before_first(_: nn.Module, args: tuple[Any, ...]) -> None:
        states.append(args[0].float().clone())

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).float().clone())

    with ExitStack() as stack, torch.inference_mode():
        stack.callback(model.layers[0].register_forward_pre_hook(before_first).remove)
        for layer in model.layers:
            stack.callback(layer.register_forward_hook(after).remove)
        model.hidden_states(Batch.of([ids], device=model.place.tensors))
    return states


def layer_errors(source: Decoder, others: Sequence[Decoder], chosen: Sequence[Window]) -> list[tuple[float, ...]]:
    """Relative errors ``||h_other - h_source|| / ||h_source||`` over all tokens of some windows.

    Args:
        source: the model the others were made from.
        others: the models to compare.
        chosen: the windows that they read.

    Returns:
        For each of the others, the error after the embedding and after each decoder layer.
    """
    signal = torch.zeros(0, dtype=torch.float64)
    noise = [torch.zeros(0, dtype=torch.float64) for _ in others]
    for window in chosen:
        ids = torch.tensor(window.ids, dtype=torch.int64)
        reference = [state.double() for state in hidden_states(source, ids)]
        signal = _add(signal, [state.square().sum() for state in reference])
        for i, other in enumerate(others):
            states = zip(hidden_states(other, ids), reference, strict=True)
            noise[i] = _add(noise[i], [(state.double() - wanted).square().sum() for state, wanted in states])
    return [tuple((part / signal).sqrt().tolist()) for part in noise]


def _add(total: Tensor, sums: Sequence[Tensor]) -> Tensor:
    """Sums per layer, added up over windows."""
    found = torch.stack(list(sums))
    return found if total.numel() == 0 else total + found
