"""Files that travel with the weights are read before the work begins: a broken one never reaches an output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write
from tokenizers_for_tests import byte_level, write_folder

from isobit import api
from isobit.errors import CheckpointError


def source(tmp_path: Path, **config: Any) -> Path:
    folder = write_folder(write(tmp_path / "src"), byte_level(), **config)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "tokenizer": ("tokenizer.json", "{}", "not a tokenizer that can be read"),
    "tokenizer, no JSON": ("tokenizer.json", "", "not a tokenizer that can be read"),
    "tokenizer, cut off": ("tokenizer.json", '{"version": "1.0", "added_tokens": [', "not a tokenizer"),
    "tokenizer, no UTF-8": ("tokenizer.json", b"\xff\xfe{}", "not a tokenizer"),
    "tokenizer_config": ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder must be"),
    "tokenizer_config, a list": ("tokenizer_config.json", "[]", "must hold a JSON object"),
    "special_tokens_map": ("special_tokens_map.json", '{"eos_token": 5}', "eos_token must be"),
    "added_tokens": ("added_tokens.json", '{"<z>": "x"}', "must be a token id"),
    "generation_config": ("generation_config.json", '{"do_sample": true, "temperature": "hot"}', "temperature must be"),
    "generation_config, cut off": ("generation_config.json", '{"do_sample"', "not valid JSON"),
    "template": ("chat_template.jinja", b"\xff", "not UTF-8"),
    "template in the config": ("tokenizer_config.json", '{"chat_template": 5}', "chat_template must be"),
    "processor": ("preprocessor_config.json", "{", "not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    name, content, said = BROKEN[case]
    folder = source(tmp_path)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for call in (api.predict, api.quantize):
        with pytest.raises(CheckpointError, match=rf"{name}: .*{said}[\s\S]*mend or download"):
            call(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_every_broken_file_is_listed(tmp_path: Path) -> None:
    folder = source(tmp_path, eos_token=7)
    (folder / "generation_config.json").write_text('{"top_k": "many"}')
    (folder / "processor_config.json").write_text("x")
    with pytest.raises(CheckpointError) as caught:
        api.predict(folder, tmp_path / "out")
    for said in ("eos_token must be", "top_k must be", "processor_config.json: "):
        assert str(caught.value).count(said) == 1


def test_whole_files_are_copied_and_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    folder = source(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "num_beams": 2}))
    report = api.quantize(folder, tmp_path / "out", progress=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert not any("tokenizer.json" in note for note in report.notes)
    (folder / "tokenizer.json").unlink()
    report = api.quantize(folder, tmp_path / "without", progress=False)
    assert any("there is no tokenizer.json" in note for note in report.notes)
