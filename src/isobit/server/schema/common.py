"""Fields that requests for text have in common, and fields that this server has no answer to."""

from __future__ import annotations

from typing import Any

import msgspec

# Fields that change nothing of an answer here.
IDLE = frozenset(
    """user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention prediction verbosity
    return_token_ids skip_special_tokens_default""".split()
)

# Fields that would change the answer and are not served, with the reason.
REFUSED = {
    "prompt_embeds": "embeddings are not taken from clients",
    "use_beam_search": "there is no beam search",
    "best_of": "give n as many answers as you want to have, and choose",
    "length_penalty": "there is no beam search",
    "min_tokens": "answers end where the model ends them; ignore_eos goes on until max_tokens",
    "bad_words": "use logit_bias with token ids",
    "stop_token_ids": "use stop with texts",
    "truncate_prompt_tokens": "prompts are not cut; shorten the prompt",
    "include_stop_str_in_output": "the stop text is not part of the answer",
    "lora": "there are no adapters",
    "logits_processors": "there is no code from clients",
    "mm_processor_kwargs": "there are no images here",
    "chat_template": "the template is the model's own",
}


class StreamOptions(msgspec.Struct):
    """What a stream has beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(msgspec.Struct):
    """How tokens are chosen; the names and ranges are those of SamplingParams.

    Attributes:
        response_format, structured_outputs, guided_json, guided_regex, guided_choice, guided_grammar: the form of the
            answer (:mod:`isobit.server.shapes`).
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
