"""The model class under the name ``isobit`` for the harness's own command, which makes it of words."""

from __future__ import annotations

import sys
from typing import Any

import torch

from isobit.checkpoint.source import resolve
from isobit.engine.llm import LLM
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError
from isobit.evaluation.tasks.adapter import IsobitLM
from isobit.models.opening import require_family
from isobit.models.weights import load_model
from isobit.shortage import shortages

DEFAULT_BATCH = 64
_NOBODY_ASKED = "cuda:0"
_NAMES = "pretrained, device, target, kv_cache, dtype, revision, add_bos_token, max_length, batch_size, seed"


class RegisteredLM(IsobitLM):
    """``--model isobit --model_args pretrained=MODEL,...``.

    Args:
        pretrained: a local folder, a Hugging Face id, or ``bundled``.
        device: ``cpu`` or ``cuda``; ``cuda:0`` is the GPU if there is one.
        target: whose lowering runs on a GPU, e.g. ``sm_86``.
        kv_cache: what keys and values are stored as.
        dtype: what activations are computed in; ``auto`` for what isobit takes by itself.
        revision: branch, tag or commit of a Hugging Face id.
        add_bos_token: whether contexts begin with begin-of-text; None for what the tokenizer does.
        max_length: tokens that the model reads at most.
        batch_size: items that are worked on at once; ``auto`` for 64.
        max_batch_size: as the harness hands over; not needed.
        seed: of sampled answers.

    Raises:
        UsageError: an argument is unknown, or cannot be used.
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        target: str | None = None,
        kv_cache: str = "auto",
        dtype: str | None = None,
        revision: str | None = None,
        add_bos_token: bool | None = None,
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise UsageError(f"model_args: {', '.join(sorted(unknown))} is not known; there are {_NAMES}")
        llm = _load(
            pretrained, device, target, kv_cache, None if dtype == "auto" else dtype, revision, _batch(batch_size)
        )
        super().__init__(llm, str(pretrained), add_bos=add_bos_token, max_length=max_length, seed=seed)
        self._batch_size = _batch(batch_size)

    def get_model_info(self) -> dict[str, Any]:
        """What stands in the results beside the figures: where begin-of-text stands, and what was cut."""
        return {"begin_of_text": str(self.rule), "tokens_read": self.reads, "notes": dict(self.seen)}


def _device(asked: str | None) -> str:
    """``cpu`` or ``cuda``.

    The harness's command hands over ``cuda:0`` where nobody names a device, whether there is a GPU or not.
    """
    if asked in (None, "cpu", "cuda"):
        return asked or "cpu"
    if asked != _NOBODY_ASKED:
        raise UsageError(f"device must be cpu or cuda, not {asked!r:.200}")
    if torch.cuda.is_available():
        return "cuda"
    print(f"isobit: no GPU can be used here: {asked}, the harness's own default, becomes cpu", file=sys.stderr)
    return "cpu"


def _batch(size: int | str | None) -> int:
    text = str(size if size is not None else "auto")
    if text.startswith("auto"):
        return DEFAULT_BATCH
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"batch_size must be a number of items or auto, not {size!r:.200}")
    return int(text)


@shortages()
def _load(
    name: str,
    device: str | None,
    target: str | None,
    kv_cache: str,
    dtype: str | None,
    revision: str | None,
    batch: int,
) -> LLM:
    where = _device(device)
    folder = resolve(str(name), revision=revision)
    require_family(folder)
    tokenizer = Tokenizer.from_folder(folder)
    return LLM(
        load_model(folder, dtype=dtype, device=where, lowering=target, kv_cache=kv_cache), tokenizer, sequences=batch
    )
