"""The body of ``/v1/embeddings``."""

from __future__ import annotations

from typing import Any

import msgspec

REFUSED = {
    "dimensions": "vectors have the length that the model has",
    "prompt_embeds": "embeddings are not taken from clients",
    "truncate_prompt_tokens": "texts are not cut; shorten them",
}
IDLE = frozenset({"user", "priority"})


class EmbeddingsRequest(msgspec.Struct):
    """Texts to be made vectors.

    Attributes:
        input: a text, token ids, or a list of either.
        pooling: ``last`` or ``mean`` of the tokens.
        normalize: to length 1.
        add_special_tokens: let the tokenizer add what it puts around a text.
    """

    input: str | list[Any] | None = None
    model: str | None = None
    encoding_format: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
