"""What an answer cost, as OpenAI writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def usage(
    prompt: int, completion: int, cached: int, reasoning: int = 0, media: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Tokens of prompts and answers.

    Args:
        prompt, completion: how many.
        cached: of the prompts' were read from the cache.
        reasoning: of the answers' are thoughts.
        media: of the prompts' stand for media, by kind.
    """
    details = {f"{kind}_tokens": count for kind, count in (media or {}).items()}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, **details},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


class Count:
    """Counts what the answers of one request cost while they come.

    Args:
        prompt: tokens of all its prompts.
        media: those of them that stand for media, by kind.
    """

    def __init__(self, prompt: int, media: Mapping[str, int] | None = None) -> None:
        self.prompt, self.completion, self.cached, self.reasoning = prompt, 0, 0, 0
        self.media = dict(media or {})

    def now(self) -> dict[str, Any]:
        """So far."""
        return usage(self.prompt, self.completion, self.cached, self.reasoning, self.media)
