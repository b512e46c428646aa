"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``: the model's tokenizer, for clients that count or score."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.engine.prompts import require_known
from isobit.server.bodies import read_as, read_object, warning
from isobit.server.conversation import prompt_of
from isobit.server.errors import wrong
from isobit.server.replies import json_reply
from isobit.server.schema.tokens import DetokenizeRequest, TokenizeRequest
from isobit.server.serving import Serving


def routes(serving: Serving) -> list[Route]:
    """All three."""
    limits = serving.settings.limits

    async def tokenize(request: Request) -> Response:
        body, unknown = read_as(await read_object(request, limits), TokenizeRequest, {})
        serving.require_model(body.model)
        ids = await _ids(serving, body)
        found: dict[str, Any] = {"count": len(ids), "max_model_len": serving.capacity, "tokens": ids}
        if body.return_token_strs:
            found["token_strs"] = [serving.tokenizer.name_of(id) for id in ids]
        return json_reply(found, headers=warning(unknown))

    async def detokenize(request: Request) -> Response:
        body, unknown = read_as(await read_object(request, limits), DetokenizeRequest, {})
        serving.require_model(body.model)
        require_known(body.tokens, serving.tokenizer.vocab_size, serving.tokenizer, "tokens")
        text = await serving.aside(serving.tokenizer.decode, body.tokens, False)
        return json_reply({"prompt": text, "content": text}, headers=warning(unknown))

    async def info(request: Request) -> Response:
        return json_reply(about(serving))

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/tokenizer_info", info, methods=["GET"]),
    ]


async def _ids(serving: Serving, body: TokenizeRequest) -> list[int]:
    """Special tokens written in a text become those tokens; in messages they do not."""
    if body.messages is not None:
        opens = body.add_generation_prompt is not False
        prompt = await prompt_of(serving, body.messages, variables=body.chat_template_kwargs, opens=opens)
        return list(prompt.ids)
    text = body.prompt if body.prompt is not None else body.content
    if text is None:
        raise wrong("prompt is missing: a text; or messages", "prompt")
    asked = body.add_special_tokens if body.add_special_tokens is not None else body.add_special
    return await serving.encode(text, asked is not False)


def about(serving: Serving) -> dict[str, Any]:
    """What clients need to know to make prompts by themselves."""
    tokenizer = serving.tokenizer
    return {
        "tokenizer_class": "isobit",
        "model_max_length": serving.capacity,
        "vocab_size": tokenizer.vocab_size,
        **{name: tokenizer.special_tokens.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
        "bos_token_id": tokenizer.bos_id,
        "eos_token_ids": sorted(tokenizer.eos_ids),
        "add_bos_token": tokenizer.bos_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_id],
        "chat_template": tokenizer.chat_template,
    }
