"""Tokens that only the small files beside tokenizer.json name: ids and text as transformers' AutoTokenizer has them."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers_for_tests import byte_fallback, byte_level
from transformers import AutoTokenizer

from isobit.engine.detokenizer import DecodeStream
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError

LETTERS = [chr(code) for code in range(32, 127)]
BASE = {token: id for id, token in enumerate(["<unk>", "<s>", "</s>", *LETTERS])}
SIZE = len(BASE)


def one_by_one(*added: AddedToken, vocab: dict[str, int] | None = None) -> FastTokenizer:
    """A token for each printable ASCII character."""
    tokenizer = FastTokenizer(models.WordLevel(vocab or BASE, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens(list(added))
    return tokenizer


def folder_with(folder: Path, tokenizer: FastTokenizer | None = None, **files: dict[str, Any]) -> Path:
    """tokenizer.json and small files; ``config`` is tokenizer_config.json, the others are named without ``.json``."""
    (tokenizer or one_by_one()).save(str(folder / "tokenizer.json"))
    files.setdefault("config", {})
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files["config"] = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **files["config"]}
    for name, content in files.items():
        path = folder / ("tokenizer_config.json" if name == "config" else f"{name}.json")
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, **flags}


def typed(content: str, **flags: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", **token(content, **flags)}


CASES: dict[str, dict[str, Any]] = {
    "added_tokens.json": {"added_tokens": {"<tool>": SIZE}},
    "added_tokens.json, another id": {"added_tokens": {"<tool>": SIZE + 40, "<img>": SIZE + 7}},
    "added_tokens.json, special through the map": {
        "added_tokens": {"<tool>": SIZE, "<img>": SIZE + 1},
        "special_tokens_map": {"pad_token": "<tool>", "additional_special_tokens": ["<img>"]},
    },
    "added_tokens.json beside a list": {"added_tokens": {"<tool>": SIZE}, "config": {"added_tokens_decoder": {}}},
    "additional_special_tokens": {"config": {"additional_special_tokens": ["<tool>", "<img>"]}},
    "additional_special_tokens as objects": {"config": {"additional_special_tokens": [typed("<tool>", special=True)]}},
    "additional_special_tokens, no special flag": {"config": {"additional_special_tokens": [typed("<tool>")]}},
    "extra_special_tokens, a list": {"config": {"extra_special_tokens": ["<tool>"]}},
    "extra_special_tokens, named": {"config": {"extra_special_tokens": {"image_token": "<img>", "x_token": "<tool>"}}},
    "extra wins over additional": {
        "config": {"extra_special_tokens": ["<img>"], "additional_special_tokens": ["<tool>"]}
    },
    "extra is empty": {"config": {"extra_special_tokens": [], "additional_special_tokens": ["<tool>"]}},
    "a model's own name": {"config": {"image_token": "<img>", "tool_token": typed("<tool>"), "add_bos_token": True}},
    "special_tokens_map.json": {"special_tokens_map": {"additional_special_tokens": ["<tool>"], "eos_token": "<img>"}},
    "special_tokens_map.json, objects": {"special_tokens_map": {"pad_token": token("<tool>", rstrip=True)}},
    "special_tokens_map.json beside a list": {
        "special_tokens_map": {"eos_token": "<tool>"},
        "config": {"added_tokens_decoder": {}},
    },
    "the map wins over the config": {"special_tokens_map": {"eos_token": "<tool>"}, "config": {"eos_token": "<img>"}},
    "eos_token is new": {"config": {"eos_token": "<tool>", "pad_token": "<img>"}},
    "eos_token is an object": {"config": {"eos_token": typed("<tool>", lstrip=True, normalized=True)}},
    "eos_token is a letter": {"config": {"eos_token": "b"}},
    "no eos_token": {"config": {"eos_token": None}},
    "added_tokens_decoder": {"config": {"added_tokens_decoder": {str(SIZE): token("<tool>", special=False)}}},
    "added_tokens_decoder, out of order": {
        "config": {
            "added_tokens_decoder": {str(SIZE + 9): token("<tool>"), str(SIZE + 2): token("<img>", special=True)}
        }
    },
    "added_tokens_decoder names eos": {
        "config": {"eos_token": "<img>", "added_tokens_decoder": {str(SIZE): token("<img>", special=False)}}
    },
    "strips": {"config": {"added_tokens_decoder": {str(SIZE): token("<tool>", lstrip=True, rstrip=True)}}},
    "single words": {"config": {"added_tokens_decoder": {str(SIZE): token("tool", single_word=True)}}},
    "special tokens are split": {"config": {"split_special_tokens": True, "pad_token": "<tool>"}},
    "spaces are cleaned up": {"config": {"clean_up_tokenization_spaces": True}},
    "an empty token": {"config": {"pad_token": "", "additional_special_tokens": ["", "<tool>"]}},
    "a token longer than others": {"config": {"additional_special_tokens": ["<to", "<tool>", "<tool><img>"]}},
}
PROMPTS = (
    "a<tool>b<img>c", " <tool> <img> ", "tool atoolb tool", "<s>x</s>y", "b <unk> don ' t he 's here . or , what ! ?",
    "<tool><img><tool>", "", " ", "é<tool>é", "<TOOL>",
)  # fmt: skip


def same(ours: Tokenizer, theirs: Any, prompts: tuple[str, ...] = PROMPTS) -> None:
    for prompt in prompts:
        for add in (True, False):
            ids = ours.encode(prompt, add)
            assert ids == theirs.encode(prompt, add_special_tokens=add), prompt
            for skip in (True, False):
                text = ours.decode(ids, skip)
                assert text == theirs.decode(ids, skip_special_tokens=skip), prompt
                stream = DecodeStream(ours, skip)
                assert "".join(stream.push(id) for id in ids) + stream.finish() == text
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.eos_ids == ({theirs.eos_token_id} if theirs.eos_token else set())


@pytest.mark.parametrize("case", CASES)
def test_every_source_of_tokens_counts_as_in_transformers(case: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **CASES[case])
    same(Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder))


def test_a_token_is_special_if_either_file_says_so(tmp_path: Path) -> None:
    for listed, written in ((True, False), (False, True)):
        tokenizer = one_by_one(AddedToken("<|end|>", special=written, normalized=False))
        listing = {"added_tokens_decoder": {str(SIZE): token("<|end|>", special=listed)}}
        folder = folder_with(tmp_path, tokenizer, config=listing)
        ours = Tokenizer.from_folder(folder)
        same(ours, AutoTokenizer.from_pretrained(folder), ("c<|end|>d",))
        assert ours.decode([BASE["c"], SIZE, BASE["d"]]) == "cd"
        assert ours.is_special(SIZE)


def qwen() -> FastTokenizer:
    """Split as Qwen's tokenizers are."""
    tokenizer = byte_level()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def llama(scheme: str) -> FastTokenizer:
    """Split as SentencePiece does, in the newer spelling."""
    tokenizer = byte_fallback()
    tokenizer.normalizer = None  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)  # type: ignore[arg-type]
    return tokenizer


def gpt2() -> FastTokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.mark.parametrize(
    "named",
    [
        {"additional_special_tokens": ["<tool>"]},
        {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<tool>"]},
        {"eos_token": None, "pad_token": None, "sep_token": "<|im_end|>"},
    ],
)
@pytest.mark.parametrize(
    ("given", "family", "make"),
    [
        ("Qwen2Tokenizer", "qwen2", qwen), ("Qwen2TokenizerFast", "qwen3", qwen), (None, "qwen2", qwen),
        (None, "qwen3", qwen), ("PreTrainedTokenizerFast", "qwen2", qwen), ("PreTrainedTokenizerFast", "qwen3", qwen),
        ("GPT2Tokenizer", "llama", gpt2), ("LlamaTokenizerFast", "llama", lambda: llama("first")),
        ("LlamaTokenizer", "mistral", byte_fallback), ("LlamaTokenizer", "llama", byte_level),
        ("CodeLlamaTokenizer", "llama", lambda: llama("first")), (None, "llama", byte_level),
        (None, "mistral", byte_level),
        ("GPT2Tokenizer", "mistral", byte_level), ("TokenizersBackend", "mistral", byte_fallback),
    ],
)  # fmt: skip
def test_what_a_class_of_transformers_brings_counts(
    given: str | None, family: str, make: Any, named: dict[str, Any], tmp_path: Path
) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    config = {**named, **({"tokenizer_class": given} if given else {})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    same(
        ours, theirs, ("a<tool>b", "def fib(n): return n<|im_end|>", "1234 naïve don't", "<s>x</s>\n\n y <|endoftext|>")
    )
    assert not any("splits texts otherwise" in note for note in ours.notes)


@pytest.mark.parametrize(
    ("given", "family", "make", "more"),
    [
        ("Qwen2Tokenizer", "qwen2", byte_level, {}), ("PreTrainedTokenizerFast", "qwen2", one_by_one, {}),
        ("GPT2Tokenizer", "llama", qwen, {}), ("LlamaTokenizer", "llama", byte_fallback, {"add_prefix_space": False}),
        ("LlamaTokenizer", "llama", one_by_one, {}), ("LlamaTokenizerFast", "llama", byte_fallback, {"legacy": False}),
        ("LlamaTokenizer", "llama", lambda: llama("always"), {}),
    ],
)  # fmt: skip
def test_a_class_that_splits_otherwise_than_the_file_is_said(
    given: str, family: str, make: Any, more: dict[str, Any], tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, make(), config={"tokenizer_class": given, **more})
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    assert any(ours.encode(text) != theirs.encode(text) for text in ("a  b", "return n  ", "</s>x", "e\u0301"))
    assert f"as {type(theirs).__name__}, which splits texts otherwise" in ours.notes[0]


def with_tokens(make: Any, *added: AddedToken) -> FastTokenizer:
    tokenizer: FastTokenizer = make()
    tokenizer.add_tokens(list(added))
    return tokenizer


def word_piece() -> FastTokenizer:
    tokenizer = FastTokenizer(models.WordPiece({**BASE, "##b": SIZE}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", split=False)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


ONLY_S = {"added_tokens_decoder": {"310": token("<s>", special=True)}}


@pytest.mark.parametrize(
    ("given", "family", "make", "config", "added"),
    [
        ("GPT2Tokenizer", "llama", gpt2, {"add_prefix_space": True}, None),
        ("Qwen2Tokenizer", "qwen3", qwen, {"add_prefix_space": True}, None),
        ("TokenizersBackend", "qwen2", qwen, {"add_prefix_space": True}, None),
        ("LlamaTokenizer", "llama", word_piece, {"legacy": True}, None),
        ("GPT2Tokenizer", "llama", gpt2, ONLY_S, None),
        ("Qwen2Tokenizer", "qwen2", lambda: with_tokens(qwen, AddedToken("fox", lstrip=True)), ONLY_S, None),
        ("Qwen2Tokenizer", "qwen2", lambda: with_tokens(qwen, AddedToken("a", rstrip=True)), {"pad_token": "a"}, None),
        ("LlamaTokenizer", "llama", lambda: with_tokens(lambda: llama("first"), AddedToken("fox")), {}, {"<a>": 250}),
    ],
)  # fmt: skip
def test_a_class_that_makes_other_tokens_of_the_file_is_said(
    given: str, family: str, make: Any, config: dict[str, Any], added: dict[str, int] | None, tmp_path: Path
) -> None:
    more = {} if added is None else {"added_tokens": added}
    folder = folder_with(tmp_path, make(), config={"tokenizer_class": given, **config}, **more)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    texts = ("ab", " fox", "<s>a", "</s>x", "a  b", "<a>", "<|end|>")
    assert any(ours.encode(text) != theirs.encode(text) for text in texts)
    assert f"as {type(theirs).__name__}, which splits texts otherwise" in ours.notes[0]


@pytest.mark.parametrize(("make", "given"), [(qwen, "Qwen2Tokenizer"), (gpt2, "GPT2Tokenizer")])
def test_a_class_whose_tokens_are_all_listed_is_not_complained_about(make: Any, given: str, tmp_path: Path) -> None:
    tokenizer = make()
    listed = {
        str(id): json.loads(entry.__getstate__()) if isinstance(entry.__getstate__(), str) else entry.__getstate__()
        for id, entry in tokenizer.get_added_tokens_decoder().items()
    }
    folder = folder_with(tmp_path, tokenizer, config={"tokenizer_class": given, "added_tokens_decoder": listed})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    same(ours, theirs, ("<s>a</s>", "x <|end|> y", "<unk>"))
    assert not any("splits texts otherwise" in note for note in ours.notes)


@pytest.mark.parametrize("flags", [{}, {"special": False}, {"special": True}])
def test_typed_tokens_under_the_old_key_say_themselves_whether_they_are_special(
    flags: dict[str, bool], tmp_path: Path
) -> None:
    listed = {"content": "<tool>", "__type": "AddedToken", **flags}
    folder = folder_with(tmp_path, special_tokens_map={"additional_special_tokens": [listed]})
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    same(ours, theirs, ("a<tool>b",))
    assert ours.decode(ours.encode("a<tool>b")) == ("ab" if flags.get("special") else "a<tool>b")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "config",
            {"added_tokens_decoder": True},
            "added_tokens_decoder must be an object of ids and tokens, not True",
        ),
        ("config", {"added_tokens_decoder": "x"}, "added_tokens_decoder must be an object"),
        ("config", {"added_tokens_decoder": [1]}, "added_tokens_decoder must be an object"),
        ("config", {"added_tokens_decoder": {"5": {}}}, r"added_tokens_decoder\[5\] must be a text, or an object"),
        ("config", {"added_tokens_decoder": {"5": "<z>"}}, r"added_tokens_decoder\[5\] must be an object"),
        ("config", {"added_tokens_decoder": {"abc": {"content": "<z>"}}}, "keys are token ids, not 'abc'"),
        ("config", {"added_tokens_decoder": {"-1": {"content": "<z>"}}}, "keys are token ids, not '-1'"),
        ("config", {"added_tokens_decoder": {"9" * 400: {"content": "<z>"}}}, r"keys are token ids, not '9+\.\.\.9+'"),
        ("config", {"added_tokens_decoder": {"5": {"content": 3}}}, r"added_tokens_decoder\[5\] must be"),
        (
            "config",
            {"added_tokens_decoder": {"5": {"content": "<z>", "lstrip": "no"}}},
            r"\[5\]: lstrip must be true or",
        ),
        (
            "config",
            {"added_tokens_decoder": {"5": {"content": "<z>", "special": None}}},
            r"\[5\]: special must be true",
        ),
        ("config", {"bos_token": 5}, "bos_token must be a text"),
        ("config", {"bos_token": "\ud800"}, "half a character"),
        ("config", {"added_tokens_decoder": {"5": {"content": "\udfff"}}}, "half a character"),
        ("config", {"extra_special_tokens": 3}, "extra_special_tokens must be a list"),
        ("config", {"extra_special_tokens": {"a": 3}}, r"extra_special_tokens\['a'\] must be a text"),
        ("config", {"additional_special_tokens": ["<a>", None]}, r"additional_special_tokens\[1\] must be a text"),
        ("config", {"split_special_tokens": "yes"}, "split_special_tokens must be true or false"),
        ("config", {"clean_up_tokenization_spaces": 1}, "clean_up_tokenization_spaces must be true or false"),
        ("special_tokens_map", {"eos_token": ["</s>"]}, "eos_token must be a text"),
        ("special_tokens_map", {"eos_token": "\udc80"}, "half a character"),
        ("added_tokens", {"<z>": "5"}, "'?<z>'? must be a token id, not '5'"),
        ("added_tokens", {"<z>": True}, "must be a token id, not True"),
        ("added_tokens", {"<z>": -1}, "must be a token id, not -1"),
        ("added_tokens", {"\ud83d": 5}, "half a character"),
    ],
)
def test_a_malformed_entry_is_named(name: str, content: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{name: content})
    file = "tokenizer_config" if name == "config" else name
    with pytest.raises(CheckpointError, match=rf"{file}\.json: .*{said}") as caught:
        Tokenizer.from_folder(folder)
    assert len(str(caught.value)) < 600


def test_no_junk_in_the_small_files_is_a_traceback(tmp_path: Path) -> None:
    rng = random.Random(3)
    junk = [None, True, 0, -1, 10**20, 1e300, "", "x", "\ud800", [], ["x"], [[]], {}, {"content": "x"}, {"content": 1}]
    for _ in range(200):
        _, files = random_files(rng)
        broken = rng.choice(list(files))
        target = files[broken]
        while isinstance(target, dict) and target and rng.random() < 0.7:
            key = rng.choice(list(target))
            if not isinstance(target[key], dict) or rng.random() < 0.5:
                target[key] = rng.choice(junk)
                break
            target = target[key]
        else:
            key = rng.choice(["eos_token", "added_tokens_decoder", "extra_special_tokens", "chat_template", "7"])
            if isinstance(target, dict):
                target[key] = rng.choice(junk)
        try:
            Tokenizer.from_folder(folder_with(tmp_path, **files)).encode("a<tool>")
        except CheckpointError as error:
            assert ".json" in str(error)
        for name in ("special_tokens_map", "added_tokens"):
            (tmp_path / f"{name}.json").unlink(missing_ok=True)


def test_what_does_not_fit_the_model_is_said(tmp_path: Path) -> None:
    config = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<tool>"]}
    folder = folder_with(tmp_path, config=config)
    (folder / "config.json").write_text(json.dumps({"vocab_size": SIZE}))
    notes = " ".join(Tokenizer.from_folder(folder).notes)
    assert f"the model has {SIZE} tokens" in notes and f"'<tool>' ({SIZE + 1})" in notes
    assert f"cannot write its end-of-text token '<|im_end|>' ({SIZE})" in notes
    (folder / "config.json").write_text(json.dumps({"vocab_size": SIZE + 2}))
    assert Tokenizer.from_folder(folder).notes == ()
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    assert "no file names an end-of-text token" in Tokenizer.from_folder(folder).notes[0]


def test_ids_that_the_files_do_not_agree_on_are_said(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, config={"added_tokens_decoder": {str(SIZE + 9): token("<tool>")}})
    assert f"'<tool>' is listed as {SIZE + 9} and is {SIZE}" in Tokenizer.from_folder(folder).notes[0]


def test_tokens_of_files_that_do_not_count_are_said(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        config={"added_tokens_decoder": {}},
        added_tokens={"<tool>": SIZE},
        special_tokens_map={"eos_token": "</s>", "additional_special_tokens": ["<img>"]},
    )
    (note,) = Tokenizer.from_folder(folder).notes
    assert "added_tokens.json, special_tokens_map.json" in note and "'<img>'" in note and "'<tool>'" in note
    assert "</s>" not in note


def random_files(rng: random.Random) -> tuple[FastTokenizer, dict[str, Any]]:
    """A tokenizer whose files name a few tokens in any of the places there are."""
    texts = ["<tool>", "<img>", "<a>", "<b>", "x", "</s>", "<s>"]

    def flags() -> dict[str, bool]:
        names = ("special", "lstrip", "rstrip", "single_word", "normalized")
        return {name: rng.random() < 0.4 for name in names if rng.random() < 0.6}

    def entry() -> Any:
        text = rng.choice(texts)
        return text if rng.random() < 0.6 else {"__type": "AddedToken", "content": text, **flags()}

    config: dict[str, Any] = {}
    for key in ("eos_token", "pad_token", "cls_token", "image_token"):
        if rng.random() < 0.3:
            config[key] = entry()
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if rng.random() < 0.3:
            config[key] = [entry() for _ in range(rng.randrange(3))]
    if rng.random() < 0.2:
        config["extra_special_tokens"] = {"audio_token": rng.choice(texts), "eos_token": rng.choice(texts)}
    if rng.random() < 0.4:
        places = [SIZE, SIZE + 1, SIZE + 2, 9, SIZE + 30]
        config["added_tokens_decoder"] = {
            str(id): {"content": rng.choice(texts), **flags()} for id in rng.sample(places, rng.randrange(4))
        }
    files: dict[str, Any] = {"config": config}
    if rng.random() < 0.4:
        files["special_tokens_map"] = {
            key: rng.choice(texts) if rng.random() < 0.6 else {"content": rng.choice(texts), **flags()}
            for key in ("bos_token", "eos_token", "mask_token", "audio_token")
            if rng.random() < 0.4
        }
        if rng.random() < 0.4:
            files["special_tokens_map"][rng.choice(["additional_special_tokens", "extra_special_tokens"])] = [
                rng.choice(texts) for _ in range(rng.randrange(3))
            ]
    if rng.random() < 0.3:
        files["added_tokens"] = {rng.choice(texts): SIZE + place for place in range(rng.randrange(3))}
    own = [AddedToken(rng.choice(texts), **flags()) for _ in range(rng.randrange(3))]
    return one_by_one(*own), files


def test_any_mixture_of_files_counts_as_in_transformers(tmp_path: Path) -> None:
    rng = random.Random(11)
    compared = 0
    for _ in range(int(os.environ.get("MIXTURES", "100"))):
        for name in ("special_tokens_map", "added_tokens"):
            (tmp_path / f"{name}.json").unlink(missing_ok=True)
        tokenizer, files = random_files(rng)
        folder = folder_with(tmp_path, tokenizer, **files)
        theirs = AutoTokenizer.from_pretrained(folder)
        same(Tokenizer.from_folder(folder), theirs, ("a<tool>b <img> <a>x <b></s>y", "<s> x <tool><a>"))
        compared += 1
    assert compared
