"""Tiny random checkpoints of every family, made with transformers: the independent implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from isobit.models.archs import ARCHS, family

# Of each way in which families differ for a command that reads tensors, one: names, ties, norms, stored matrices, MLPs.
# A test that is not about what a family computes goes over these, and over all of them where it is slow.
FEW = (
    "DeepseekV3ForCausalLM", "Gemma2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM",
    "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Starcoder2ForCausalLM",
)  # fmt: skip


def walked() -> list[Any]:
    """Every architecture, as parameters of a test: all but FEW are marked slow."""
    return [pytest.param(name, marks=() if name in FEW else pytest.mark.slow, id=name) for name in ARCHS]


def make_model(architecture: str, **changes: Any) -> Any:
    """A random float32 transformers model: weights, biases and norms all random, none of them zero."""
    torch.manual_seed(len(architecture))
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**(family(ARCHS[architecture]).tiny() | changes))).float().eval()
    around_zero = 1.0 if "Gemma" in architecture else 0.0  # what these add to the weights of norms
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):  # one for each head, too
            parameter.data.uniform_(0.5 - around_zero, 1.5 - around_zero)
        elif parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.05)
        else:
            parameter.data.uniform_(0.5, 1.5)
    for name, number in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):  # what an expert's score is changed by before the choice
            number.data.uniform_(-0.2, 0.2)
    return model


def save(model: Any, folder: Path, dtype: torch.dtype | None = None) -> Path:
    """Saves a model (cast to ``dtype`` if given) and returns the folder."""
    transformers.utils.logging.disable_progress_bar()
    (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    return folder


def token_ids(length: int, batch: int = 2, vocab: int = 320) -> torch.Tensor:
    """Random token ids ``[batch, length]``."""
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(length))
