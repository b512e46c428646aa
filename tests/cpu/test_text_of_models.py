"""Text and sampling of whole models, through the Python interface and the commands."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from tiny import VOCAB, save_model

import isobit
from isobit.cli.main import main
from isobit.errors import CheckpointError, CheckpointWarning, IsobitError, UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def test_python_takes_what_the_model_asks_for_and_options_win(model: Path) -> None:
    edit(model / "generation_config.json", do_sample=True, temperature=0.9, top_k=0, max_new_tokens=9)
    loaded = isobit.load(model)
    assert loaded.sampling == {"temperature": 0.9, "max_tokens": 9}
    drawn = {loaded.generate("ab", ignore_eos=True).token_ids for _ in range(4)}
    assert len(drawn) > 1 and {len(ids) for ids in drawn} == {9}
    greedy = {loaded.generate("ab", temperature=0, ignore_eos=True, max_tokens=4).token_ids for _ in range(3)}
    assert len(greedy) == 1 and {len(ids) for ids in greedy} == {4}
    with pytest.raises(UsageError, match="temperature must be"):
        loaded.generate("ab", temperature="hot")


def test_tokens_that_the_model_lacks_are_warned_of_and_refused_by_name(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(
        model / "tokenizer_config.json", eos_token="<|im_end|>", additional_special_tokens=[f"<{i}>" for i in range(60)]
    )
    first = 257  # the tokenizer has an end-of-text token and one for each byte
    with pytest.warns(CheckpointWarning, match=f"the model has {VOCAB} tokens, so prompts with these"):
        loaded = isobit.load(model)
    assert loaded.tokenizer.encode("<|im_end|><0>") == [first, first + 1]
    assert loaded.generate("<0>", max_tokens=1).usage.prompt_tokens == 1
    beyond = loaded.tokenizer.encode("<59>")[0]
    assert beyond == first + 60 >= VOCAB
    with pytest.raises(
        UsageError, match=rf"token id {beyond} \('<59>', which the tokenizer knows and the model does not"
    ):
        loaded.generate("a<59>")
    assert main(["generate", str(model), "a<59>"]) == 2
    assert f"token id {beyond} ('<59>'" in capsys.readouterr().err


def test_a_model_that_nothing_can_end_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "generation_config.json"):
        edit(model / name, eos_token_id=VOCAB + 7)
    edit(model / "tokenizer_config.json", eos_token=None)
    assert main(["generate", str(model), "a", "--max-tokens", "2", "--json"]) == 0
    captured = capsys.readouterr()
    (note,) = json.loads(captured.out)["notes"]
    assert f"cannot write its end-of-text token ({VOCAB + 7})" in note and note in captured.err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {}}}'),
        ("tokenizer_config.json", '{"bos_token": "\\ud800"}'),
        ("generation_config.json", '{"temperature": "hot"}'),
        ("added_tokens.json", '{"<z>": null}'),
        ("special_tokens_map.json", "[]"),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_every_command_that_reads_text_names_the_broken_file(
    name: str, content: str | bytes, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for words in (
        ["generate", str(model), "x"],
        ["chat", str(model)],
        ["eval", str(model)],
        ["quantize", str(model), "-s", "int8", "-o", str(tmp_path / "out")],
    ):
        assert main(words) == 2, words
        assert f"{name}: " in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=name):
        isobit.load(model)


def test_a_measurement_says_which_ids_it_is_of(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(
        model / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        added_tokens_decoder={"999": {"content": "<t>"}},
    )
    edit(model / "generation_config.json", num_beams=4)  # no matter here: nothing is generated
    assert main(["eval", str(model), "--tokens", "600", "--json"]) == 0
    captured = capsys.readouterr()
    (note,) = json.loads(captured.out)["notes"]
    assert "'<t>' is listed as 999 and is 257" in note and note in captured.err


def test_a_whole_model_gives_no_notes(model: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isobit.load(model).notes == ()


def test_calibration_knows_the_added_tokens_too(model: Path, tmp_path: Path) -> None:
    """Static scales are measured on the ids that the model will meet: a token of the config is one token there, too."""
    edit(model / "tokenizer_config.json", additional_special_tokens=[f"<{i}>" for i in range(60)])
    text = tmp_path / "text"
    text.write_text("a<59>b " * 50)
    with pytest.raises(IsobitError, match="beyond the model's vocabulary"):
        isobit.quantize(model, tmp_path / "out", "fp8-static", calibration=text, progress=False)
    assert not (tmp_path / "out").exists()  # nothing of it stands in the way of the next attempt
    text.write_text("a<5>b " * 50)
    isobit.quantize(model, tmp_path / "out", "fp8-static", calibration=text, progress=False)
