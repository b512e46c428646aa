"""The bundled model: its size, shape and tokenizer, and that it has learned what its results file says."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from isobit.bundled import heldout_path, model_path

RESULTS = Path(__file__).resolve().parents[2] / "training" / "results.csv"
MAX_BYTES = 24_000_000
HOSTILE = [
    "",
    " ",
    "\x00\x01\x7f\x1b[0m",
    "\r\n\r\r\n\t \t\n   \n\n\n",
    "\u00a0\u2028\u2029\ufeff\u200b\u0085",
    "e\u0301 \u00e9 \U0001f469\u200d\U0001f4bb \U0010ffff \ud7ff",
    "١٢٣ ⅷ ² 1234567890.12e-7",
    "__init__ _x __ ___y_1 a_b_c __ä",
    "<|endoftext|>" * 3 + "<|end" + "oftext|>" + "<|pad|>",
    "\t\tif x:\n\t    return  y   # mixed\n",
    bytes(range(256)).decode("latin-1"),
    "".join(map(chr, range(0x300, 0x340))),
    "a" * 5000 + " " * 5000 + "\n" * 500 + "(" * 500,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_path() / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()


def test_it_is_found_without_torch() -> None:
    code = "import sys, isobit.bundled as b; assert b.model_path().is_dir(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_size_limits() -> None:
    files = sorted(p.name for p in model_path().iterdir())
    expected = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert set(expected) <= set(files)
    assert sum(p.stat().st_size for p in model_path().iterdir()) <= MAX_BYTES
    assert 200_000 <= heldout_path().stat().st_size <= 300_000


def test_heldout_text_names_its_source_and_licence() -> None:
    header = heldout_path().read_text("utf-8")[:600]
    assert "Python Software Foundation" in header and "PSF-2.0" in header


def test_weights_are_finite_bf16_and_tied() -> None:
    config = json.loads((model_path() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True and config["dtype"] == "bfloat16"
    with safe_open(str(model_path() / "model.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
        assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
        for name in names:
            weight = file.get_tensor(name)
            assert weight.dtype == torch.bfloat16, name
            assert weight.isfinite().all(), name
            if weight.dim() == 2:
                # Groups of 128 (int4) and of 40 (int3) must both divide the rows.
                assert weight.shape[1] % 640 == 0, name
                assert weight.float().std() > 1e-3, name


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_tokenizer_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert all(0 <= i < 4096 for i in ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_matches_transformers_and_keeps_the_heldout_text(tokenizer: Tokenizer) -> None:
    text = heldout_path().read_text("utf-8")
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert len(text) / len(ids) > 2.8
    theirs = AutoTokenizer.from_pretrained(model_path())
    assert theirs(text[:20_000])["input_ids"] == tokenizer.encode(text[:20_000]).ids
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 1)
    assert len(theirs) == 4096


def test_a_prompt_may_end_after_indentation(tokenizer: Tokenizer) -> None:
    prompt = "class A:\n    def f(self):\n        "
    ids = tokenizer.encode(prompt).ids
    assert tokenizer.encode(prompt + "return 1").ids[: len(ids)] == ids


def test_transformers_ties_the_output_to_the_embeddings(model: PreTrainedModel) -> None:
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert sum(p.numel() for p in model.parameters()) < 12_000_000
    assert model.config.rope_parameters["rope_theta"] == 10000.0


def measured() -> dict[str, float]:
    with RESULTS.open() as table:
        return {row["model"]: float(row["nll"]) for row in csv.DictReader(table)}


def test_results_put_the_model_well_below_the_trigram() -> None:
    results = measured()
    trigrams = [nll for name, nll in results.items() if "trigram" in name]
    assert trigrams and math.exp(results["bundled model"]) < 0.8 * math.exp(trigrams[0])


def test_heldout_perplexity_of_slices(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    ids = torch.tensor(tokenizer.encode(heldout_path().read_text("utf-8")).ids)
    length = model.config.max_position_embeddings
    windows = torch.stack([ids[start : start + length] for start in range(0, len(ids) - length, len(ids) // 7)])
    with torch.inference_mode():
        logits = model(windows).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    # As the results file was measured: only tokens with at least half a window before them. Seven windows out of 94
    # scatter by about 0.15 nats.
    counted = losses.view(len(windows), -1)[:, length // 2 :]
    assert float(counted.mean()) < measured()["bundled model"] + 0.2


def test_a_simple_completion_is_sane(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    prompt = "class Person:\n    def __init__(self, name):\n        self."
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :].tolist()).lstrip("_").startswith("name")
