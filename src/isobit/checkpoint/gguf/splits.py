"""How a byte-level tokenizer cuts text before it merges: GGUF names the way, tokenizer.json spells it out.

A row holds the expressions that text is cut at, one after the other, as the models' own tokenizer.json has them; the
names are llama.cpp's (``tokenizer.ggml.pre``). What is not here is refused by its name: another way of cutting would
give other ids and no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Split:
    """A way of cutting text.

    Attributes:
        names: what ``tokenizer.ggml.pre`` calls it.
        patterns: expressions; what one matches is a piece of its own.
        gpt2: whether GPT-2's expression comes last.
        whole: whether a piece that is a token is one, whatever the merges say.
        bos: whether a text begins with the token for that where the file does not say it.
        normalizer: what is done to the text first.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    whole: bool = False
    bos: bool = False
    normalizer: str | None = None


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Words whose capitals begin a new one, and what may follow each.
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_LLAMA3 = f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = f"{_CASED % ('', '')}|\\p{{N}}|{_SLASHED}|{_SPACES}"
_ENDED = f"{_CONTRACTIONS}?"
_GPT4O = f"{_CASED % (_ENDED, _ENDED)}|\\p{{N}}{{1,3}}|{_SLASHED}|{_SPACES}"
_SEED = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")  # noqa: RUF001
# Letters with case, not all of them, as the models' own file has them: words of the first DeepSeek.
_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽ"  # noqa: RUF001
    "Ა-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"  # noqa: RUF001
)
_DEEPSEEK = (
    r"[\r\n]", rf"\s?[{_LETTERS}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
    "[一-龥ࠀ-一가-퟿]+", r"\p{N}+",
)  # fmt: skip
_KIMI_UPPER, _KIMI_LOWER = (
    rf"[{cased}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for cased in (r"\p{Lu}\p{Lt}", r"\p{Ll}")
)
_KIMI = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_ENDED}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_ENDED}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
)
_DIGIT = r"\p{N}"

SPLITS = (
    Split(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), (_LLAMA3,),
          whole=True, bos=True),
    Split(("dbrx", "smaug-bpe", "chatglm-bpe"), (_LLAMA3,)),
    Split(("glm4", "glm5"), (_LLAMA3,), whole=True),
    Split(("qwen2",), (_QWEN2,), normalizer="NFC"),
    Split(("deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan", "solar-open", "grok-2"), (_QWEN2,)),
    Split(("qwen35",), (_QWEN35,), normalizer="NFC"),
    Split(("tekken",), (_TEKKEN,), whole=True, bos=True),
    Split(("gpt-4o", "llama4", "kanana2", "minimax-m2"), (_GPT4O,)),
    Split(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK3),
    Split(("deepseek-coder",), _DEEPSEEK_CODER),
    Split(("deepseek-llm",), _DEEPSEEK),
    Split(("kimi-k2",), (_KIMI,)),
    Split(("seed-coder",), (_SEED,)),
    Split(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0",
           "mellum", "modern-bert"), gpt2=True),
    Split(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), (_DIGIT,),
          gpt2=True),
)  # fmt: skip

BY_NAME: dict[str, Split] = {name: row for row in SPLITS for name in row.names}


def pre_tokenizer(row: Split) -> dict[str, Any]:
    """The part of tokenizer.json that cuts text."""
    parts: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in row.patterns
    ]
    parts.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": row.gpt2})
    return {"type": "Sequence", "pretokenizers": parts}
