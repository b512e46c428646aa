"""tokenizer.json, tokenizer_config.json and generation_config.json, made of a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isobit.checkpoint.gguf.keys import Keys
from isobit.checkpoint.gguf.model import Gguf
from isobit.checkpoint.gguf.splits import BY_NAME, Split, pre_tokenizer
from isobit.checkpoint.shown import bare, short
from isobit.errors import CheckpointError, Unsupported

_PREFIX = "tokenizer.ggml."
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type
_NAMED = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
          "pad_token": "padding_token_id"}  # fmt: skip
# Tokens that end an answer whatever the file says of them, as llama.cpp has it.
_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|>"
    " <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <｜end▁of▁sentence｜> [e~[".split()  # noqa: RUF001
)
_INNER = frozenset(("<|return|>", "<|call|>", "<|end|>"))  # where there are all three, the last one ends a message only
_SPACE = "▁"


def has_tokenizer(gguf: Gguf) -> bool:
    """Whether the file holds one."""
    return f"{_PREFIX}model" in gguf.metadata and f"{_PREFIX}tokens" in gguf.metadata


def tokenizer_of(gguf: Gguf) -> dict[str, Any]:
    """A tokenizer.json.

    Raises:
        CheckpointError: the vocabulary is damaged; names the file and the key.
        Unsupported: a kind of tokenizer, or a way of cutting text, that isobit does not read; named.
    """
    keys = Keys(gguf, _PREFIX)
    kind = keys.text("model")
    if kind not in ("gpt2", "llama"):
        raise Unsupported(
            f"the tokenizer of this GGUF file ({gguf.path.name})",
            [f"it is of the kind {bare(kind)}; isobit reads gpt2 (byte-level merges) and llama (SentencePiece's BPE)"],
        )
    tokens, types = _vocabulary(keys)
    parts = _byte_level(gguf, keys, tokens) if kind == "gpt2" else _sentence_piece(keys, tokens, types)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        **parts,
        "post_processor": _around(keys, tokens, kind, parts),
    }


def config_of(gguf: Gguf) -> dict[str, Any]:
    """A tokenizer_config.json: the named tokens and the chat templates.

    Raises:
        CheckpointError: as :func:`tokenizer_of`.
    """
    keys = Keys(gguf, _PREFIX)
    tokens, _ = _vocabulary(keys)
    found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in _NAMED.items():
        id = _id(keys, key, tokens)
        if id is not None:
            found[name] = tokens[id]
    templates = _templates(gguf)
    if templates:
        found["chat_template"] = templates
    return found


def generation_of(gguf: Gguf) -> dict[str, Any]:
    """A generation_config.json: which tokens end an answer, and how the model's makers want tokens chosen.

    Raises:
        CheckpointError: as :func:`tokenizer_of`.
    """
    keys = Keys(gguf, _PREFIX)
    tokens, types = _vocabulary(keys)
    ends = {_id(keys, key, tokens) for key in ("eos_token_id", "eot_token_id", "eom_token_id")}
    inner = "<|end|>" if _INNER <= {*tokens} else None
    ends |= {id for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
             if token in _ENDS and token != inner and kind in (CONTROL, USER_DEFINED)}  # fmt: skip
    found: dict[str, Any] = {"eos_token_id": sorted(id for id in ends if id is not None)}
    if (bos := _id(keys, "bos_token_id", tokens)) is not None:
        found["bos_token_id"] = bos
    return found | _sampling(gguf)


def _sampling(gguf: Gguf) -> dict[str, Any]:
    keys = Keys(gguf, "general.sampling.")
    names = {"temp": "temperature", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}
    found: dict[str, Any] = {ours: keys.number(key) for key, ours in names.items() if keys.raw(key) is not None}
    if keys.raw("top_k") is not None:
        found["top_k"] = keys.integer("top_k", low=0)
    return found | ({"do_sample": True} if found.get("temperature") else {})


# ---------------------------------------------------------------------- the vocabulary


def _vocabulary(keys: Keys) -> tuple[tuple[str, ...], Sequence[int]]:
    tokens = keys.texts("tokens")
    types = keys.numbers("token_type") or [1] * len(tokens)
    if not tokens:
        keys.fail("tokens", "a vocabulary has at least one token")
    if len(types) != len(tokens) or not all(isinstance(kind, int) for kind in types):
        keys.fail("token_type", f"expected a whole number for each of {len(tokens)} tokens")
    return tokens, types


def _id(keys: Keys, key: str, tokens: Sequence[str]) -> int | None:
    """A token that a key names; None for none, and for the number that means none."""
    if keys.raw(key) in (None, -1, 0xFFFFFFFF):
        return None
    return keys.integer(key, low=0, high=max(0, len(tokens) - 1))


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is cut."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": id, "content": token, **plain, "special": kind != USER_DEFINED}
        for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]


def _ids(keys: Keys, tokens: Sequence[str]) -> dict[str, int]:
    found = {token: id for id, token in enumerate(tokens)}
    if len(found) != len(tokens):
        twice = next(token for id, token in enumerate(tokens) if found[token] != id)
        keys.fail("tokens", f"the token {short(twice)} is there twice")
    return found


def _model(vocabulary: dict[str, int], merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        **settings, "vocab": vocabulary, "merges": merges,
    }  # fmt: skip


def _byte_level(gguf: Gguf, keys: Keys, tokens: Sequence[str]) -> dict[str, Any]:
    split = _split(gguf, keys)
    vocabulary, merges = _ids(keys, tokens), []
    for merge in keys.texts("merges"):
        at = merge.find(" ", 1)  # a token may begin with a space, none has one in it
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or left + right not in vocabulary or left not in vocabulary or right not in vocabulary:
            keys.fail("merges", f"{short(merge)} does not join two tokens to one")
        merges.append([left, right])
    if not merges:
        keys.fail("merges", "is missing")
    return {
        "normalizer": None if split.normalizer is None else {"type": split.normalizer},
        "pre_tokenizer": pre_tokenizer(split),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": _model(vocabulary, merges, ignore_merges=split.whole),
    }


def _split(gguf: Gguf, keys: Keys) -> Split:
    named = keys.raw("pre")
    found = BY_NAME.get(named) if isinstance(named, str) else None
    if found is None:
        why = (
            "the file does not say how text is cut (tokenizer.ggml.pre): convert it again with a recent llama.cpp"
            if named is None
            else f"it cuts text in the way {bare(named)}, which isobit does not know; it knows {', '.join(BY_NAME)}"
        )
        raise Unsupported(f"the tokenizer of this GGUF file ({gguf.path.name})", [why])
    return found


def _sentence_piece(keys: Keys, tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """SentencePiece's BPE: the pair whose token has the highest score is joined first, bytes stand for what is left."""
    scores = keys.numbers("scores")
    if len(scores) != len(tokens):
        keys.fail("scores", f"expected a number for each of {len(tokens)} tokens")
    vocabulary = _ids(keys, tokens)
    prefixed = keys.flag("add_space_prefix", True)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    first = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
    last = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    unknown = _id(keys, "unknown_token_id", tokens)
    settings: dict[str, Any] = {"byte_fallback": True, "fuse_unk": True}
    if unknown is not None:
        settings["unk_token"] = tokens[unknown]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, replaced]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *last,
            ],
        },
        "model": _model(vocabulary, _merges(tokens, types, scores, vocabulary), **settings),
    }


def _merges(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], vocabulary: dict[str, int]
) -> list[list[str]]:
    """Every pair of tokens that make a third, by the scores of those."""
    found = []
    for id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if len(token) < 2 or kind != 1 or len(token) > 256:
            continue
        for end in range(1, len(token)):
            left, right = vocabulary.get(token[:end]), vocabulary.get(token[end:])
            if left is not None and right is not None:
                found.append((-scores[id], id, left, right))
    found.sort()
    return [[tokens[left], tokens[right]] for _, _, left, right in found]


# ---------------------------------------------------------------------- around a text


def _around(keys: Keys, tokens: Sequence[str], kind: str, parts: dict[str, Any]) -> dict[str, Any] | None:
    """What puts the first and the last token around a text; None for neither."""
    named = BY_NAME.get(str(keys.raw("pre")))
    begins = keys.flag("add_bos_token", kind == "llama" or (named is not None and named.bos))
    ends = keys.flag("add_eos_token", False)
    bos = _id(keys, "bos_token_id", tokens) if begins else None
    eos = _id(keys, "eos_token_id", tokens) if ends else None
    if bos is None and eos is None:
        return None

    def sequence(letter: str, number: int) -> list[dict[str, Any]]:
        inner = [{"Sequence": {"id": letter, "type_id": number}}]
        before, behind = ([] if id is None else [_special(tokens[id], number)] for id in (bos, eos))
        return [*before, *inner, *behind]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {
            tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]} for id in (bos, eos) if id is not None
        },
    }


def _special(token: str, number: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": number}}


def _templates(gguf: Gguf) -> str | list[dict[str, str]] | None:
    """The chat template, or several by name."""
    keys = Keys(gguf, "tokenizer.")
    default = keys.raw("chat_template")
    if default is not None and not isinstance(default, str):
        raise CheckpointError("tokenizer.chat_template is no text", file=gguf.path)
    beginning = "chat_template."
    named = {key.removeprefix(beginning): value for key, value in keys.unread().items() if key.startswith(beginning)}
    found = {name: value for name, value in named.items() if isinstance(value, str)}
    if not found:
        return default
    if default is not None:
        found = {"default": default, **found}
    return [{"name": name, "template": value} for name, value in found.items()]
