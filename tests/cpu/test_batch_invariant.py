"""Batch-invariant models: the same bits alone, in any batch, in pieces, from the cache and computed again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import make_model, save
from tiny import save_model
from tokenizers_for_tests import byte_level, write_folder

import isobit
from isobit.cli.main import main
from isobit.engine import scoring
from isobit.engine.answer import Completion
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import Unsupported, UsageError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import SCHEMES, scheme
from isobit.kernels.cpu import formats as cpu_formats
from isobit.kernels.cpu import library as cpu_library
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

PROBLEM = cpu_library.problem()
ON_CPU = [
    name
    for name, row in SCHEMES.items()
    if not (row.weights and cpu_formats.unsupported(row.weights, row.activations)) and not row.needs_calibration
]
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "max_position_embeddings": 1024}
PARAMS = SamplingParams(max_tokens=24, logprobs=2, prompt_logprobs=2, ignore_eos=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("invariant")
    made = make_model("LlamaForCausalLM", tie_word_embeddings=False, num_attention_heads=4, head_dim=64, **SIZES)
    return save(made, root / "source")


@pytest.fixture(scope="module", params=ON_CPU)
def model(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    if PROBLEM:
        pytest.skip(PROBLEM)
    folder = tmp_path_factory.mktemp("one") / request.param
    name = {"int3": "int3-g32"}.get(request.param, request.param)  # whose groups fit these shapes
    quantize(source, folder, Policy(scheme(name), (Rule("layers.0.mlp", "keep"),)), progress=False)
    return load_model(folder, batch_invariant=True)


def prompts_for(vocabulary: int) -> list[list[int]]:
    numbers = random.Random(7)
    shared = [numbers.randrange(vocabulary) for _ in range(BLOCK + 3)]
    return [shared + [numbers.randrange(vocabulary) for _ in range(count)] for count in (1, 30, 9, 200)] + [[3, 4]]


def essence(found: Completion) -> object:
    return found.token_ids, found.logprobs, found.prompt_logprobs


def test_a_request_is_the_same_whatever_is_beside_it(model: Decoder, tokenizer: Tokenizer) -> None:
    prompts = prompts_for(model.config.vocab_size)
    alone = [essence(LLM(model, tokenizer, prefix_cache=False).generate([ids], PARAMS)[0]) for ids in prompts]
    assert list(map(essence, LLM(model, tokenizer).generate(prompts, PARAMS))) == alone, "in a batch"
    pieces = LLM(model, tokenizer, sequences=3, chunk=7)
    assert list(map(essence, pieces.generate(prompts, PARAMS))) == alone, "in pieces"
    crowded = LLM(model, tokenizer, sequences=5, chunk=90, cache_tokens=7 * BLOCK, prefix_cache=False)
    short = [*prompts[:3], prompts[4], prompts[1]]
    longer = replace(PARAMS, max_tokens=100)
    wanted = [essence(LLM(model, tokenizer).generate([ids], longer)[0]) for ids in short]
    assert list(map(essence, crowded.generate(short, longer))) == wanted, "computed again"
    assert crowded.engine.scheduler.preemptions > 0
    warm = LLM(model, tokenizer)
    plain = replace(PARAMS, prompt_logprobs=None)
    first = warm.generate(prompts, plain)
    again = warm.generate(prompts, plain)
    assert again[0].usage.cached_tokens == BLOCK
    for one, other in zip(first, again, strict=True):
        assert essence(one) == essence(other), "from the cache"


def test_what_cannot_be_had_is_refused_with_reasons(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not PROBLEM:
        with pytest.raises(Unsupported, match="bfloat16") as found:
            load_model(source, dtype="bfloat16", batch_invariant=True)
        assert any("depends on how many tokens come at once" in reason for reason in found.value.reasons)
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    with pytest.raises(Unsupported, match="reference") as found:
        load_model(source, batch_invariant=True)
    assert any("depends on how many tokens come at once" in reason for reason in found.value.reasons)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny") / "model")


def test_an_evaluation_is_batch_invariant_unless_somebody_says_otherwise(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if PROBLEM:
        pytest.skip(PROBLEM)
    for option, alike in (([], True), (["--batch-invariant"], True), (["--no-batch-invariant"], False)):
        assert main(["eval", str(tiny), "--tokens", "300", "--json", "-q", *option]) == 0
        shown = capsys.readouterr()
        found = json.loads(shown.out)["method"]
        assert found["paths"][0]["batch_invariant"] is alike
        assert found["command"].endswith(option[0] if option else "300")
        assert "batch invariance" not in shown.err


def test_where_an_evaluation_cannot_be_batch_invariant_it_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    found = isobit.evaluate(tiny, tokens=300)
    (note,) = (note for note in found.notes if "without batch invariance" in note)
    assert "depends on how many tokens come at once" in note
    assert not found.method.paths[0].batch_invariant
    with pytest.raises(Unsupported, match="depends on how many tokens come at once"):
        isobit.evaluate(tiny, tokens=300, batch_invariant=True)
    assert not [note for note in isobit.evaluate(tiny, tokens=300, batch_invariant=False).notes if "invariance" in note]


def test_from_the_command_line_and_from_python(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if PROBLEM:
        pytest.skip(PROBLEM)
    llm = isobit.LLM(tiny, batch_invariant=True)
    assert llm.model.place.alike and isobit.load(tiny, batch_invariant=True)
    asked = ["generate", str(tiny), "def f(", "--max-tokens", "4", "--ignore-eos", "--json"]
    assert main([*asked, "--batch-invariant"]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 4
    assert main([*asked, "--batch-invariant", "--dtype", "bfloat16"]) == 2
    assert "depends on how many tokens come at once" in capsys.readouterr().err
    with pytest.raises(UsageError, match="batch_invariant"):
        isobit.LLM(tiny, batch_invariant=1)  # type: ignore[arg-type]


@pytest.mark.slow
def test_gpu_kernels_give_a_token_the_same_bits_among_any_number_of_others() -> None:
    pytest.importorskip("triton")
    program = Path(__file__).with_name("interpreter_alike.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join((str(program.parent.parent), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name for name, *_ in results} >= {"int8", "int4", "fp8", "f16", "int3-g32", "fp8-w8a16"}
    for name, what, same in results:
        assert same, (name, what)


def test_gpu_products_of_pytorch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from isobit.kernels.gpu.bind import bind
    from isobit.kernels.gpu.machine import Machine
    from isobit.targets.table import target

    bound = bind(torch.zeros(64, 64), None, None, None, machine=Machine.imagined(target("sm_86")), alike=True)
    with pytest.raises(Unsupported, match="compute in bfloat16 or float16"):
        bound.variant(1, torch.float32)
    rows = {bound.variant(tokens, torch.float16) for tokens in (1, 8, 17, 5000)}
    assert len(rows) == 1 and not next(iter(rows)).library  # type: ignore[union-attr]


def test_a_mixture_s_prompts_are_the_same_in_steps_of_any_length(tmp_path: Path, tokenizer: Tokenizer) -> None:
    if PROBLEM:
        pytest.skip(PROBLEM)
    made = make_model("Qwen3MoeForCausalLM", max_position_embeddings=1024)
    source = save(made, tmp_path / "source")
    quantize(source, tmp_path / "fp8", Policy(scheme("fp8")), progress=False)
    model = load_model(tmp_path / "fp8", batch_invariant=True)
    numbers = random.Random(3)
    prompts = [[numbers.randrange(model.config.vocab_size) for _ in range(count)] for count in (240, 500, 130, 300)]
    params = replace(PARAMS, max_tokens=4)
    wanted = [essence(LLM(model, tokenizer).generate([ids], params)[0]) for ids in prompts]
    for chunk, wide, longest in (
        (31, None, 64),
        (640, 2000, 640),
        (None, 1000, 1000),
        (None, 700, 700),
        (None, None, 512),
    ):
        llm = LLM(model, tokenizer, chunk=chunk, wide=wide)
        assert list(map(essence, llm.generate(prompts, params))) == wanted, (chunk, wide)
        assert llm.engine.scheduler.wide == longest, "the steps that many tokens are fed in"


def test_a_mixture_s_scores_are_the_same_in_pieces_of_any_length(tmp_path: Path) -> None:
    """`isobit eval` reads in pieces of the usual size and a server in the plan's: that moves no bit of a score."""
    folder = save(make_model("Qwen3MoeForCausalLM", max_position_embeddings=512), tmp_path / "m")
    model = load_model(folder, batch_invariant=True)
    texts = [([(7 * place + 3 * text) % 300 for place in range(200)], 1) for text in range(4)]

    def scored(chunk: int) -> dict[tuple[int, int], torch.Tensor]:
        found = {}
        for rows in scoring.read([model], texts, longest=200, chunk=chunk):
            for number, place, logits in zip(rows.sequences, rows.places, rows.logits[0], strict=True):
                found[int(number), int(place)] = logits.clone()
        return found

    wanted = scored(1000)
    assert len(wanted) == 4 * 199
    for chunk in (37, 256):
        assert all(torch.equal(logits, wanted[place]) for place, logits in scored(chunk).items()), chunk
