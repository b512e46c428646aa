"""``tiktoken.model``: the same ids as tiktoken gives, whatever the text, and every way the file can be wrong."""

from __future__ import annotations

import base64
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import tiktoken

from isobit.checkpoint.text.fast import Fast, read_fast
from isobit.checkpoint.text.ranks import SPLITS
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError

# Moonshot's own expression, as its code beside the published files has it: written down apart from the row.
PATTERN = "|".join([
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+""",
])  # fmt: skip  # noqa: E501
CORPUS = (
    "The theatre's others they'll banana banana 12345 67 你好世界 你好 世界 こんにちは ÀÉ straße ...!!!\n\n  \tx\r\n"
    " another mother said that the weather over there is rather better than the winter's; 12 123 1234"
)
NAMED = {"[BOS]": (0, True), "[EOS]": (1, True), "<|im_end|>": (2, True), "<|tool_call_begin|>": (5, False)}


def trained(merges: int) -> dict[bytes, int]:
    """Ranks learned from the corpus, all bytes first."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in word.encode()] for word in re.findall(r"\s?\w+|\W+", CORPUS)]
    for _ in range(merges):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        if not pairs:
            break
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks[left + right] = len(ranks)
        for word in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == (left, right):
                    word[at : at + 2] = [left + right]
                at += 1
    return ranks


RANKS = trained(80)
BASE = len(RANKS)


def write(folder: Path, lines: list[bytes] | None = None, name: str = "TikTokenTokenizer") -> Path:
    folder.mkdir(exist_ok=True)
    whole = [base64.b64encode(token) + b" %d" % rank for token, rank in RANKS.items()]
    (folder / "tiktoken.model").write_bytes(b"\n".join(whole if lines is None else lines))
    added = {str(BASE + at): {"content": text, "special": special} for text, (at, special) in NAMED.items()}
    config = {"tokenizer_class": name, "added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "[EOS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def fast(folder: Path) -> Fast:
    return read_fast(folder)


@pytest.fixture(scope="module")
def oracle() -> tiktoken.Encoding:
    named = {at: text for text, (at, _) in NAMED.items()}
    special = {named.get(at, f"<|reserved_token_{BASE + at}|>"): BASE + at for at in range(256)}
    return tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens=special)


def test_the_row_says_what_the_models_own_code_says() -> None:
    sets = {r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"}
    assert SPLITS[0].pattern == PATTERN and all(one in PATTERN for one in sets)


ALPHABETS = (
    "ab", "theaonris '", "abAB'sS  \n", "你好世界 a你1", "0123456789, ", "éßÀ straẞe\u0301",
    " \t\n\r\u00a0\u3000\u0085x",
    "!?.,;-_#`~你\n", "こんにちはabc世", "🙂👍🏽\u200da ", "\u2028\u2029\x0b\x0c\x1c a",
)  # fmt: skip


@pytest.mark.parametrize("letters", ALPHABETS)
def test_any_text_gets_the_ids_of_tiktoken(letters: str, fast: Fast, oracle: tiktoken.Encoding) -> None:
    chance = random.Random(len(letters))
    for _ in range(150):
        text = "".join(chance.choice(letters) for _ in range(chance.randrange(1, 40)))
        assert fast.tokenizer.encode(text).ids == oracle.encode_ordinary(text), text


def test_neighbours_are_joined_by_what_they_make(tmp_path: Path) -> None:
    """Ranks that no training gives: one token by several pairs, and overlapping ones."""
    for seed in range(12):
        chance = random.Random(seed)
        ranks = {bytes([byte]): byte for byte in range(256)}
        while len(ranks) < 300:
            left, right = (chance.choice([b"a", b"b", *list(ranks)[256:]]) for _ in range(2))
            ranks.setdefault((left + right)[:6], len(ranks))
        plain = tiktoken.Encoding("plain", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
        fast = read_fast(write(tmp_path / str(seed), lines)).tokenizer
        for _ in range(60):
            text = "".join(chance.choice("ab") for _ in range(chance.randrange(1, 30)))
            assert fast.encode(text).ids == plain.encode_ordinary(text), (seed, text)


def test_special_tokens_have_the_ids_that_the_files_give_them(fast: Fast, oracle: tiktoken.Encoding) -> None:
    text = f"[BOS]hi<|im_end|> <|tool_call_begin|>x<|reserved_token_{BASE + 7}|>[EOS]"
    ids = fast.tokenizer.encode(text).ids
    assert ids == oracle.encode(text, allowed_special="all")
    assert fast.tokenizer.get_vocab_size() == BASE + 256
    special = {BASE + at for at in range(256)} - {BASE + 5}
    assert fast.special == special
    assert fast.tokenizer.decode(ids, skip_special_tokens=True) == "hi <|tool_call_begin|>x"


def test_texts_come_back(folder: Path, oracle: tiktoken.Encoding) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    for text in (CORPUS, "你好, 世界! 🙂", "naïve\r\n\r\n  tabs\t\tend  "):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == oracle.decode(ids)


@pytest.mark.parametrize(
    ("lines", "said"),
    [([b"!!!! 0"], "line 1.*base64"), ([b"YQ== 1"], "rank 0"), ([b"YQ== 0", b"YQ== 1"], "line 2.*new token"),
     ([b"YQ== 0"], "no token for 255 of 256 bytes"), ([], "no token for 256"), ([b"YQ=="], "line 1"),
     ([b"YQ== 0 0"], "line 1"), ([b"YQ== 00"], "line 1"), ([b"YQ== -0"], "line 1"), ([b"= 0"], "line 1"),
     ([b"\xff\xfe 0"], "line 1"), ([base64.b64encode(b"a" * 2000) + b" 0"], "1024 bytes")],
)  # fmt: skip
def test_damaged_files_are_refused(lines: list[bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said) as error:
        read_fast(write(tmp_path / "bad", lines))
    assert "tiktoken.model" in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 600


def test_a_class_whose_cuts_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer_class = 'OwnTokenizer'.*not run.*TikTokenTokenizer"):
        read_fast(write(tmp_path / "other", name="OwnTokenizer"))
