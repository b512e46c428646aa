"""GLM-4's ``tokenizer.model``: the ids that tiktoken gives, and thousands of tokens that are listed."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
import tiktoken
from test_ranks import ALPHABETS, CORPUS, trained

from isobit.checkpoint.text.fast import has_tokenizer, read_fast
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError

# As the code beside GLM-4's published files has it.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
RANKS = trained(60) | {b"<|UNUSED_pad_256|>": 256 + 60}  # a token that no merges make
FIRST = len(RANKS)
SOUNDS = 3000


def write(folder: Path, name: str = "ChatGLM4Tokenizer") -> Path:
    folder.mkdir(exist_ok=True)
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in RANKS.items()]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    names = ["<|endoftext|>", "<|user|>", "<|begin_of_audio|>", *(f"<|audio_{at}|>" for at in range(SOUNDS))]
    added = {str(FIRST + at): {"content": one, "special": at < 3} for at, one in enumerate(names)}
    added[str(FIRST + len(names) + 2)] = {"content": "<|SH|>", "special": False}  # behind two that nobody names
    config = {"tokenizer_class": name, "added_tokens_decoder": added, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("glm"))


def test_any_text_gets_the_ids_of_tiktoken(folder: Path) -> None:
    fast = read_fast(folder).tokenizer
    oracle = tiktoken.Encoding("glm", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens={})
    for letters in ALPHABETS:
        chance = random.Random(len(letters))
        for _ in range(40):
            text = "".join(chance.choice(letters) for _ in range(chance.randrange(1, 40)))
            assert fast.encode(text).ids == oracle.encode_ordinary(text), text
    assert fast.encode(CORPUS).ids == oracle.encode_ordinary(CORPUS)


def test_tokens_that_are_listed_have_their_ids(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert has_tokenizer(folder) and tokenizer.vocab_size == FIRST + 3 + SOUNDS + 3
    text = f"hi<|begin_of_audio|><|audio_0|><|audio_{SOUNDS - 1}|><|SH|><|user|>"
    begin = len(tokenizer.encode("hi"))
    assert tokenizer.encode(text)[begin:] == [
        FIRST + 2, FIRST + 3, FIRST + 2 + SOUNDS, FIRST + SOUNDS + 5, FIRST + 1,
    ]  # fmt: skip
    assert (
        tokenizer.eos_ids == {FIRST}
        and tokenizer.name_of(FIRST + SOUNDS + 3) == f"<|reserved_token_{FIRST + SOUNDS + 3}|>"
    )


def test_a_sentencepiece_file_of_the_same_name_is_none_of_these(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only tokenizer.model. Convert once"):
        read_fast(write(tmp_path / "llama", "LlamaTokenizer"))
