"""The tokenizer against transformers' AutoTokenizer, its files, and incremental decoding."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Regex, decoders
from tokenizers_for_tests import HARD_TEXTS, KINDS, byte_fallback, byte_level, write_folder
from transformers import AutoTokenizer

from isobit.engine.detokenizer import DecodeStream
from isobit.engine.tokenizer import Tokenizer, by_itself
from isobit.errors import CheckpointError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_encodes_and_decodes_as_transformers_does(kind: str, add_bos_token: bool | None, tmp_path: Path) -> None:
    config = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    folder = write_folder(tmp_path, KINDS[kind](), **config)
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    for text in HARD_TEXTS:
        for add_special in (True, False):
            ids = ours.encode(text, add_special)
            assert ids == theirs.encode(text, add_special_tokens=add_special)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_ids == {theirs.eos_token_id}
    assert ours.vocab_size == len(theirs)


def test_tokens_listed_only_in_the_config_are_added_as_transformers_does(tmp_path: Path) -> None:
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    token = {"content": "<|tool|>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
    listed = {str(size): {**token, "special": True}, str(size + 1): {**token, "content": "<|x|>", "special": False}}
    folder = write_folder(tmp_path, tokenizer, added_tokens_decoder=listed)
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    text = "a <|tool|> b <|x|>  c"
    assert ours.encode(text) == theirs.encode(text)
    assert size in ours.encode(text) and size + 1 in ours.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


def test_special_tokens_as_text_or_as_objects_and_the_map_file(tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain", byte_level(), pad_token={"content": "</s>", "__type": "AddedToken"})
    assert Tokenizer.from_folder(plain).special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    mapped = write_folder(tmp_path / "mapped", byte_level(), bos_token=None)
    (mapped / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "<|end|>"})
    )
    assert Tokenizer.from_folder(mapped).special_tokens == {"bos_token": "<s>", "eos_token": "<|end|>"}


def test_eos_ids_come_from_every_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level())
    own = byte_level().token_to_id("</s>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Tokenizer.from_folder(folder).eos_ids == {5, 6, 7, own}
    (folder / "config.json").write_text(json.dumps({"eos_token_id": "seven"}))
    with pytest.raises(CheckpointError, match=r"config\.json.*eos_token_id.*'seven'"):
        Tokenizer.from_folder(folder)


def test_chat_template_files_win_over_the_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level(), chat_template="from config")
    assert Tokenizer.from_folder(folder).chat_template == "from config"
    (folder / "chat_template.jinja").write_text("from file", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("for tools", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_templates == theirs.chat_template == {"default": "from file", "tool_use": "for tools"}
    assert tokenizer.template_for() == "from file"
    assert tokenizer.template_for([{"name": "f"}]) == "for tools"


def test_named_chat_templates_in_the_config(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, byte_level(), chat_template=named))
    assert tokenizer.chat_templates == {"default": "A", "rag": "B"}
    assert Tokenizer.from_folder(write_folder(tmp_path / "none", byte_level())).chat_template is None
    broken = write_folder(tmp_path / "broken", byte_level(), chat_template=[{"name": "x"}])
    with pytest.raises(CheckpointError, match="chat_template must be"):
        Tokenizer.from_folder(broken)


def test_a_folder_with_another_kind_of_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no tokenizer file at all"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(CheckpointError, match=r"only tokenizer\.model.*save_pretrained"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: this is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_a_file_that_makes_the_library_panic_is_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads(byte_level(bos=True).to_str())
    content["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: this is not a tokenizer that can be read"):
        Tokenizer.from_folder(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_truncation_and_padding_saved_in_the_file_are_not_applied(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    assert (
        Tokenizer.from_folder(write_folder(tmp_path, tokenizer)).decode(
            Tokenizer.from_folder(tmp_path).encode("def fib(n): return n")
        )
        == "def fib(n): return n"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_is_the_decoded_text(kind: str) -> None:
    tokenizer = Tokenizer(KINDS[kind]())
    for text in HARD_TEXTS:
        ids = tokenizer.encode(text)
        stream = DecodeStream(tokenizer)
        pieces = [stream.push(id) for id in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
        if "\ufffd" not in text:
            assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip_special", [True, False])
def test_streamed_text_is_the_decoded_text_for_any_ids(kind: str, skip_special: bool) -> None:
    """Random ids: broken UTF-8 everywhere, special tokens between the bytes of a character, spaces in a row."""
    tokenizer = Tokenizer(KINDS[kind]())
    rng = random.Random(7)
    rare = tokenizer.encode("漢🙂  <s></s>é ", add_special=False)
    for length in range(1, 60):
        ids = [rng.choice(rare) if rng.random() < 0.6 else rng.randrange(tokenizer.vocab_size) for _ in range(length)]
        stream = DecodeStream(tokenizer, skip_special)
        out = "".join(stream.push(id) for id in ids)
        assert tokenizer.decode(ids, skip_special).startswith(out)
        assert out + stream.finish() == tokenizer.decode(ids, skip_special)


def test_a_character_of_several_tokens_comes_out_whole() -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode("🙃")
    assert len(ids) > 1
    stream = DecodeStream(tokenizer)
    assert [stream.push(id) for id in ids] == [""] * (len(ids) - 1) + ["🙃"]
    fallback = Tokenizer(byte_fallback())
    stream = DecodeStream(fallback)
    ids = [*fallback.encode("🙃"), *fallback.encode("t", add_special=False)]
    assert "".join(stream.push(id) for id in ids) == "🙃 t"


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_behind_others_has_a_text_of_its_own(kind: str) -> None:
    """What streams take instead of decoding: the same behind any text that is complete and not empty."""
    tokenizer = Tokenizer(KINDS[kind]())
    usual = [id for id in range(tokenizer.vocab_size) if not tokenizer.is_byte(id) and not tokenizer.is_special(id)]
    alone = [id for id in usual if tokenizer.behind(id)]
    assert len(alone) > len(usual) // 3  # the others are parts of characters
    rng = random.Random(8)
    for id in alone:
        before = tokenizer.decode(ids := [rng.choice(alone) for _ in range(3)])
        assert before and tokenizer.decode([*ids, id]) == before + tokenizer.behind(id)


DECODERS = {
    "ByteLevel": (decoders.ByteLevel(), True),
    "SentencePiece": (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)]), True),
    "Metaspace": (decoders.Metaspace(), True),
    "WordPiece": (decoders.WordPiece(), False),
    "CTC": (decoders.CTC(), False),
    "ends of words": (decoders.BPEDecoder(), False),
    "two characters": (decoders.Replace("ab", "c"), False),
    "a pattern": (decoders.Replace(Regex("a+"), "b"), False),
    "stripped at its end": (decoders.Strip(" ", 0, 1), False),
    "bytes behind a fuse": (decoders.Sequence([decoders.Fuse(), decoders.ByteLevel()]), False),
    "none": (None, True),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_which_decoders_make_a_text_of_each_token(name: str) -> None:
    decoder, expected = DECODERS[name]
    assert by_itself(decoder) is expected
    fast = byte_level()
    fast.decoder = decoder
    tokenizer = Tokenizer(fast)
    assert any(tokenizer.behind(id) for id in range(tokenizer.vocab_size)) is expected
    stream, ids = DecodeStream(tokenizer), tokenizer.encode("def fib(n): return n, ab a b")
    assert "".join(stream.push(id) for id in ids) + stream.finish() == tokenizer.decode(ids)


def test_ids_beyond_the_tokenizer_are_nothing_and_hold_nothing_back() -> None:
    tokenizer = Tokenizer(byte_fallback())
    unknown = tokenizer.vocab_size + 7
    for text in HARD_TEXTS:
        ids = [id for one in tokenizer.encode(text) for id in (unknown, one, unknown)]
        stream = DecodeStream(tokenizer)
        assert "".join(stream.push(id) for id in ids) + stream.finish() == tokenizer.decode(ids)
        assert unknown not in stream._ids
