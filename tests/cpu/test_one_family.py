"""An invented family is one file and its line in the table, in a copy of the sources: it is planned, run and quantized.

Its layer is none that isobit has: norms behind attention and MLP alone, under names of their own, a norm over each
head, scores scaled by a key of its own, GELU with biases, and a window on all layers but every third. What it computes
is written out again below in plain PyTorch, from the stored weights.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tokenizer
from torch import Tensor

SOURCES = Path(__file__).parents[2] / "src" / "isobit"

FAMILY = '''
"""Invented: norms behind attention and MLP, and none in front of them."""

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    every = fields.integer("full_attention_every", 3)
    windows = read_windows(fields, enabled=True, default_window=64, windowed=lambda layer: (layer + 1) % every != 0)
    style = Style(
        norms=Norms(None, "attention_out_norm", None, "mlp_out_norm"),
        qk_norm="head",
        mlp_bias=True,
        activation="gelu_tanh",
        scale=fields.number("score_scale"),
        embedding_factor="root",
    )
    return read_common(fields, "invented", Common(tied=True), style, windows)


def tiny() -> dict[str, object]:
    return {}
'''
TABLE, LINE = "ARCHS: dict[str, str] = {\n", '    "InventedForCausalLM": "invented",\n'

HIDDEN, INNER, HEADS, KV_HEADS, DIM, LAYERS, VOCAB, WINDOW, EPS = 64, 96, 4, 2, 32, 4, 300, 5, 1e-5
CONFIG = {
    "architectures": ["InventedForCausalLM"], "model_type": "invented", "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM,
    "intermediate_size": INNER, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": EPS, "rope_theta": 1000.0,
    "sliding_window": WINDOW, "full_attention_every": 3, "score_scale": 0.25, "max_position_embeddings": 128,
    "dtype": "float32",
}  # fmt: skip

# What the copy is asked for, through the Python interface: tokens with their logprobs and those of the likeliest.
PROGRAM = """
import json, sys
import isobit
folder, prompt = sys.argv[1], json.loads(sys.argv[2])
answer = isobit.load(folder).generate(prompt, max_tokens=14, temperature=3.0, seed=1, ignore_eos=True, logprobs=5)
print(json.dumps([[one.id, [[one.id, one.logprob], *one.top]] for one in answer.logprobs]))
"""
PROMPT = [7, 200, 31, 31, 250, 3, 90, 11, 128]


def weights() -> dict[str, Tensor]:
    """Random weights by name; the head is the embedding."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    found = {"model.embed_tokens.weight": random(VOCAB, HIDDEN), "model.norm.weight": 1 + random(HIDDEN)}
    for layer in range(LAYERS):
        part = f"model.layers.{layer}"
        for name, rows, columns in (
            ("q", HEADS * DIM, HIDDEN), ("k", KV_HEADS * DIM, HIDDEN), ("v", KV_HEADS * DIM, HIDDEN),
            ("o", HIDDEN, HEADS * DIM),
        ):  # fmt: skip
            found[f"{part}.self_attn.{name}_proj.weight"] = random(rows, columns)
        for name, rows, columns in (("gate", INNER, HIDDEN), ("up", INNER, HIDDEN), ("down", HIDDEN, INNER)):
            found[f"{part}.mlp.{name}_proj.weight"] = random(rows, columns)
            found[f"{part}.mlp.{name}_proj.bias"] = random(rows)
        for name, width in (("self_attn.q_norm", DIM), ("self_attn.k_norm", DIM)):
            found[f"{part}.{name}.weight"] = 1 + random(width)
        for name in ("attention_out_norm", "mlp_out_norm"):
            found[f"{part}.{name}.weight"] = 1 + random(HIDDEN)
    return found


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def turned(x: Tensor) -> Tensor:
    """Rotary embedding of ``[T, heads, DIM]`` by halves."""
    angles = torch.arange(len(x))[:, None] / 1000.0 ** (torch.arange(0, DIM, 2) / DIM)
    cos, sin = (part[:, None, :] for part in (angles.cos(), angles.sin()))
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def oracle(w: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Logprobs ``[T, VOCAB]`` of what follows each token, in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    x = w["model.embed_tokens.weight"][ids] * HIDDEN**0.5
    distance = torch.arange(len(ids))[:, None] - torch.arange(len(ids))[None, :]
    for layer in range(LAYERS):
        part = f"model.layers.{layer}"
        q, k, v = (
            (x @ w[f"{part}.self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, DIM)) for name in ("q", "k", "v")
        )
        q, k = (turned(rms(a, w[f"{part}.self_attn.{n}_norm.weight"])) for a, n in ((q, "q"), (k, "k")))
        k, v = (a.repeat_interleave(HEADS // KV_HEADS, 1) for a in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * CONFIG["score_scale"]
        hidden = (distance < 0) | ((distance >= WINDOW) if (layer + 1) % 3 else False)
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v).flatten(1)
        x = x + rms(mixed @ w[f"{part}.self_attn.o_proj.weight"].T, w[f"{part}.attention_out_norm.weight"])

        def linear(x: Tensor, name: str, part: str = part) -> Tensor:
            return x @ w[f"{part}.mlp.{name}_proj.weight"].T + w[f"{part}.mlp.{name}_proj.bias"]

        gate = torch.nn.functional.gelu(linear(x, "gate"), approximate="tanh")
        x = x + rms(linear(gate * linear(x, "up"), "down"), w[f"{part}.mlp_out_norm.weight"])
    return (rms(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T).log_softmax(-1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(SOURCES, root / "isobit", ignore=shutil.ignore_patterns("model", "heldout", "__pycache__", "cpp"))
    archs = root / "isobit" / "models" / "archs"
    (archs / "invented.py").write_text(FAMILY)
    table = (archs / "__init__.py").read_text(encoding="utf-8")
    assert table.count(TABLE) == 1
    (archs / "__init__.py").write_text(table.replace(TABLE, TABLE + LINE), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), weights())


def save(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_tokenizer(folder)
    return folder


def run(root: Path, *words: str | Path) -> str:
    known = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, *map(str, words)], env=known, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def assert_computes(root: Path, folder: Path, w: dict[str, Tensor], tolerance: float) -> None:
    """A prompt and the tokens behind it, one by one, have the oracle's logprobs."""
    said: list[Any] = json.loads(run(root, "-c", PROGRAM, folder, json.dumps(PROMPT)))
    tokens = [token for token, _ in said]
    right = oracle(w, PROMPT + tokens)[len(PROMPT) - 1 : -1]
    assert len(set(tokens)) > len(tokens) // 2
    for logprobs, (_, told) in zip(right, said, strict=True):
        assert len(told) == 6 and int(logprobs.argmax()) == told[1][0]
        for token, logprob in told:
            assert abs(float(logprobs[token]) - logprob) <= tolerance


def test_it_computes_what_it_says(root: Path, model: Path) -> None:
    assert_computes(root, model, weights(), 1e-4)


def test_it_is_planned(root: Path, model: Path) -> None:
    asked = ("-m", "isobit", "plan", model / "config.json", "--target", "sm_86,cpu-avx2", "--scheme", "bf16,fp8")
    found = json.loads(run(root, *asked, "--json"))
    assert found["model"]["parameters"] == sum(tensor.numel() for tensor in weights().values())
    assert {one["action"] for one in found["plans"]} <= {"native", "legalized"} and len(found["plans"]) == 4


def test_it_is_quantized_and_computes_what_was_stored(root: Path, tmp_path: Path) -> None:
    """From a checkpoint whose names begin with nothing, as exports of a base model have them."""
    bare, out = tmp_path / "bare", tmp_path / "fp8"
    bare.mkdir()
    save(bare, {name.removeprefix("model."): tensor for name, tensor in weights().items()})
    run(root, "-m", "isobit", "quantize", bare, "-o", out, "--scheme", "fp8-w8a16")
    stored = load_file(out / "model.safetensors")
    scales = {name.removesuffix("_scale"): stored.pop(name) for name in list(stored) if name.endswith("_scale")}
    assert set(stored) == set(weights())
    assert set(scales) == {name for name in stored if name.endswith("_proj.weight")}
    for name, scale in scales.items():
        stored[name] = stored[name].float() * scale.float()
    assert_computes(root, out, stored, 1e-4)
