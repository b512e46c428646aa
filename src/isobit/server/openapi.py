"""The routes as OpenAPI describes them, for tools that make clients or look for faults. A test holds it to the routes.

To add a route: a line in :data:`OPERATIONS`, and its bodies in :data:`SCHEMAS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from isobit.checkpoint.text.ranges import INTEGERS, MAX_LOGIT_BIAS, MAX_STOP_STRINGS, NUMBERS
from isobit.engine.engine import MOST_PRIORITY
from isobit.server.schema.audio import FORMATS
from isobit.server.settings import Limits

Schema = dict[str, Any]
_LIMITS = Limits()

BOOLEAN: Schema = {"type": ["boolean", "null"]}
TEXT: Schema = {"type": ["string", "null"]}
OBJECT: Schema = {"type": ["object", "null"]}


def whole(low: int, high: int) -> Schema:
    """An integer, or nothing."""
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def either(*schemas: Schema) -> Schema:
    """One of them."""
    return {"anyOf": list(schemas)}


def listed(items: Schema, **limits: int) -> Schema:
    """An array."""
    return {"type": "array", "items": items, **limits}


def named(name: str) -> Schema:
    """One of :data:`SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(required: Iterable[str] = (), **properties: Schema) -> Schema:
    """An object."""
    return {"type": "object", "required": list(required), "properties": properties}


_NUMBERS: dict[str, Schema] = {
    name: {"type": ["number", "null"], "minimum": low, "maximum": high} for name, (low, high, _) in NUMBERS.items()
}
_STOP = listed({"type": "string", "minLength": 1}, maxItems=MAX_STOP_STRINGS)
_ID: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string", "minLength": 1}
_DATA: Schema = {"type": "string", "pattern": "^(data:[^,]*;base64,|https?://)"}
_SAMPLED: dict[str, Schema] = _NUMBERS | {
    "model": TEXT,
    "top_k": whole(-1, INTEGERS["top_k"][1]),
    "seed": whole(*INTEGERS["seed"]),
    "stop": either({"type": "null"}, {"type": "string", "minLength": 1}, _STOP),
    "logit_bias": OBJECT
    | {
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number", "minimum": -MAX_LOGIT_BIAS, "maximum": MAX_LOGIT_BIAS},
    },
    "ignore_eos": BOOLEAN,
    "max_tokens": whole(0, INTEGERS["max_tokens"][1]),
    "n": whole(1, _LIMITS.choices),
    "stream": BOOLEAN,
    "stream_options": either({"type": "null"}, record(include_usage=BOOLEAN, continuous_usage_stats=BOOLEAN)),
    "priority": whole(-MOST_PRIORITY, MOST_PRIORITY),
    "response_format": OBJECT,
    "structured_outputs": OBJECT,
    "guided_json": either(OBJECT, TEXT),
    "guided_regex": TEXT,
    "guided_choice": either({"type": "null"}, listed(_TEXT, minItems=1)),
    "guided_grammar": TEXT,
}
_ROLES = ["system", "developer", "user", "assistant", "tool", "function"]
_MESSAGES = listed(named("Message"), minItems=1)
_ANSWER = ("id", "object", "created", "model", "choices", "usage")

SCHEMAS: dict[str, Schema] = {
    "Error": record(["error"], error=record(["message", "type", "param", "code"], message={"type": "string"})),
    "Usage": record(["prompt_tokens", "completion_tokens", "total_tokens"]),
    "Part": either(
        record(["type", "text"], type={"const": "text"}, text={"type": "string"}),
        record(["type", "image_url"], type={"const": "image_url"}, image_url=record(["url"], url=_DATA)),
        record(["type", "audio_url"], type={"const": "audio_url"}, audio_url=record(["url"], url=_DATA)),
        record(
            ["type", "input_audio"],
            type={"const": "input_audio"},
            input_audio=record(["data"], data=_TEXT, format=TEXT),
        ),
        record(
            ["type", "video_url"],
            type={"const": "video_url"},
            video_url=record(["url"], url=either(_DATA, listed(_DATA, minItems=1)), fps={"type": "number"}),
        ),
    ),
    "Message": record(
        ["role"],
        role={"enum": _ROLES},
        content=either({"type": "null"}, {"type": "string"}, listed(named("Part"))),
        name=TEXT,
        tool_call_id=TEXT,
        tool_calls=either({"type": "null"}, listed({"type": "object"})),
        reasoning=TEXT,
        reasoning_content=TEXT,
    ),
    "CompletionRequest": record(
        ["prompt"],
        **_SAMPLED,
        prompt=either(_TEXT, listed(either(_TEXT, _ID, listed(_ID, minItems=1)), minItems=1, maxItems=_LIMITS.prompts)),
        echo=BOOLEAN,
        logprobs=whole(*INTEGERS["logprobs"]),
        best_of=whole(1, _LIMITS.choices),
        add_special_tokens=BOOLEAN,
    ),
    "Completion": record(_ANSWER, object={"const": "text_completion"}, usage=named("Usage")),
    "ChatRequest": record(
        ["messages"],
        **_SAMPLED,
        messages=_MESSAGES,
        max_completion_tokens=whole(1, INTEGERS["max_tokens"][1]),
        logprobs=BOOLEAN,
        top_logprobs=whole(0, _LIMITS.top_logprobs),
        chat_template_kwargs=OBJECT,
        add_generation_prompt=BOOLEAN,
        modalities=either({"type": "null"}, listed({"const": "text"})),
        tools=either({"type": "null"}, listed({"type": "object"})),
        tool_choice=either(TEXT, {"type": "object"}),
        parallel_tool_calls=BOOLEAN,
        reasoning_effort=TEXT,
    ),
    "Chat": record(_ANSWER, object={"const": "chat.completion"}, usage=named("Usage")),
    "TranscriptionRequest": record(
        ["file"],
        file={"type": "string", "contentMediaType": "application/octet-stream"},
        model=TEXT,
        prompt=TEXT,
        response_format={"enum": [*FORMATS, None]},
        language=TEXT,
        stream=BOOLEAN,
        max_tokens=whole(1, INTEGERS["max_tokens"][1]),
        **{name: _SAMPLED[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed", "priority")},
    ),
    "Transcription": record(["text"], text={"type": "string"}),
    "TokenizeRequest": record(
        model=TEXT,
        prompt=TEXT,
        content=TEXT,
        messages=either({"type": "null"}, _MESSAGES),
        add_special_tokens=BOOLEAN,
        add_special=BOOLEAN,
        add_generation_prompt=BOOLEAN,
        return_token_strs=BOOLEAN,
        chat_template_kwargs=OBJECT,
    ),
    "ResponsesRequest": record(
        ["input"],
        input=either(_TEXT, listed({"type": "object"}, minItems=1)),
        model=TEXT,
        instructions=TEXT,
        tools=either({"type": "null"}, listed({"type": "object"})),
        tool_choice=either(TEXT, {"type": "object"}),
        parallel_tool_calls=BOOLEAN,
        text=OBJECT,
        reasoning=OBJECT,
        max_output_tokens=whole(1, INTEGERS["max_tokens"][1]),
        top_logprobs=whole(0, _LIMITS.top_logprobs),
        truncation=TEXT,
        stream=BOOLEAN,
        chat_template_kwargs=OBJECT,
        **{name: _SAMPLED[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed", "priority")},
    ),
    "MessagesRequest": record(
        ["messages", "max_tokens"],
        messages=listed(record(["role", "content"], role={"enum": ["user", "assistant"]}), minItems=1),
        model=TEXT,
        max_tokens=whole(1, INTEGERS["max_tokens"][1]),
        system=either(TEXT, listed({"type": "object"})),
        stop_sequences=either({"type": "null"}, _STOP),
        tools=either({"type": "null"}, listed({"type": "object"})),
        tool_choice=OBJECT,
        thinking=OBJECT,
        output_config=OBJECT,
        output_format=OBJECT,
        stream=BOOLEAN,
        **{name: _SAMPLED[name] for name in ("temperature", "top_p", "top_k")},
    ),
    "EmbeddingsRequest": record(
        ["input"],
        input=either(_TEXT, listed(either(_TEXT, _ID, listed(_ID, minItems=1)), minItems=1, maxItems=_LIMITS.prompts)),
        model=TEXT,
        encoding_format={"enum": ["float", "base64", None]},
        pooling={"enum": ["last", "mean", None]},
        normalize=BOOLEAN,
        add_special_tokens=BOOLEAN,
    ),
    "SpeechRequest": record(
        ["input"],
        input={"type": "string", "minLength": 1, "maxLength": 10_000},
        model=TEXT,
        voice=either(TEXT, record(["id"], id={"type": "string"})),
        response_format={"enum": ["mp3", "wav", "flac", "opus", "pcm", None]},
        speed={"enum": [1, None]},
        stream_format={"enum": ["audio", "sse", None]},
        stream=BOOLEAN,
        seed=whole(0, 2**63 - 1),
    ),
    "DetokenizeRequest": record(model=TEXT, tokens=listed(_ID)),
}

# path, method, what it does, body, reply, whether it may be a stream of events
OPERATIONS: tuple[tuple[str, str, str, str | None, str | None, bool], ...] = (
    ("/v1/completions", "post", "Go on with texts or token ids.", "CompletionRequest", "Completion", True),
    ("/v1/chat/completions", "post", "Answer a conversation.", "ChatRequest", "Chat", True),
    (
        "/v1/responses",
        "post",
        "Answer a conversation in items.",
        "ResponsesRequest",
        None,
        True,
    ),
    ("/v1/messages", "post", "Answer a conversation in blocks.", "MessagesRequest", None, True),
    ("/v1/messages/count_tokens", "post", "Count a conversation's tokens.", "MessagesRequest", None, False),
    ("/v1/embeddings", "post", "Texts as vectors.", "EmbeddingsRequest", None, False),
    ("/v1/audio/speech", "post", "A text as speech.", "SpeechRequest", None, True),
    ("/v1/audio/voices", "get", "Who can speak.", None, None, False),
    ("/v1/audio/transcriptions", "post", "What is said in a sound.", "TranscriptionRequest", "Transcription", True),
    ("/v1/audio/translations", "post", "Refused: no model here translates what it hears.", None, None, False),
    ("/v1/models", "get", "The model, by its names.", None, None, False),
    ("/v1/models/{id}", "get", "The model.", None, None, False),
    ("/tokenize", "post", "Token ids of a text or a conversation.", "TokenizeRequest", None, False),
    ("/detokenize", "post", "The text of token ids.", "DetokenizeRequest", None, False),
    ("/tokenizer_info", "get", "Special tokens, chat template.", None, None, False),
    ("/health", "get", "Whether the server is alive; needs no key.", None, None, False),
    ("/ready", "get", "Whether it answers; needs no key.", None, None, False),
    ("/version", "get", "The version of isobit.", None, None, False),
    ("/metrics", "get", "Counters and gauges for Prometheus.", None, None, False),
    ("/v1/isobit/status", "get", "The model, its plan, and how busy the server is.", None, None, False),
    ("/openapi.json", "get", "This description.", None, None, False),
)
_ALWAYS = (401, 403, 421, 431)
_BODY = (400, 404, 408, 413, 415, 500, 503)
_MORE = {"/v1/models/{id}": (404,), "/ready": (503,), "/v1/audio/translations": (400,), "/v1/audio/voices": (404,)}
_KINDS = {"/metrics": "text/plain", "/v1/audio/speech": "audio/*"}
_FORMS = {"TranscriptionRequest"}  # bodies that are forms


def document() -> dict[str, Any]:
    """All of it."""
    paths: dict[str, dict[str, Any]] = {}
    for path, method, *rest in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, method, *rest)  # type: ignore[arg-type]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "isobit serve",
            "version": "1",
            "description": "A model over HTTP, as OpenAI's clients ask for it; docs/serving.md says what fields do.",
        },
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": SCHEMAS},
    }


def _operation(path: str, method: str, summary: str, body: str | None, reply: str | None, stream: bool) -> Schema:
    kind = _KINDS.get(path, "application/json")
    content: Schema = {kind: {"schema": named(reply) if reply else {}}}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"description": "What is wrong.", "content": {"application/json": {"schema": named("Error")}}}
    codes = sorted({*_ALWAYS, *(_BODY if body else ()), *_MORE.get(path, ())})
    found: Schema = {
        "summary": summary,
        "operationId": f"{method}{path.replace('/', '_').replace('{', '').replace('}', '')}",
        "responses": {"200": {"description": "Done.", "content": content}} | {str(code): error for code in codes},
    }
    if body:
        form = "multipart/form-data" if body in _FORMS else "application/json"
        found["requestBody"] = {"required": True, "content": {form: {"schema": named(body)}}}
    if "{id}" in path:
        found["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if path in ("/health", "/ready"):
        found["security"] = []
    return found
