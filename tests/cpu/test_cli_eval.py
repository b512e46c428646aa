"""`isobit eval` on tiny models: its numbers, its errors, its JSON and its report."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from isobit.api import default_name
from isobit.checkpoint.reader import Checkpoint
from isobit.cli.evaluate import command_line
from isobit.cli.main import build_parser, main
from isobit.errors import UsageError
from isobit.evaluation import corpus, measure
from isobit.evaluation.layers import hidden_states, layer_errors
from isobit.evaluation.windows import windows
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

TEXT = "".join(f"def function_{i}(x):\n    return x * {i * i}\n\n" for i in range(60))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("models") / "source")


@pytest.fixture(scope="module")
def int4(source: Path) -> Path:
    target = source.parent / "source-int4"
    quantize(source, target, Policy(scheme("int4")), progress=False)
    return target


@pytest.fixture(scope="module")
def text(source: Path) -> Path:
    path = source.parent / "text.py"
    path.write_text(TEXT)
    return path


def evaluate(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main(["eval", *map(str, argv)])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_perplexity_alone_equals_transformers(source: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    status, out, _ = evaluate(capsys, source, "--text", text, "--ctx", 100, "--tokens", 0, "--json")
    assert status == 0
    found = json.loads(out)
    reference = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json")).encode(TEXT)
    total, count = 0.0, 0
    with torch.inference_mode():
        for begin in range(0, len(ids), 100):
            part = torch.tensor([ids[begin : begin + 100]])
            if part.shape[1] > 1:
                logp = torch.log_softmax(reference(part).logits[0, :-1].double(), dim=1)
                total -= float(logp.gather(1, part[0, 1:, None]).sum())
                count += part.shape[1] - 1
    assert found["likelihood"]["tokens"] == count
    assert found["likelihood"]["perplexity"]["value"] == pytest.approx(math.exp(total / count), rel=1e-4)
    bits = total / count / math.log(2) / (len(TEXT.encode()) / len(ids))
    assert found["likelihood"]["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-4)
    assert found["fidelity"] is None


def test_what_quantize_says_to_do_next_can_be_done(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "a source"
    named.symlink_to(source)
    assert main(["quantize", str(named), "--scheme", "int8", "--out", str(tmp_path / "an int8"), "-q"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(line.removeprefix("Next: isobit ").split(", or isobit")[0])
    assert words == ["eval", str(tmp_path / "an int8"), "--against", str(named)]
    assert main([*words, "--text", str(text), "--ctx", "64", "--tokens", "200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fidelity"]


def test_nothing_is_said_to_be_next_that_needs_a_tokenizer_where_there_is_none(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    out = tmp_path / "int8"
    assert main(["quantize", str(bare), "--scheme", "int8", "--out", str(out), "-q"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"Next: isobit plan {out}; with a tokenizer.json in it") and "--against" not in line
    assert main(line.removeprefix("Next: isobit ").split(";")[0].split()) == 0


def test_against_its_source_a_quantized_model_loses_something(
    source: Path, int4: Path, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    status, out, err = evaluate(
        capsys, int4, "--against", source, "--text", text, "--ctx", 64, "--tokens", 600, "--report", page, "--json"
    )
    assert status == 0
    assert "measured 10 windows" in err
    found = json.loads(out)["fidelity"]
    assert found["windows"] == 10 and found["tokens"] == 630
    assert (
        1e-4 < found["kl_mean"]["low"] < found["kl_mean"]["value"] < found["kl_mean"]["high"] < found["kl_p99"]["value"]
    )
    assert 0.3 < found["top1"]["value"] < 1
    errors = json.loads(out)["layer_errors"]
    assert errors[0] == 0 and 0 < errors[1] < 1 and len(errors) == 1 + tiny.LAYERS
    assert "source-int4: what it keeps of source" in page.read_text()
    assert "Error by layer" in page.read_text()


def test_a_model_against_itself_loses_nothing(source: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = evaluate(capsys, source, "--against", source, "--text", text, "--tokens", 500, "-q", "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["fidelity"]["kl_mean"]["value"], found["fidelity"]["top1"]["value"]) == (0.0, 1.0)
    assert set(found["layer_errors"]) == {0.0}


def test_the_plain_output_names_every_number(
    source: Path, int4: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, err = evaluate(capsys, int4, "--against", source, "--text", text, "--ctx", 64, "--tokens", 300, "-q")
    for name in ("perplexity", "bits per byte", "perplexity ratio", "KL mean", "KL p99", "top-1 agreement", "95 %:"):
        assert name in out
    assert err == ""
    _, out, _ = evaluate(capsys, source, "--text", text, "--ctx", 256, "--tokens", 100, "-q")
    assert "no confidence intervals" in out and "--against" in out


def test_the_held_out_text_is_the_default(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = evaluate(capsys, source, "--tokens", 512, "-q", "--json")
    assert json.loads(out)["method"]["text"] == corpus.HELDOUT_NAME


# ---------------------------------------------------------------------- what can't be measured


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "5 tokens; at least 64"),
        (b"caf\xe9" * 50, "not UTF-8 (byte 3 is 0xe9)"),
        (b"  \n", "the text is empty"),
    ],
)
def test_texts_that_cannot_be_used(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    status, out, err = evaluate(capsys, source, "--text", tmp_path / "t.txt")
    assert (status, out) == (2, "")
    assert message in err and "t.txt" in err


def test_options_that_cannot_be_used(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (("--text", tmp_path / "none"), "cannot be read: No such file"),
        (("--text", text, "--ctx", 1000), "context of 1000 tokens is more than source can read: at most 256"),
        (("--text", text, "--ctx", 1), "context of 1 tokens scores nothing"),
        (("--text", text, "--ctx", 64, "--stride", 65), "stride 65"),
        (("--text", text, "--tokens", -3), "-3 tokens to score"),
        (("--report", tmp_path / "r.html"), "--report compares a model with its source"),
        (("--against", source, "--report", tmp_path / "r.pdf"), "(FILE.html) or Markdown (FILE.md)"),
        (("--against", source, "--report", tmp_path / "report"), "(FILE.html) or Markdown (FILE.md)"),
        (("--against", source, "--report", tmp_path / "no" / "r.html"), "does not exist"),
        (("--against", source, "--report", tmp_path), "this is a folder"),
        (("--against", source, "--report", source / "config.json"), "this file is there and is no report"),
        (("--against", source, "--report", source / "model.safetensors"), "this file is there and is no report"),
    ):
        status, out, err = evaluate(capsys, source, *options)
        assert (status, out) == (2, ""), options
        assert message in err, options


def test_models_with_other_tokens_are_not_compared(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.save_model(tmp_path / "other")
    tiny.save_tokenizer(other, reverse=True)
    status, _, err = evaluate(capsys, source, "--against", other, "--text", text)
    assert status == 2
    assert "source and other split text.py into different tokens" in err
    wider = tiny.save_model(tmp_path / "wider", vocab=320)
    status, _, err = evaluate(capsys, source, "--against", wider, "--text", text)
    assert status == 2
    assert "source has a vocabulary of 300 tokens and wider one of 320" in err


def change(folder: Path, **tensors: torch.Tensor) -> Path:
    """Replaces tensors of a checkpoint; underscores of a name that is an argument stand for its dots."""
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    assert set(tensors) <= set(held)
    save_file(held | tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_models_of_other_depth_are_compared_but_not_layer_by_layer(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shallow = tiny.save_model(tmp_path / "shallow")
    config = json.loads((shallow / "config.json").read_text())
    (shallow / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    from safetensors.torch import load_file, save_file

    held = load_file(shallow / "model.safetensors")
    save_file({name: t for name, t in held.items() if ".layers.1." not in name}, shallow / "model.safetensors")
    (tmp_path / "r.html").write_text("<!doctype html>\n<p>an older one, which is replaced")
    options = ("--text", text, "--ctx", 64, "--tokens", 300, "-q", "--report", tmp_path / "r.html", "--json")
    status, out, err = evaluate(capsys, shallow, "--against", source, *options)
    assert status == 0, err
    found = json.loads(out)
    assert found["fidelity"]["kl_mean"]["value"] > 0.1 and found["layer_errors"] == []
    assert "error by layer: not measured, for source has 2 layers of width 640 and shallow has 1 layers" in err
    page = (tmp_path / "r.html").read_text()
    assert "Error by layer" not in page and "older one" not in page
    assert found["method"]["layer_tokens"] == 0


def test_what_a_model_cannot_read_is_refused(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = tiny.save_model(tmp_path / "fewer", vocab=100)  # the tokenizer has 257 tokens
    status, out, err = evaluate(capsys, fewer, "--text", text, "-q")
    assert (status, out) == (2, "")
    assert "tokenizer" in err and "fewer" in err and "100" in err
    short = tiny.save_model(tmp_path / "short", context=32)
    status, out, err = evaluate(capsys, source, "--against", short, "--text", text, "--ctx", 64, "-q")
    assert (status, out) == (2, "")
    assert "context of 64 tokens is more than short can read: at most 32" in err


def test_a_text_of_single_tokens_scores_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    for number in range(70):
        (tmp_path / "text" / f"{number:02}").write_text("x")
    status, out, err = evaluate(capsys, source, "--text", tmp_path / "text")
    assert (status, out) == (2, "")
    assert "none of its files has two tokens" in err


@pytest.mark.parametrize(
    ("scale", "words"), [(3e38, "the likelihood is NaN or infinite for"), (1e6, "the likelihood is too low for a")]
)
def test_a_model_whose_outputs_are_useless_is_called_by_its_name(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float, words: str
) -> None:
    broken = tiny.save_model(tmp_path / "broken")
    change(broken, **{"model.norm.weight": torch.full((tiny.HIDDEN,), scale).bfloat16()})
    for options in ((), ("--against", source)):
        status, out, err = evaluate(capsys, broken, "--text", text, "--tokens", 300, "-q", *options)
        assert (status, out) == (2, "")
        assert f"broken: {words}" in err


def test_a_model_that_gives_nan_is_refused(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tiny.save_model(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    status, out, err = evaluate(capsys, broken, "--against", source, "--text", text, "-q")
    assert (status, out) == (2, "")
    assert "NaN" in err


# ---------------------------------------------------------------------- parts


def test_no_window_reaches_from_one_file_into_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.txt").write_text("b" * 100)

    class Letters:
        def encode(self, text: str, add_special: bool = True) -> list[int]:
            return [0] * add_special + [ord(letter) for letter in text]

    found = corpus.sample(corpus.read_corpus(tmp_path), Letters(), 40)
    assert all(len(set(window.ids) - {0}) == 1 for window in found.windows)
    assert sum(window.num_scored for window in found.windows) == 202 - 6
    assert (found.text_tokens, found.bytes_per_token) == (202, 1.0)


def test_hidden_states_are_those_of_transformers(source: Path) -> None:
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = torch.arange(1, 40)
    states = hidden_states(load_model(source), ids)
    with torch.inference_mode():
        expected = reference(ids[None], output_hidden_states=True).hidden_states
    assert len(states) == 1 + tiny.LAYERS
    for mine, theirs in zip(states[:-1], expected[:-1], strict=True):  # theirs of the last layer is after the norm
        assert torch.allclose(mine, theirs[0], atol=1e-4)


def test_layer_errors_follow_their_definition(source: Path, int4: Path) -> None:
    one, two = load_model(source), load_model(int4)
    chosen = windows(list(range(1, 121)), 40)
    (errors,) = layer_errors(one, [two], chosen)
    for k, error in enumerate(errors):
        a = torch.cat([hidden_states(one, torch.tensor(w.ids))[k] for w in chosen]).double()
        b = torch.cat([hidden_states(two, torch.tensor(w.ids))[k] for w in chosen]).double()
        assert error == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-9)


def test_the_command_line_of_the_report_measures_the_same_again() -> None:
    argv = ["eval", "my model", "--against", "org/name", "--ctx", "64", "--tokens", "0", "--seed", "3", "-q"]
    shown = command_line(build_parser().parse_args(argv))
    assert shown == "isobit eval 'my model' --against org/name --ctx 64 --tokens 0 --seed 3"


def test_names_of_models() -> None:
    assert default_name("org/model") == "model"
    assert default_name("./a/b/") == "b"
    assert default_name(".") == Path.cwd().name


def test_subjects_know_their_checkpoint(int4: Path) -> None:
    subject = measure.load_subject(int4)
    assert subject.name == "source-int4"
    assert subject.info.parameters == sum(t.numel() for t in _source_tensors(int4.parent / "source"))
    with pytest.raises(UsageError, match="at most 256"):
        measure.choose_ctx(subject, 257)
    assert measure.choose_ctx(subject, None) == 256


def _source_tensors(path: Path) -> list[torch.Tensor]:
    checkpoint = Checkpoint.open(path)
    return [checkpoint.read(name) for name in checkpoint.tensors]
