"""Tiny tokenizers of the kinds that real models have, built in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "the quick brown fox, déjà vu 漢字 🙂 don't",
]
HARD_TEXTS = (
    "",
    " ",
    "a",
    "  two  spaces ",
    "def fib(n):\n\treturn n",
    "naïve café 漢字かな 🙂👩‍👩‍👧 e\u0301",
    "<s>inside</s> <|end|> text",
    "\r\n\n  \n",
    "\ufffd real replacement \ufffd",
    "nul \x00 and \x7f",
)


def byte_level(bos: bool = False) -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<|end|>", normalized=False)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece-style BPE with byte fallback, as Llama 2 and Mistral have it: "▁" for spaces, ``<0xE6>`` bytes."""
    vocab = {
        token: id for id, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    }
    for token in ["▁", *"abcdefghijklmnopqrstuvwxyz():,.+-<é\ufffd", "▁d", "de", "▁t", "th", "▁th"]:
        vocab[token] = len(vocab)
    merges = [("▁", "d"), ("d", "e"), ("▁", "t"), ("t", "h"), ("▁t", "h")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


KINDS = {"byte-level": byte_level, "byte-level with bos": lambda: byte_level(bos=True), "byte-fallback": byte_fallback}


def write_folder(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
