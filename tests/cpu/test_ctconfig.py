"""quantization_config: what is written is what compressed-tensors means by it; what others write is read or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hf_checkpoints import linears

from isobit.checkpoint import ctrender, methods
from isobit.checkpoint.cttargets import compact, fused_conflicts
from isobit.checkpoint.quantization import Quantization
from isobit.errors import CheckpointError, Unsupported
from isobit.formats.schemes import SCHEMES, ActSpec, Scheme, WeightSpec, scheme

QUANTIZED = [row for row in SCHEMES.values() if row.quantized]
OTHERS: dict[str, Scheme | None] = {"lm_head": None, "model.embed_tokens": None, "model.layers.0.mlp.gate": None}


def parsed(section: dict[str, Any]) -> Quantization:
    found = methods.parse({"quantization_config": section})
    assert found is not None
    return found


@pytest.mark.parametrize("row", QUANTIZED, ids=lambda row: row.name)
def test_parse_is_the_inverse_of_render(row: Scheme) -> None:
    section = ctrender.render(dict.fromkeys(linears(), row) | OTHERS)
    assert section["config_groups"]["group_0"]["targets"] == ["Linear"]
    found = parsed(section)
    for module in linears():
        group = found.group_for(module)
        assert group is not None and (group.weights, group.activations) == (row.weights, row.activations)
    assert all(found.group_for(module) is None for module in OTHERS)


@pytest.mark.parametrize("row", [row for row in QUANTIZED if row.name != "fp8-e5m2"], ids=lambda row: row.name)
def test_compressed_tensors_accepts_what_is_rendered(row: Scheme) -> None:
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import QuantizationConfig

    section = ctrender.render(dict.fromkeys(linears(), row) | OTHERS)
    config = QuantizationConfig.model_validate(section)
    group = config.config_groups["group_0"]
    assert group.weights.num_bits == section["config_groups"]["group_0"]["weights"]["num_bits"]
    assert CompressionFormat(group.format).value == config.format == section["format"]


def test_the_presets_of_compressed_tensors_are_our_schemes() -> None:
    from compressed_tensors.quantization import preset_name_to_scheme

    for name in ("FP8", "FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "INT8", "W4A16", "W4A16_ASYM"):
        preset = preset_name_to_scheme(name, ["Linear"]).model_dump(mode="json")
        group = parsed({"config_groups": {"g": preset}}).groups[0]
        assert (group.weights, group.activations) == (scheme(name).weights, scheme(name).activations), name
        assert parsed({"config_groups": {name: ["Linear"]}}).groups == (group,)


def test_e5m2_is_refused_by_compressed_tensors_by_name() -> None:
    from compressed_tensors.quantization import QuantizationConfig

    section = ctrender.render(dict.fromkeys(linears(), scheme("fp8-e5m2")))
    with pytest.raises(ValueError, match="'float8_e5m2' is not a valid QuantizationType"):
        QuantizationConfig.model_validate(section)


def test_nothing_quantized_is_no_config() -> None:
    assert ctrender.render(dict.fromkeys(linears(), None)) == {}
    assert ctrender.render(dict.fromkeys(linears(), scheme("bf16"))) == {}
    assert methods.parse({}) is None and methods.parse({"quantization_config": None}) is None
    assert methods.parse({"quantization_config": {}}) is None


def test_mixed_schemes_name_every_module() -> None:
    assigned: dict[str, Scheme | None] = dict.fromkeys(linears(), scheme("int4-g32"))
    assigned |= {module: scheme("fp8") for module in linears() if "down_proj" in module}
    assigned |= {"model.layers.1.self_attn.o_proj": scheme("int8"), "lm_head": scheme("int8"), "router": None}
    section = ctrender.render(assigned)
    assert section["format"] == "mixed-precision" and section["ignore"] == ["router"]
    groups = {group["format"]: group["targets"] for group in section["config_groups"].values()}
    assert groups["float-quantized"] == [r"re:model\.layers\.\d+\.mlp\.down_proj$"]
    assert groups["int-quantized"] == ["model.layers.1.self_attn.o_proj", "lm_head"]
    assert "Linear" not in groups["pack-quantized"]
    found = parsed(section)
    for module, chosen in assigned.items():
        group = found.group_for(module)
        assert (group and group.weights) == (chosen and chosen.weights), module


def test_lm_head_and_embeddings_are_named() -> None:
    assigned = dict.fromkeys([*linears(), "lm_head", "model.embed_tokens"], scheme("int8-w8a16"))
    targets = ctrender.render(assigned)["config_groups"]["group_0"]["targets"]
    assert targets == ["Linear", "lm_head", "model.embed_tokens"]
    assert ctrender.render({"model.embed_tokens": scheme("int4")})["config_groups"]["group_0"]["targets"] == [
        "model.embed_tokens"
    ]


def test_compact_lists_match_exactly_what_they_should() -> None:
    modules = [f"model.layers.{i}.mlp.experts.{e}.up_proj" for i in range(12) for e in range(8)]
    assigned = dict.fromkeys([*modules, "model.layersX0.mlp.experts.1.up_proj"], None)
    assert compact(modules, assigned) == [r"re:model\.layers\.\d+\.mlp\.experts\.\d+\.up_proj$"]
    assert compact(modules[:-1], assigned) == modules[:-1]
    assert compact([], assigned) == []


def test_fused_layers_quantized_differently_are_named() -> None:
    assigned: dict[str, str | None] = dict.fromkeys(linears(), "int8")
    assert fused_conflicts(assigned) == []
    assigned["model.layers.1.self_attn.k_proj"] = None
    assigned["model.layers.0.mlp.up_proj"] = "fp8"
    first, second = sorted(fused_conflicts(assigned))
    assert str(first) == "model.layers.0.mlp: gate_proj int8, up_proj fp8"
    assert "gives all of them the scheme of gate_proj" in first.consequence
    assert str(second) == "model.layers.1.self_attn: q_proj int8, k_proj not quantized, v_proj int8"
    assert "refuses to load" in second.consequence
    everywhere = {name: "fp8" if name.endswith("up_proj") else "int8" for name in linears()}
    assert [str(one) for one in fused_conflicts(everywhere)] == [
        "model.layers.0.mlp and 1 more: gate_proj int8, up_proj fp8"
    ]
    experts = {f"model.layers.0.experts.{i}.{w}": w if i == 3 else "int4" for i in range(5) for w in ("w1", "w2", "w3")}
    assert [one.parents for one in fused_conflicts(experts)] == [("model.layers.0.experts.3",)]


KIMI = {  # as published with Kimi-K2-Thinking
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None, "output_activations": None,
        "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
            "observer": "minmax", "dynamic": False, "actorder": None, "block_structure": None}}},
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
}  # fmt: skip


def test_the_config_of_kimi_k2_thinking() -> None:
    for config in ({"quantization_config": KIMI}, {"text_config": {"quantization_config": KIMI}}):
        found = methods.parse(config)
        assert found is not None
        group = found.group_for("model.layers.3.mlp.experts.17.gate_proj")
        assert group is not None and group.weights == WeightSpec("int4", "group", 32) and group.activations is None
        for module in ("lm_head", "model.layers.0.mlp.up_proj", "model.layers.5.self_attn.q_a_proj"):
            assert found.group_for(module) is None


def test_deepseeks_fp8_method() -> None:
    found = parsed({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        "scale_fmt": "ue8m0", "modules_to_not_convert": ["lm_head", "model.layers.0"],
    })  # fmt: skip
    group = found.group_for("model.layers.1.mlp.up_proj")
    assert group is not None and group.weights == WeightSpec("e4m3fn", "block", block=(128, 128))
    assert group.activations == ActSpec("e4m3fn", "group", 128) and "powers of two" in found.notes[0]
    assert found.group_for("lm_head") is None and found.group_for("model.layers.0.mlp.up_proj") is None
    assert found.group_for("model.layers.01.x") is not None
    plain = parsed({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]})
    assert plain.groups[0].activations == ActSpec("e4m3fn", "tensor", dynamic=False)


def test_old_and_partial_compressed_tensors_configs() -> None:
    args = {"num_bits": 8, "type": "int", "symmetric": True}
    old = {"config_groups": {"g": {"targets": ["Linear"], "weights": args | {"group_size": -1}}}, "ignore": None}
    found = methods.parse({"compression_config": old})
    assert found is not None and found.groups[0].weights == WeightSpec("int8", "channel")
    for strategy, expected in ((None, "tensor"), ("channel", "channel"), ("CHANNEL", "channel")):
        group = {"targets": ["Linear"], "weights": args | {"strategy": strategy}, "input_activations": None}
        assert parsed({"config_groups": {"g": group}}).groups[0].weights == WeightSpec("int8", expected)  # type: ignore[arg-type]
    block = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "64x32"}
    assert parsed({"config_groups": {"g": {"targets": [], "weights": block}}}).groups[0].weights == WeightSpec(
        "e4m3fn", "block", block=(64, 32)
    )
    cache = parsed(KIMI | {"kv_cache_scheme": {"num_bits": 8, "type": "float"}})
    assert "KV cache" in cache.notes[0]


@pytest.mark.parametrize("method", ["exl2", "bitnet", "mxfp6", "mlx", "quark"])
def test_other_methods_are_refused_by_name(method: str) -> None:
    with pytest.raises(Unsupported, match=f"'{method}'.*\n.*compressed-tensors, fp8(.|\n)*instead: quantize"):
        methods.parse({"quantization_config": {"quant_method": method}})


def kimi_with(**args: Any) -> dict[str, Any]:
    group = KIMI["config_groups"]["group_0"]  # type: ignore[index]
    return KIMI | {"config_groups": {"g": group | {"weights": group["weights"] | args}}}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (kimi_with(num_bits=5), "5-bit int"),
        (kimi_with(type="float", strategy="channel", group_size=None), "4-bit float"),
        (kimi_with(type="float", group_size=64), "power of two per 64"),
        (kimi_with(type="float", strategy="tensor_group"), "per tensor and group"),
        (
            kimi_with(num_bits=8, symmetric=False)
            | {
                "config_groups": {
                    "g": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "tensor"},
                    }
                }
            },
            "asymmetric 8-bit",
        ),
        (kimi_with(dynamic=True), "dynamic scales"),
        (kimi_with(strategy="tensor_group", group_size=16), "strategy 'tensor_group'"),
        (KIMI | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "it is sparse"),
        (KIMI | {"transform_config": {"config_groups": {"a": 1}}}, "rotated"),
        (KIMI | {"format": "marlin-24"}, "marlin-24"),
        ({"config_groups": {"MXFP6": ["Linear"]}}, "preset 'MXFP6'"),
        ({"config_groups": {"g": {"targets": ["Linear"], "output_activations": {"num_bits": 8}}}}, "outputs"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fp8 format 'e5m2'"),
    ],
)
def test_parts_that_cannot_be_run_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        parsed(section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "compressed-tensors"}, "no config_groups"),
        ({"config_groups": {"g": 3}}, "must be a JSON object"),
        ({"config_groups": {"g": {"targets": "Linear"}}}, "targets must be a list of names"),
        ({"config_groups": {"g": {"targets": ["re:("]}}}, "not a regular expression"),
        (KIMI | {"ignore": [3]}, "ignore must be a list of names"),
        (kimi_with(group_size=33), "multiple of 8"),
        (kimi_with(num_bits="four"), "must be whole numbers"),
        (kimi_with(strategy="block", block_structure=[1]), "block sizes"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "static"}, "not defined"),
        ({"quant_method": "fp8", "activation_scheme": "maybe"}, "neither dynamic nor static"),
    ],
)
def test_malformed_configs(section: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parsed(section)
    with pytest.raises(CheckpointError, match="must be a JSON object"):
        methods.parse({"quantization_config": [section]})
