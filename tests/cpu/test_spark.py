"""Spark: refused with what is known and what is missing, until tensors show its ancestor's model, which is computed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import save_tokenizer
from torch import Tensor
from torch.nn import functional as F

from isobit import api
from isobit.checkpoint.reader import Checkpoint
from isobit.cli.main import main
from isobit.errors import CheckpointError, CheckpointWarning, ModelError
from isobit.models.archs import model_config
from isobit.models.contents import contents

HIDDEN, HEADS, KV, SIZE, VOCAB, LAYERS = 64, 4, 2, 96, 300, 2
CONFIG: dict[str, Any] = {
    "architectures": ["IFlytekSparkForCausalLM"], "model_type": "iflytekspark", "hidden_act": "gelu_gate",
    "hidden_size": HIDDEN, "intermediate_size": SIZE, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "num_key_value_heads": HEADS, "max_position_embeddings": 128, "layer_norm_eps": 1e-5, "rope_theta": 1000000.0,
    "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float32", "attention_bias": True,
    "vocab_size": VOCAB, "gated_linear_unit": True, "bos_token_id": 1, "eos_token_id": 5, "pretraining_tp": 1,
    "initializer_range": 0.02, "use_cache": True, "_name_or_path": None, "transformers_version": "4.40.0.dev0",
}  # fmt: skip
# As a sibling of X1 is said to be: RMSNorms, no biases, fewer key-value heads, and no fused matrix.
PLAIN = {key: value for key, value in CONFIG.items() if key not in ("layer_norm_eps", "gated_linear_unit")} | {
    "architectures": ["SparkForCausalLM"], "model_type": "spark", "rms_norm_eps": 1e-6, "num_key_value_heads": KV,
    "attention_bias": False, "auto_map": {"AutoModelForCausalLM": "modeling_spark.SparkForCausalLM"},
}  # fmt: skip


def tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random ones, by the names of the ancestor's conversion, or by usual ones."""
    generator = torch.Generator().manual_seed(4)
    old = "layer_norm_eps" in config

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * (1.5 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.3)

    def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {f"{name}.weight": random(rows, columns)} | ({f"{name}.bias": random(rows)} if old else {})

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + random(HIDDEN)} | ({f"{name}.bias": random(HIDDEN)} if old else {})

    keys = config["num_key_value_heads"] * (HIDDEN // HEADS)
    found = {"model.embed_tokens.weight": random(VOCAB, HIDDEN), "lm_head.weight": random(VOCAB, HIDDEN)} | norm(
        "model.norm"
    )
    for at in range(LAYERS):
        front = f"model.layers.{at}"
        found |= norm(f"{front}.input_layernorm") | norm(f"{front}.post_attention_layernorm")
        for one, rows in (("q", HIDDEN), ("k", keys), ("v", keys)):
            found |= linear(f"{front}.self_attn.{one}_proj", rows, HIDDEN)
        if old:
            found |= linear(f"{front}.self_attn.dense", HIDDEN, HIDDEN) | linear(
                f"{front}.mlp.dense_h_to_4h", 2 * SIZE, HIDDEN
            )
            found |= linear(f"{front}.mlp.dense_4h_to_h", HIDDEN, SIZE)
        else:
            found |= linear(f"{front}.self_attn.o_proj", HIDDEN, HIDDEN) | linear(
                f"{front}.mlp.down_proj", HIDDEN, SIZE
            )
            found |= linear(f"{front}.mlp.gate_proj", SIZE, HIDDEN) | linear(f"{front}.mlp.up_proj", SIZE, HIDDEN)
    return found


def save(folder: Path, config: dict[str, Any], found: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(config) if found is None else found, folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(folder)
    return folder


def logits(config: dict[str, Any], w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """What the description says, in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    old, dim, kv = "layer_norm_eps" in config, HIDDEN // HEADS, config["num_key_value_heads"]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        if old:
            return F.layer_norm(x, (HIDDEN,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    angles = torch.arange(len(ids)).double()[:, None] * 1e6 ** -(torch.arange(0, dim, 2).double() / dim)

    def turned(x: Tensor) -> Tensor:
        left, right = x[..., : dim // 2], x[..., dim // 2 :]
        return torch.cat((left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()), -1)

    x = w["model.embed_tokens.weight"][ids]
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    if window := config.get("sparse_local_size"):
        mask &= ~torch.ones_like(mask).tril(-window)
    for at in range(LAYERS):
        front = f"model.layers.{at}"
        h = norm(f"{front}.input_layernorm", x)
        q, k, v = (linear(f"{front}.self_attn.{one}_proj", h).unflatten(1, (-1, dim)).transpose(0, 1) for one in "qkv")
        k, v = (one.repeat_interleave(HEADS // kv, 0) for one in (turned(k), v))
        mixed = F.scaled_dot_product_attention(turned(q), k, v, attn_mask=mask).transpose(0, 1).flatten(1)
        x = x + linear(f"{front}.self_attn.{'dense' if old else 'o_proj'}", mixed)
        h = norm(f"{front}.post_attention_layernorm", x)
        if old:
            gate, up = linear(f"{front}.mlp.dense_h_to_4h", h).chunk(2, -1)
        else:
            gate, up = linear(f"{front}.mlp.gate_proj", h), linear(f"{front}.mlp.up_proj", h)
        down = "dense_4h_to_h" if old else "down_proj"
        x = x + linear(f"{front}.mlp.{down}", F.gelu(gate, approximate="tanh") * up)
    return linear("lm_head", norm("model.norm", x))


@pytest.mark.parametrize(
    "config", [CONFIG, PLAIN, CONFIG | {"sparse_local_size": 5}], ids=["ancestor", "sibling", "window"]
)
def test_a_checkpoint_that_fits_computes_what_the_description_says(config: dict[str, Any], tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "m", config), torch.arange(3, 23) * 7 % VOCAB
    with pytest.warns(CheckpointWarning) as seen:
        model = api.load(folder)
    assert any("no checkpoint of it was ever compared" in str(one.message) for one in seen)
    found = model.generate(ids.tolist(), max_tokens=1, logprobs=5, prompt_logprobs=0)
    wanted = logits(config, tensors(config), ids)
    scores = wanted[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    got = torch.tensor([one.logprob for one in found.prompt_logprobs[1:]], dtype=torch.float64)
    assert (got - scores).abs().max() < 1e-4
    assert found.token_ids[0] == int(wanted[-1].argmax())


def test_float32_is_cast_where_that_is_asked_for(tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "m", CONFIG), torch.arange(3, 23) * 7 % VOCAB
    api.quantize(folder, tmp_path / "narrow", "bf16", progress=False)
    wide, narrow = (
        sum(file.stat().st_size for file in at.glob("*.safetensors")) for at in (folder, tmp_path / "narrow")
    )
    assert narrow < 0.6 * wide
    wanted = logits(CONFIG, tensors(CONFIG), ids)[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    for at in (folder, tmp_path / "narrow"):
        with pytest.warns(CheckpointWarning, match="ever compared"):
            model = api.load(at, dtype="bfloat16")
        found = model.generate(ids.tolist(), max_tokens=1, prompt_logprobs=0).prompt_logprobs
        got = torch.tensor([one.logprob for one in found[1:]], dtype=torch.float64)
        assert 1e-6 < (got - wanted).abs().mean() < 0.1


@pytest.mark.parametrize("scheme", ["int8", "fp8", "bf16"])
def test_it_is_quantized_and_read_again(scheme: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", CONFIG)
    api.quantize(folder, tmp_path / "q", scheme, progress=False)
    with pytest.warns(CheckpointWarning, match="ever compared"):
        model = api.load(tmp_path / "q")
    ids = (torch.arange(3, 23) * 7 % VOCAB).tolist()
    assert model.generate(ids, max_tokens=4).token_ids
    work, _ = api.plan(str(tmp_path / "q"))
    assert "spark" in work.title


KNOWN, MISSING = "about 7.5 billion parameters", "the names of its tensors"


@pytest.mark.parametrize("more", [{}, {"architectures": ["SparkModel"]}, {"architectures": None}])
def test_a_configuration_alone_is_refused_with_what_is_known(
    more: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {key: value for key, value in (PLAIN | more).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert (
        "no weights and no index of them" in said
        and KNOWN in said
        and MISSING in said
        and "isobit runs it once" in said
    )
    with pytest.raises(ModelError, match=KNOWN):
        api.plan(config)


def test_an_index_of_names_is_enough_to_plan_and_one_name_too_many_is_not(tmp_path: Path) -> None:
    names = [*tensors(PLAIN)]
    for surplus in ([], ["model.layers.1.self_attn.q_norm.weight"], ["model.layers.0.mlp.experts.0.up_proj.weight"]):
        folder = tmp_path / str(len(surplus) and surplus[0])
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(PLAIN))
        weight_map = dict.fromkeys([*names, *surplus], "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (folder / "model-00001-of-00001.safetensors").write_bytes(b"")
        if surplus:
            with pytest.raises(ModelError, match="has tensors that this family has not: .*(q_norm|experts)"):
                api.plan(str(folder))
        else:
            assert "spark" in api.plan(str(folder), schemes=["int8"])[0].title


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"head_gate": True}, "head_gate"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"attention_bias": False}, "the tensors say true"),
        ({"gated_linear_unit": False}, "gated_linear_unit"),
        ({"num_hidden_layers": 3}, "lacks tensors of this family: layers.2"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_experts": 4}, "num_experts"),
    ],
)
def test_a_key_that_is_not_known_keeps_it_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    config = {key: value for key, value in (CONFIG | change).items() if value is not None}
    folder = save(tmp_path / "m", config, tensors(CONFIG))
    for ask in (
        lambda: api.load(folder),
        lambda: api.plan(str(folder)),
        lambda: api.quantize(folder, tmp_path / "q", "int8"),
    ):
        with pytest.raises(ModelError, match=why) as error:
            ask()
        assert (
            "Not known" in str(error.value) or "the tensors say" in str(error.value) or "hidden_act" in str(error.value)
        )
    assert any(why in note or "does not run" in note for note in api.info(folder).notes)


@pytest.mark.parametrize(
    "stray",
    ["model.layers.0.self_attn.query_key_value.weight", "transformer.wpe.weight", "model.layers.2.mlp.x.weight"],
)
def test_a_tensor_that_is_not_known_keeps_it_refused(stray: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", CONFIG, tensors(CONFIG) | {stray: torch.zeros(2, 2)})
    with pytest.raises(ModelError, match="has tensors that this family has not"):
        contents(Checkpoint.open(folder))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    found = tensors(CONFIG) | {"model.layers.1.mlp.dense_h_to_4h.weight": torch.zeros(SIZE, HIDDEN)}
    with pytest.raises(CheckpointError, match="mlp.*has shape"):
        contents(Checkpoint.open(save(tmp_path / "m", CONFIG, found)))


def test_x2_5_is_another_family() -> None:
    with pytest.raises(ModelError, match="Spark-X2.5 .*SGLang and mlx-lm run it in bf16, llama.cpp in few bits"):
        model_config({"architectures": ["Spark2_5ForCausalLM"], "model_type": "spark2_5"})
