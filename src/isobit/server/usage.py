"""What an answer cost, as OpenAI writes it."""

from __future__ import annotations

from typing import Any


def usage(prompt: int, completion: int, cached: int, reasoning: int = 0) -> dict[str, Any]:
    """Tokens of prompts and answers; ``cached`` of the prompts' were read from the cache."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


class Count:
    """Counts what the answers of one request cost while they come.

    Args:
        prompt: tokens of all its prompts.
    """

    def __init__(self, prompt: int) -> None:
        self.prompt, self.completion, self.cached, self.reasoning = prompt, 0, 0, 0

    def now(self) -> dict[str, Any]:
        """So far."""
        return usage(self.prompt, self.completion, self.cached, self.reasoning)
