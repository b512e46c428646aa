"""Tokenizers made of GGUF metadata: ids of the tokenizers they were made from, templates, ends, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from gguf_writer import LLAMA, gguf, llama_tensors, write
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from isobit.checkpoint.gguf.members import read
from isobit.checkpoint.gguf.splits import BY_NAME, SPLITS, pre_tokenizer
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import IsobitError

CORPUS = [
    "def hello(name):\n    return 'Hello, ' + name\n",
    "It's 12345 and we'll see. Don't!",
    "Grüße, señor — 日本語 🎉",
    "HelloWorld camelCase  x\t\ty\r\n",
    "The quick brown fox jumps over the lazy dog. " * 3,
] * 4
TEXTS = [*CORPUS[:5], "", " ", "\n\n", "<|end|>x<|tool|>y", "unseen ★ Ω 𝔘 text 007", "a  b   c"]
SPECIAL = ["<|begin|>", "<|end|>"]
PLAIN, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def byte_level(name: str) -> tokenizers.Tokenizer:
    """A byte-level tokenizer that cuts text as the models of that name do, trained on a few lines."""
    row = BY_NAME[name]
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=row.whole))
    if row.normalizer:
        made.normalizer = getattr(normalizers, row.normalizer)()
    split: list[Any] = [
        pre_tokenizers.Split(tokenizers.Regex(one), behavior="isolated", invert=False) for one in row.patterns
    ]
    split.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=row.gpt2))
    made.pre_tokenizer = pre_tokenizers.Sequence(split)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens([tokenizers.AddedToken("<|tool|>", normalized=False)])
    return made


def metadata(made: tokenizers.Tokenizer, model: str, **more: Any) -> dict[str, Any]:
    vocabulary = sorted(made.get_vocab(with_added_tokens=True).items(), key=lambda pair: pair[1])
    merges = json.loads(made.to_str())["model"]["merges"]
    kinds = {token.content: CONTROL if token.special else USER for token in made.get_added_tokens_decoder().values()}
    found = {
        "model": model, "tokens": [token for token, _ in vocabulary],
        "token_type": [kinds.get(token, PLAIN) for token, _ in vocabulary],
        "merges": [" ".join(pair) for pair in merges], "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in (found | more).items()}


def opened(path: Path, keys: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_folder(write(path, gguf(LLAMA | keys, llama_tensors())))


@pytest.mark.parametrize("name", [row.names[0] for row in SPLITS])
def test_byte_level(tmp_path: Path, name: str) -> None:
    made = byte_level(name)
    found = opened(tmp_path / "m.gguf", metadata(made, "gpt2", pre=name, add_bos_token=False))
    for text in TEXTS:
        ids = made.encode(text).ids
        assert found.encode(text) == ids, text
        assert found.decode(ids) == made.decode(ids)
    assert found.bos_id == 0 and found.eos_ids == {1}


def test_whether_a_text_begins_with_a_token(tmp_path: Path) -> None:
    made = byte_level("qwen2")
    plain = made.encode("It's", add_special_tokens=False).ids
    for name, said, begins in (("llama-bpe", None, True), ("qwen2", None, False), ("qwen2", True, True),
                               ("llama-bpe", False, False)):  # fmt: skip
        more = {"pre": name} | ({} if said is None else {"add_bos_token": said})
        found = opened(tmp_path / f"{name}-{said}.gguf", metadata(made, "gpt2", **more))
        assert found.encode("It's") == ([0] if begins else []) + plain
        assert found.encode("It's", add_special=False) == plain
    found = opened(tmp_path / "both.gguf", metadata(made, "gpt2", pre="qwen2", add_bos_token=True, add_eos_token=True))
    assert found.encode("It's") == [0, *plain, 1]


def sentence_piece() -> tokenizers.Tokenizer:
    """A tokenizer in the manner of Llama 2: bytes for what it lacks, a space in front of everything."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁".join(text.split(" ")) for text in CORPUS]
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    return made


def test_sentence_piece(tmp_path: Path) -> None:
    """Merges are not in such a file: they are found again from the scores."""
    made = sentence_piece()
    keys = metadata(made, "llama")
    tokens = keys["tokenizer.ggml.tokens"]
    del keys["tokenizer.ggml.merges"]
    byte = [token.startswith("<0x") for token in tokens]
    keys |= {
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *(BYTE if one else PLAIN for one in byte[3:])],
        "tokenizer.ggml.scores": [float(-id) for id in range(len(tokens))],
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    found = opened(tmp_path / "m.gguf", keys)
    for text in (*TEXTS[:5], "unseen ★ 𝔘", "a  b"):
        ids = [id for id in made.encode(text).ids if id > 2]
        assert found.encode(text) == [1, *ids], text
        assert found.decode(found.encode(text)) == text
    bare = opened(tmp_path / "bare.gguf", keys | {"tokenizer.ggml.add_space_prefix": False})
    assert bare.decode(bare.encode("Hello, name")) == "Hello, name"


def test_templates_and_ends(tmp_path: Path) -> None:
    keys = metadata(byte_level("qwen2"), "gpt2", pre="qwen2")
    tokens = keys["tokenizer.ggml.tokens"]
    tokens[tokens.index("<|tool|>")] = "<|im_end|>"
    keys |= {"tokenizer.chat_template": "{{ messages }}", "tokenizer.chat_template.tool_use": "{{ tools }}",
             "general.sampling.temp": 0.5, "general.sampling.top_k": 20}  # fmt: skip
    found = opened(tmp_path / "m.gguf", keys)
    assert found.chat_templates == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    assert found.eos_ids == {1, tokens.index("<|im_end|>")}  # <|end|> is number 1
    assert found.defaults.sampled and dict(found.defaults.values) == {"temperature": 0.5, "top_k": 20}


BASE = metadata(byte_level("gpt-2"), "gpt2", pre="gpt-2")
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"model": "t5"}, "of the kind t5"),
    "another way of cutting": ({"pre": "whatever"}, "in the way whatever, which isobit does not know"),
    "no way of cutting": ({"pre": None}, "does not say how text is cut"),
    "no merges": ({"merges": None}, "merges is missing"),
    "a merge of nothing": ({"merges": ["ab"]}, "does not join two tokens"),
    "a merge of strangers": ({"merges": ["ж ж"]}, "does not join two tokens"),
    "a token twice": ({"tokens": ["a", "a"], "token_type": [1, 1]}, "'a' is there twice"),
    "fewer types": ({"token_type": [1, 1]}, "a whole number for each of"),
    "types that are texts": ({"token_type": ["a"]}, "expected a list of numbers"),
    "a bos beyond": ({"bos_token_id": 1 << 20}, "bos_token_id is 1048576: expected a whole number"),
    "tokens that are numbers": ({"tokens": [1, 2]}, "expected a list of texts"),
    "a flag that is none": ({"add_bos_token": 3}, "expected true or false"),
    "scores of another length": ({"model": "llama", "scores": [1.0]}, "a number for each of"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    keys = BASE | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    path = write(tmp_path / "m.gguf", gguf(LLAMA | {k: v for k, v in keys.items() if v is not None}, llama_tensors()))
    with pytest.raises(IsobitError, match=message) as caught:
        read(path / "tokenizer.json")
        read(path / "generation_config.json")
    assert "m.gguf" in str(caught.value)


def test_the_table() -> None:
    assert len(BY_NAME) == sum(len(row.names) for row in SPLITS)
    for row in SPLITS:
        assert pre_tokenizer(row)["pretokenizers"][-1]["type"] == "ByteLevel"
