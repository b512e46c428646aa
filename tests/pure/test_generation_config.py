"""What generation_config.json asks for: honoured, without effect, said, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isobit.checkpoint.text.generation import Defaults, read_defaults
from isobit.errors import CheckpointError


def defaults(folder: Path, **content: Any) -> Defaults:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return read_defaults(folder)


def test_a_folder_without_the_file_asks_for_nothing(tmp_path: Path) -> None:
    chosen = read_defaults(tmp_path).choose({})
    assert read_defaults(tmp_path) == Defaults()
    assert (chosen.settings, chosen.used, chosen.sentences()) == ({}, {}, [])


def test_sampling_is_honoured_and_shown(tmp_path: Path) -> None:
    found = defaults(tmp_path, do_sample=True, temperature=0.6, top_p=0.95, top_k=20, eos_token_id=[2, 7])
    chosen = found.choose({})
    assert chosen.settings == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert chosen.sentences() == [
        "sampling: temperature 0.6, top_k 20, top_p 0.95 (generation_config.json; --temperature 0 is greedy)"
    ]
    assert found.eos_ids == {2, 7} and found.notes == ()


def test_what_is_given_wins(tmp_path: Path) -> None:
    found = defaults(tmp_path, do_sample=True, temperature=0.6, top_p=0.95, repetition_penalty=1.1)
    assert found.choose({"temperature": 0.9, "top_k": 0}).settings == {
        "temperature": 0.9, "top_k": 0, "top_p": 0.95, "repetition_penalty": 1.1,
    }  # fmt: skip
    greedy = found.choose({"temperature": 0})
    assert greedy.settings == {"temperature": 0, "repetition_penalty": 1.1}
    assert greedy.used == {"repetition_penalty": 1.1}


def test_do_sample_alone_means_what_it_means_in_transformers(tmp_path: Path) -> None:
    assert defaults(tmp_path, do_sample=True).choose({}).settings == {"temperature": 1.0, "top_k": 50}
    assert defaults(tmp_path, do_sample=True, top_k=0).choose({}).settings == {"temperature": 1.0}
    assert defaults(tmp_path, do_sample=True, top_k=-1).choose({}).settings == {"temperature": 1.0}


def test_without_do_sample_the_most_probable_token_is_taken_and_that_is_said(tmp_path: Path) -> None:
    found = defaults(tmp_path, temperature=0.6, top_p=0.9)
    assert found.choose({}).settings == {}
    assert "gives temperature 0.6, top_p 0.9 but not do_sample" in found.choose({}).sentences()[0]
    assert found.choose({"temperature": 0.7}).settings == {"temperature": 0.7, "top_p": 0.9}
    assert found.choose({"temperature": 0}).sentences() == []


def test_lengths_and_stop_strings(tmp_path: Path) -> None:
    found = defaults(tmp_path, max_new_tokens=40, max_length=100, stop_strings=["END"])
    assert (found.max_tokens, found.max_length, found.stop) == (40, 100, ("END",))
    assert found.choose({}).sentences() == ["sampling: stop ['END'], max_tokens 40 (generation_config.json)"]
    assert found.choose({"stop": ("X",), "max_tokens": 3}).sentences() == []
    assert defaults(tmp_path, stop_strings="END").stop == ("END",)


@pytest.mark.parametrize(
    "content",
    [
        {"num_beams": 4},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [5]},
        {"typical_p": 0.9},
        {"guidance_scale": 2},
    ],
)
def test_what_isobit_lacks_is_said(content: dict[str, Any], tmp_path: Path) -> None:
    (note,) = defaults(tmp_path, **content).notes
    key, value = next(iter(content.items()))
    assert "answers differ from transformers'" in note and f"{key} {value}" in note


def test_what_changes_nothing_is_not_said_and_what_nobody_knows_is(tmp_path: Path) -> None:
    quiet = {
        "bos_token_id": 1, "pad_token_id": 0, "transformers_version": "5", "_from_model_config": True, "num_beams": 1,
        "use_cache": True, "length_penalty": 1.5, "typical_p": 1.0, "temperature": None, "no_repeat_ngram_size": 0,
    }  # fmt: skip
    assert defaults(tmp_path, **quiet).notes == ()
    (note,) = defaults(tmp_path, **quiet, chat_format="chatml").notes
    assert "does not know, not used: 'chat_format'" in note


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "hot"), ("temperature", True), ("temperature", -1), ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", 2.5), ("top_k", -2), ("top_k", [1]), ("min_p", 2), ("repetition_penalty", 0), ("do_sample", "true"),
        ("do_sample", 1), ("max_new_tokens", 0), ("max_new_tokens", "9"), ("max_length", {}), ("stop_strings", 5),
        ("stop_strings", [""]), ("eos_token_id", "</s>"), ("eos_token_id", [1.5]), ("eos_token_id", {"a": 1}),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {key} must be"):
        defaults(tmp_path, **{key: value})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"stop_strings": "\\ud800"}', '{"top_k": 1, "top_k": 2}'])
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read_defaults(tmp_path)
