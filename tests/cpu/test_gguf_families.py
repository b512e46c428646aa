"""Families of GGUF files that came later: logits equal transformers', and what files leave open is asked about."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model, save, token_ids
from gguf import GGMLQuantizationType, quants
from gguf_converter import BEHIND, Rules, common_keys, convert, raw, written
from gguf_writer import Raw, gguf, write
from running import run

import isobit
from isobit.checkpoint.gguf.families import FAMILIES
from isobit.checkpoint.gguf.rope import llama3_factors
from isobit.checkpoint.gguf.wording import KEYS
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, IsobitError, Unsupported
from isobit.models.weights import load_model

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.8, "mscale_all_dim": 0.8}  # fmt: skip
WHOLE = {"sliding_window": None}


def nothing(config: Any) -> dict[str, Any]:
    return {}


def logit_scale(config: Any) -> dict[str, Any]:
    return {"logit_scale": config.logit_scale, "rope.scaling.type": "none"}


def of_latent(config: Any) -> dict[str, Any]:
    rope, nope, latent = config.qk_rope_head_dim, config.qk_nope_head_dim, config.kv_lora_rank
    return {
        "attention.head_count_kv": 1, "attention.q_lora_rank": config.q_lora_rank, "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope, "attention.value_length": latent, "rope.dimension_count": rope,
        "attention.key_length_mla": nope + rope, "attention.value_length_mla": config.v_head_dim,
        "rope.scaling.yarn_log_multiplier": 0.1 * config.rope_parameters["mscale_all_dim"],
        "expert_feed_forward_length": config.moe_intermediate_size, "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor, "leading_dense_block_count": config.first_k_dense_replace,
        "expert_group_count": config.n_group, "expert_group_used_count": config.topk_group,
    }  # fmt: skip


def of_v3(config: Any) -> dict[str, Any]:
    return of_latent(config) | {"expert_gating_func": 2, "expert_weights_norm": True}


def of_glm(config: Any) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config.moe_intermediate_size, "expert_shared_count": 1, "expert_gating_func": 2,
        "expert_weights_scale": config.routed_scaling_factor, "expert_weights_norm": True,
        "leading_dense_block_count": config.first_k_dense_replace, "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group, "nextn_predict_layers": 0,
    }  # fmt: skip


def of_ernie(config: Any) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config.moe_intermediate_size, "interleave_moe_layer_step": 1,
        "leading_dense_block_count": 1, "expert_shared_count": config.moe_num_shared_experts,
        "expert_shared_feed_forward_length": 77, "expert_used_count": config.moe_k,
        "expert_count": config.moe_num_experts,
    }  # fmt: skip


def of_hunyuan(config: Any) -> dict[str, Any]:
    rope, dims = config.rope_parameters, config.head_dim
    theta = rope["rope_theta"] * rope.get("alpha", 1.0) ** (dims / (dims - 2))
    return {"rope.freq_base": theta, "rope.scaling.type": "none", "rope.scaling.factor": 1.0,
            "rope.scaling.original_context_length": 262144}  # fmt: skip


def of_hunyuan_moe(config: Any) -> dict[str, Any]:
    size = config.intermediate_size
    return of_hunyuan(config) | {"expert_feed_forward_length": size, "expert_shared_feed_forward_length": size,
                                 "expert_shared_count": 1}  # fmt: skip


def of_granite(config: Any) -> dict[str, Any]:
    return {"attention.scale": config.attention_multiplier, "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier, "logit_scale": config.logits_scaling}  # fmt: skip


def of_llama4(config: Any) -> dict[str, Any]:
    return {"feed_forward_length": config.intermediate_size_mlp, "interleave_moe_layer_step": 2,
            "expert_feed_forward_length": config.intermediate_size}  # fmt: skip


def of_minimax(config: Any) -> dict[str, Any]:
    return {"expert_feed_forward_length": config.intermediate_size, "expert_gating_func": 2,
            "rope.dimension_count": 32}  # fmt: skip


def windows(config: Any) -> dict[str, Any]:
    near = tuple(one != "full_attention" for one in config.layer_types)
    return {"attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": near}


def of_cohere2(config: Any) -> dict[str, Any]:  # that every fourth layer sees everything is not said
    return logit_scale(config) | {"attention.sliding_window": config.sliding_window, "rope.dimension_count": 64}


def of_ministral(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    return {"rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
            "attention.temperature_scale": rope["llama_4_scaling_beta"]}  # fmt: skip


def of_nemotron(config: Any) -> dict[str, Any]:
    return {"rope.scaling.type": "none", "attention.layer_norm_rms_epsilon": config.norm_eps}


def sections(config: Any) -> dict[str, Any]:
    return {"rope.dimension_sections": (11, 11, 10, 0), "n_deepstack_layers": 3}


def of_qwen3vl_moe(config: Any) -> dict[str, Any]:
    return sections(config) | {"expert_feed_forward_length": config.moe_intermediate_size}


QWEN = {"use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
        "rope_parameters": None}  # fmt: skip
FIVE = [*(["sliding_attention"] * 3), "full_attention", "sliding_attention"]
CASES: dict[str, Rules] = {
    "arcee": Rules("ArceeForCausalLM", nothing, "arcee", turned=True),
    "command-r": Rules("CohereForCausalLM", logit_scale, "command-r"),
    "cohere2": Rules("Cohere2ForCausalLM", of_cohere2, "cohere2", {"num_hidden_layers": 5, "layer_types": FIVE}),
    "deepseek2": Rules("DeepseekV2ForCausalLM", of_latent, "deepseek2"),
    "deepseek3": Rules("DeepseekV3ForCausalLM", of_v3, "deepseek2", {"rope_parameters": YARN}),
    "ernie4_5-moe": Rules("Ernie4_5_MoeForCausalLM", of_ernie, "ernie4_5-moe",
                          parts={"mlp.gate.moe_statics": "exp_probs_b"}),
    "exaone4": Rules("Exaone4ForCausalLM", windows, "exaone4", parts=BEHIND),
    "chatglm": Rules("GlmForCausalLM", nothing, "chatglm"),
    "glm4moe": Rules("Glm4MoeForCausalLM", of_glm, "glm4moe",
                     parts={"post_attention_layernorm": "post_attention_norm"}),
    "granitemoe": Rules("GraniteMoeForCausalLM", of_granite, "granitemoe", turned=True),
    "hunyuan-dense": Rules("HunYuanDenseV1ForCausalLM", of_hunyuan, "hunyuan-dense"),
    "hunyuan-moe": Rules("HunYuanMoEV1ForCausalLM", of_hunyuan_moe, "hunyuan-moe"),
    "llama4": Rules("Llama4ForCausalLM", of_llama4, "llama4", {"attention_chunk_size": 8192, "floor_scale": 8192},
                    transposed=True),
    "minimax-m2": Rules("MiniMaxM2ForCausalLM", of_minimax, "minimax-m2"),
    "ministral3": Rules("Ministral3ForCausalLM", of_ministral, "mistral3", WHOLE, turned=True),
    "mistral3": Rules("MistralForCausalLM", nothing, "mistral3", WHOLE, turned=True),
    "nemotron": Rules("NemotronForCausalLM", of_nemotron, "nemotron", raised=1.0),
    "olmo3": Rules("Olmo3ForCausalLM", windows, "olmo2", parts=BEHIND),
    "olmoe": Rules("OlmoeForCausalLM", nothing, "olmoe"),
    "stablelm": Rules("StableLmForCausalLM", nothing, "stablelm"),
    "stablelm, one behind the other": Rules("StableLmForCausalLM", nothing, "stablelm",
                                            {"use_parallel_residual": False}),
    "qwen2vl": Rules("Qwen2ForCausalLM", sections, "qwen2vl", {"use_sliding_window": False}),
    "qwen3vl": Rules("Qwen3ForCausalLM", sections, "qwen3vl"),
    "qwen3vlmoe": Rules("Qwen3MoeForCausalLM", of_qwen3vl_moe, "qwen3vlmoe", QWEN),
    "starcoder2": Rules("Starcoder2ForCausalLM", nothing, "starcoder2", WHOLE),
}  # fmt: skip


# Keys of config.json that no key of a file's metadata says: they are the family's, or follow from tensors.
OF_NO_KEY = {
    "architectures", "model_type", "dtype", "tie_word_embeddings", "vocab_size", "rope_parameters", "rope_scaling",
    "full_attention", "sliding_attention", "hidden_act", "attention_bias", "mlp_bias", "use_bias", "use_qkv_bias",
    "use_qk_norm", "qk_layernorm", "use_parallel_residual", "use_sliding_window", "decoder_sparse_step",
    "mlp_only_layers", *(row.eps[0] for row in FAMILIES.values()),
}  # fmt: skip


def made(name: str) -> Any:
    rules = CASES[name]
    return make_model(rules.architecture, **rules.changes)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    model, ids = made(name), token_ids(100)
    path = convert(tmp_path / "m.gguf", model, CASES[name])
    assert float((run(load_model(path), ids) - model(ids).logits).abs().max()) < 1e-4
    config, own = Checkpoint.open(path).config, model.config.to_dict()
    assert config["architectures"] == [CASES[name].architecture]
    for key in ("hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "tie_word_embeddings"):
        assert config[key] == own[key], key
    sections = [config, config.get("rope_scaling") or {}, config.get("rope_parameters") or {}]
    unnamed = {key for section in sections for key in section} - KEYS.keys() - OF_NO_KEY
    assert not unnamed, f"what is said of {unnamed} names no key of the file (checkpoint/gguf/wording.py)"


@pytest.mark.parametrize("name", ["deepseek3", "llama4", "ernie4_5-moe"])
@torch.inference_mode()
def test_quantized_weights_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    """The same logits as a folder that holds the numbers which gguf dequantizes, keys of the latent transposed too."""
    model, ids, type = made(name), token_ids(40), GGMLQuantizationType.Q8_0

    def back(value: np.ndarray) -> np.ndarray:
        return quants.dequantize(quants.quantize(value.astype(np.float32), type), type).reshape(value.shape)

    path = convert(tmp_path / "m.gguf", model, CASES[name], "Q8_0")
    for stored, parameter in model.named_parameters():
        value, config = parameter.numpy(), model.config
        if parameter.dim() < 2 or stored.endswith(("mlp.gate.weight", "router.weight", "correction_bias")):
            continue
        if value.ndim == 3 and CASES[name].transposed:
            value = back(value.transpose(0, 2, 1)).transpose(0, 2, 1)
        elif stored.endswith("kv_b_proj.weight"):
            apart = value.reshape(config.num_attention_heads, -1, value.shape[1]).copy()
            nope = config.qk_nope_head_dim
            apart[:, :nope] = back(apart[:, :nope].transpose(0, 2, 1)).transpose(0, 2, 1)
            apart[:, nope:] = back(apart[:, nope:])
            value = apart.reshape(value.shape)
        else:
            value = back(value)
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    folder = save(model, tmp_path / "folder")
    found, wanted = (run(load_model(one), ids) for one in (path, folder))
    assert float((found - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q5_1"])
def test_halves_of_a_latent_by_rows_and_columns(tmp_path: Path, kind: str) -> None:
    model = made("deepseek3")
    store = Checkpoint.open(convert(tmp_path / "m.gguf", model, CASES["deepseek3"], kind)).store
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    whole, info = store.read(name), store.info(name)
    assert tuple(whole.shape) == info.shape and whole.dtype == info.torch_dtype
    if kind == "F32":
        assert torch.equal(whole, model.state_dict()[name])
    for rows, columns in ((slice(3, 99), None), (None, slice(32, 64)), (slice(100, 101), slice(0, 5))):
        part = store.read(name, rows, columns)
        assert torch.equal(part, whole[rows or slice(None), columns or slice(None)])
    with pytest.raises(CheckpointError, match=r"kv_b_proj.*has 384 rows; 0 to 400 were asked for"):
        store.read(name, slice(0, 400))


@torch.inference_mode()
def test_an_old_file_of_deepseek(tmp_path: Path) -> None:
    """Of before 2025-04: one matrix makes keys and values, heads have their own widths, groups are not named."""
    rules = replace(CASES["deepseek3"], parts={"attn_kv_b": ""})
    model, ids = made("deepseek3"), token_ids(30)
    config = model.config
    query = config.qk_nope_head_dim + config.qk_rope_head_dim
    more = {"attention.head_count_kv": 4, "attention.key_length": query, "attention.value_length": config.v_head_dim,
            "attention.key_length_mla": None, "attention.value_length_mla": None}  # fmt: skip
    path = convert(tmp_path / "m.gguf", model, rules, **more)
    assert float((run(load_model(path), ids) - model(ids).logits).abs().max()) < 1e-4


@torch.inference_mode()
def test_layers_that_guess_further_tokens_are_left_out(tmp_path: Path) -> None:
    rules, model, ids = CASES["glm4moe"], made("glm4moe"), token_ids(30)
    config, tensors = model.config, []
    for stored, tensor in model.state_dict().items():
        tensors += written(stored, tensor.numpy(), config, rules, "F32")
        if stored.startswith("model.layers.2."):
            tensors += written(stored.replace("layers.2.", "layers.3."), tensor.numpy(), config, rules, "F32")
    tensors += [raw(f"blk.3.nextn.{part}.weight", np.ones((256, width), np.float32), "F32")
                for part, width in (("eh_proj", 512), ("shared_head_head", 256))]  # fmt: skip
    keys = common_keys(config) | rules.keys(config) | {"block_count": 4, "nextn_predict_layers": 1}
    metadata = {"general.architecture": "glm4moe"} | {f"glm4moe.{key}": value for key, value in keys.items()}
    path = write(tmp_path / "m.gguf", gguf(metadata, tensors))
    assert float((run(load_model(path), ids) - model(ids).logits).abs().max()) < 1e-4
    assert Checkpoint.open(path).config["num_hidden_layers"] == 3


@torch.inference_mode()
def test_factors_of_llama_4(tmp_path: Path) -> None:
    """Scout's: frequencies are divided by 16, or not at all."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 1024}  # fmt: skip
    factors = llama3_factors(5e5, 64, 16.0, 1024, 1.0, 1.0)
    assert {*factors} == {1.0, 16.0}
    rules = CASES["llama4"]
    model, ids = make_model("Llama4ForCausalLM", **rules.changes), token_ids(60)
    metadata = {f"llama4.{key}": value for key, value in (common_keys(model.config) | of_llama4(model.config)).items()}
    tensors = [raw("rope_freqs.weight", np.array(factors, np.float32), "F32")]
    for stored, tensor in model.state_dict().items():
        tensors += written(stored, tensor.numpy(), model.config, rules, "F32")
    path = write(tmp_path / "m.gguf", gguf({"general.architecture": "llama4"} | metadata, tensors))
    folder = save(model, tmp_path / "folder")
    config = folder / "config.json"
    plain = '"rope_theta": 500000.0,\n    "rope_type": "default"'
    assert plain in config.read_text()
    listed = ", ".join(f'"{key}": {value!r}'.replace("'", '"') for key, value in rope.items())
    config.write_text(config.read_text().replace(plain, listed))
    found, wanted = (run(load_model(one), ids) for one in (path, folder))
    assert float((found - wanted).abs().max()) < 1e-4
    assert float((found - model(ids).logits).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("deepseek3", {"expert_gating_func": None}, "expert_gating_func is missing: routers have a correction"),
        ("deepseek3", {"rope.scaling.yarn_log_multiplier": None}, "yarn_log_multiplier is missing"),
        ("deepseek2", {"expert_weights_norm": True}, "expert_weights_norm is True: transformers leaves"),
        ("glm4moe", {"expert_gating_func": 1}, r"expert_gating_func is 1: isobit runs this family with a sigmoid"),
        ("glm4moe", {"nextn_predict_layers": 3}, "nextn_predict_layers is 3: there are 3 blocks"),
        ("hunyuan-moe", {"expert_shared_count": 2}, "expert_shared_count is 2: Hunyuan has one"),
        ("llama4", {"attention.sliding_window": 8}, "sliding_window is 8: Llama 4 with experts has chunks"),
        ("cohere2", {"attention.sliding_window_pattern": (True, False)}, "expected true or false for each of 5 layers"),
        ("olmoe", {"attention.clamp_kqv": 8.0}, r"asks for what isobit does not read.*attention\.clamp_kqv = 8"),
    ],
)
def test_what_a_file_asks_for_that_is_not_run(tmp_path: Path, name: str, more: dict[str, Any], why: str) -> None:
    path = convert(tmp_path / "m.gguf", made(name), CASES[name], **more)
    with pytest.raises(IsobitError, match=why):
        load_model(path)


def test_halves_that_do_not_fit(tmp_path: Path) -> None:
    path = convert(tmp_path / "m.gguf", made("deepseek3"), CASES["deepseek3"], **{"attention.head_count": 2})
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_k_b\.weight.*expected \[2, latent, k\] and \[2, v"):
        load_model(path)


def test_names_of_rows_are_no_architectures(tmp_path: Path) -> None:
    path = convert(tmp_path / "m.gguf", made("olmoe"), replace(CASES["olmoe"], named="deepseek3"))
    with pytest.raises(Unsupported, match="isobit reads those of llama, mistral3, llama4, arcee"):
        Checkpoint.open(path)


def test_plan_and_info_of_latent_attention(tmp_path: Path) -> None:
    path = convert(tmp_path / "m.gguf", made("deepseek3"), CASES["deepseek3"], "Q8_0")
    assert isobit.info(path).architecture == "DeepseekV3ForCausalLM"
    assert Checkpoint.open(path).config["dtype"] == "bfloat16"  # and not that of its routers
    _, ((plan,),) = isobit.plan(path, targets=["cpu-avx2"])
    held = {op.name: op.weights and op.weights.element for op, _ in plan.ops}
    assert (held["self_attn.kv_b_proj"], held["self_attn.o_proj"]) == (None, "int8")


def joined(tensors: list[Raw], parts: tuple[str, ...], name: str) -> list[Raw]:
    """The same tensors with some of each block as one, their rows behind each other."""
    found = {one.name: one for one in tensors}
    for first in [one for one in found if one.endswith(f".{parts[0]}")]:
        whole = [found.pop(first.replace(parts[0], part)) for part in parts]
        data = [np.frombuffer(one.data, np.float32).reshape(one.sizes[::-1]) for one in whole]
        value = np.concatenate(data, axis=max(0, data[0].ndim - 2))
        found[first] = raw(first.replace(parts[0], name), value, "F32")
    return [*found.values()]


@pytest.mark.parametrize("name", ["ministral3", "chatglm", "qwen3vlmoe", "deepseek3", "granitemoe"])
@torch.inference_mode()
def test_matrices_that_were_joined(tmp_path: Path, name: str) -> None:
    """--fuse-qkv and --fuse-gate-up-exps; glm-4-9b's first folder had the former."""
    rules, model, ids = CASES[name], made(name), token_ids(30)
    tensors = [one for stored, tensor in model.state_dict().items()
               for one in written(stored, tensor.float().numpy(), model.config, rules, "F32")]  # fmt: skip
    for end in ("weight", "bias"):
        if name != "deepseek3":
            tensors = joined(tensors, (f"attn_q.{end}", f"attn_k.{end}", f"attn_v.{end}"), f"attn_qkv.{end}")
    tensors = joined(tensors, ("ffn_gate_exps.weight", "ffn_up_exps.weight"), "ffn_gate_up_exps.weight")
    assert not any(".attn_k." in one.name or "gate_exps" in one.name for one in tensors)
    keys = common_keys(model.config) | rules.keys(model.config)
    metadata = {f"{rules.named}.{key}": value for key, value in keys.items() if value is not None}
    path = write(tmp_path / "m.gguf", gguf({"general.architecture": rules.named} | metadata, tensors))
    assert float((run(load_model(path), ids) - model(ids).logits).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["ministral3", "qwen3vlmoe"])
@torch.inference_mode()
def test_scales_over_matrices_in_nvfp4(tmp_path: Path, name: str) -> None:
    """As converters write them of ModelOpt's checkpoints: a number for a matrix, or for each expert."""
    rules, model, ids, type = CASES[name], made(name), token_ids(30), GGMLQuantizationType.NVFP4
    tensors: list[Raw] = []
    for stored, tensor in model.state_dict().items():
        for one in written(stored, tensor.float().numpy(), model.config, rules, "F32"):
            tensors.append(one)
            if ".attn_output." not in one.name and "_exps" not in one.name:
                continue
            rows = math.prod(one.sizes) // 64
            blocks = np.random.default_rng(len(tensors)).integers(0, 256, (rows, 36), dtype=np.uint8)
            blocks[:, :4] = 0x30 + blocks[:, :4] % 8  # scales around a half
            tensors[-1] = Raw(one.name, int(type), one.sizes, blocks.tobytes())
            over = np.linspace(0.01, 0.02, one.sizes[2] if len(one.sizes) == 3 else 1, dtype=np.float32)
            tensors.append(Raw(one.name.replace(".weight", ".scale"), 0, over.shape, over.tobytes()))
            tensors.append(Raw(one.name.replace(".weight", ".input_scale"), 0, (1,), over[:1].tobytes()))
    keys = common_keys(model.config) | rules.keys(model.config)
    metadata = {f"{rules.named}.{key}": value for key, value in keys.items() if value is not None}
    path = write(tmp_path / "m.gguf", gguf({"general.architecture": rules.named} | metadata, tensors))
    ck, by_name = Checkpoint.open(path), {one.name: one for one in tensors}

    def numbers(part: str) -> torch.Tensor:
        one, over = by_name[f"{part}.weight"], by_name[f"{part}.scale"]
        blocks = np.frombuffer(one.data, np.uint8).reshape(-1, one.sizes[0] // 64 * 36)
        made = quants.dequantize(blocks, type).reshape(one.sizes[::-1])
        return torch.from_numpy(made * np.frombuffer(over.data, np.float32).reshape(-1, *[1] * (made.ndim - 1)))

    output = read_linear(ck, "model.layers.1.self_attn.o_proj").weight
    assert torch.equal(output, numbers("blk.1.attn_output"))
    part = read_linear(ck, "model.layers.1.self_attn.o_proj", slice(3, 9), slice(16, 48)).weight
    assert torch.equal(part, output[3:9, 16:48])
    if "_exps" in str(by_name):
        for expert, wanted in enumerate(numbers("blk.1.ffn_down_exps")):
            assert torch.equal(read_linear(ck, f"model.layers.1.mlp.experts.{expert}.down_proj").weight, wanted)
    assert run(load_model(path), ids).isfinite().all()
    info = isobit.info(path)
    assert not [note for note in info.notes if "surplus" in note or "does not load" in note]
    held = convert(tmp_path / "h.gguf", model, rules, "Q8_0")
    extra = Raw("blk.0.attn_output.scale", 0, (1,), np.float32([2.0]).tobytes())
    whole = [one for stored, tensor in model.state_dict().items()
             for one in written(stored, tensor.float().numpy(), model.config, rules, "Q8_0")]  # fmt: skip
    write(held, gguf({"general.architecture": rules.named} | metadata, [*whole, extra]))
    with pytest.raises(CheckpointError, match=r"stands beside Q8_0, and isobit reads it beside"):
        load_model(held)
