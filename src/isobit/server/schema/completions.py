"""The body of ``/v1/completions``."""

from __future__ import annotations

from typing import Any

from isobit.server.schema.common import REFUSED as COMMON
from isobit.server.schema.common import Sampled

REFUSED = COMMON | {"suffix": "the model is asked to go on with a text, not to fill one"}
REFUSED.pop("best_of")  # as many as n is what everybody gets


class CompletionRequest(Sampled):
    """A text to go on with.

    Attributes:
        prompt: a text, token ids, or a list of either.
        echo: the prompt is part of the answer, with its log-probabilities if ``logprobs`` are asked for.
        logprobs: of each token, and of this many most probable ones in its place.
    """

    prompt: str | list[Any] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None
