"""Which layer gets which group: as compressed-tensors itself decides, for any groups; and what is said about it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from isobit.checkpoint import ctreview
from isobit.checkpoint.methods import parse
from isobit.checkpoint.quantization import Quantization
from isobit.errors import CheckpointError, IsobitError, Unsupported

LINEARS = [
    f"model.layers.{i}.{name}"
    for i in (0, 1, 10)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
]  # fmt: skip
MODULES = ["model.embed_tokens", *LINEARS, "lm_head"]
W8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
W4 = W8 | {"num_bits": 4, "strategy": "group", "group_size": 16}
FP8 = W8 | {"type": "float"}
FP8_TENSOR = {"num_bits": 8, "type": "float", "strategy": "tensor"}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
WEIGHTS = (W8, W4, FP8, FP8_TENSOR, W4 | {"group_size": 32})
TARGETS = [
    "Linear", "Embedding", "Module", "lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj",
    r"re:.*down_proj$", r"re:.*\.mlp\..*", r"re:.*mlp.*", r"re:model\.layers\.1.*", r"re:.*self_attn\.(q|k|v)_proj$",
    "re:.*", "re:lm_head", "re:mlp", r"re:.*layers\.1\.", r"re:.*(up|gate)_proj", "re:.*embed.*", "re:^(?!.*mlp).*",
    "model", "k_proj",
]  # fmt: skip


def config_of(
    *groups: tuple[list[str], dict[str, Any] | None], ignore: list[str] | None = None, **keys: Any
) -> dict[str, Any]:
    named = {
        f"group_{i}": {"targets": targets, "weights": weights, "input_activations": None}
        for i, (targets, weights) in enumerate(groups)
    }
    return {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
        "config_groups": named, "ignore": ignore or [], **keys,
    }  # fmt: skip


def read(section: dict[str, Any], modules: list[str] = MODULES, **more: Any) -> Quantization:
    found = ctreview.read({"quantization_config": section}, modules, **more)
    assert found is not None
    return found


def tree() -> torch.nn.Module:
    """Modules of those names, as transformers' models have them."""
    root = torch.nn.Module()
    for name in MODULES:
        parent = root
        *path, last = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        with torch.device("meta"):
            parent.add_module(
                last, torch.nn.Embedding(32, 32) if "embed" in last else torch.nn.Linear(32, 32, bias=False)
            )
    return root


def theirs(section: dict[str, Any]) -> dict[str, Any]:
    """What compressed-tensors makes of it: module -> its scheme."""
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = tree()
    apply_quantization_config(model, QuantizationConfig.model_validate(section), show_progress=False)
    return {name: getattr(model.get_submodule(name), "quantization_scheme", None) for name in MODULES}


def described(weights: Any) -> tuple[Any, ...] | None:
    return None if weights is None else (weights.num_bits, weights.type, weights.strategy, weights.group_size)


def ours(found: Quantization, module: str) -> tuple[Any, ...] | None:
    group = found.group_for(module)
    if group is None or group.weights is None:
        return None
    kind, bits = ("float", 8) if group.weights.element == "e4m3fn" else ("int", int(group.weights.element[3:]))
    return bits, kind, group.weights.granularity, group.weights.group


def test_any_groups_mean_what_compressed_tensors_makes_of_them() -> None:
    source = random.Random(11)
    for _ in range(60):
        groups = [
            (source.sample(TARGETS, source.randint(1, 5)), source.choice(WEIGHTS)) for _ in range(source.randint(1, 4))
        ]
        section = config_of(*groups, ignore=source.sample(TARGETS, source.choice((0, 0, 1, 2))))
        found, right = parse({"quantization_config": section}), theirs(section)
        assert found is not None
        for module in MODULES:
            scheme = right[module]
            assert ours(found, module) == (None if scheme is None else described(scheme.weights)), (module, section)


def test_the_order_in_the_file_does_not_matter_and_a_note_says_where_it_does() -> None:
    down, mlp = ["re:.*down_proj$"], [r"re:.*\.mlp\..*"]
    for groups in (((down, W8), (mlp, W4)), ((mlp, W4), (down, W8))):
        found = read(config_of(*groups))
        assert ours(found, "model.layers.0.mlp.down_proj") == (4, "int", "group", 16)  # "\" comes before "d"
        notes = [note for note in found.notes if "overlap" in note]
        if groups[0][0] == down:
            (note,) = notes
            assert "model.layers.0.mlp.down_proj and 2 more" in note and "(int4-g16)" in note and "(int8-w8a16)" in note
            assert "vLLM takes the first in the file, 're:.*down_proj$'" in note
        else:
            assert not notes


def test_overlaps_that_change_nothing_are_not_mentioned() -> None:
    same = read(config_of((["re:.*down_proj$"], W8), ([r"re:.*\.mlp\..*", "Linear"], W8)))
    classes = read(config_of((["Linear"], W4), (["re:.*down_proj$", "model.layers.0.mlp.up_proj", "lm_head"], W8)))
    ignored = read(config_of((["re:.*down_proj$"], W8), ([r"re:.*\.mlp\..*"], W4), ignore=["re:.*down_proj"]))
    assert not any("overlap" in note for found in (same, classes, ignored) for note in found.notes)


def test_layers_that_engines_fuse_and_that_differ_are_said() -> None:
    found = read(config_of((["Linear"], W8), (["re:.*up_proj$"], W4), ignore=["re:.*k_proj$", "lm_head"]))
    attention, mlp = sorted(note for note in found.notes if "vLLM fuses" in note)[::-1]
    assert mlp.startswith("model.layers.0.mlp and 2 more: gate_proj int8-w8a16, up_proj int4-g16")
    assert "refuses to load" in attention and "k_proj not quantized" in attention


def test_targets_without_a_layer_are_said() -> None:
    found = read(config_of((["Linear", "re:.*experts.*", "model.layers.7.mlp.up_proj", "Qwen2VLAttention"], W8)))
    (note,) = found.notes
    assert note.endswith("match no layer of this model: 'model.layers.7.mlp.up_proj', 're:.*experts.*'")
    assert read(config_of((["Linear", "re:.*down_proj", "lm_head"], W8), ignore=["re:vision.*"])).notes == ()


@pytest.mark.parametrize("target", ["LlamaAttention", r"re:.*self_attn$", "model.layers.0.self_attn"])
def test_attention_as_a_target_is_said(target: str) -> None:
    section = config_of((["Linear"], W8), ([target], None))
    section["config_groups"]["group_1"]["input_activations"] = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    (note,) = read(section).notes
    assert "rounded queries, keys or values" in note and target in note
    assert ours(read(section), "model.layers.0.self_attn.q_proj") == (8, "int", "channel", None)


def test_rounded_keys_and_values_are_said() -> None:
    section = config_of((["Linear"], W8))
    section["config_groups"]["kv"] = {"targets": ["re:.*k_proj", "re:.*v_proj"], "output_activations": FP8_TENSOR}
    assert any("rounded queries, keys or values (re:.*k_proj, re:.*v_proj)" in note for note in read(section).notes)
    only = read(config_of(kv_cache_scheme={"num_bits": 8, "type": "float"}) | {"format": "dense"})
    assert only.groups == () and "KV cache" in only.notes[0]


@pytest.mark.parametrize("targets", [["Linear"], ["re:.*mlp.*"], [r"re:.*self_attn"], ["lm_head"]])
def test_rounded_inputs_of_plain_weights_are_refused(targets: list[str]) -> None:
    section = config_of((targets, None)) | {"format": "dense", "quantization_status": "frozen"}
    section["config_groups"]["group_0"]["input_activations"] = TOKEN | {"num_bits": 4}
    with pytest.raises(Unsupported, match="rounds the inputs of layers whose weights are not quantized"):
        read(section)


def test_plain_weights_to_be_rounded_while_running_are_refused() -> None:
    with pytest.raises(Unsupported, match="format 'dense'"):
        read(config_of((["Linear"], W8)) | {"format": "dense"})


def test_plain_tensors_under_a_config_that_calls_them_quantized_are_refused() -> None:
    stored = {f"{module}.weight_packed": "I32" for module in LINEARS} | {"lm_head.weight": "BF16"}
    section = config_of((["Linear"], W4))
    assert read(section, tensors=stored).notes == ()  # an output projection is quantized only where it is named
    with pytest.raises(
        CheckpointError, match="says that lm_head are quantized, but their weights are stored as they are"
    ):
        read(config_of((["Linear", "lm_head"], W4)), tensors=stored)
    plain = {f"{module}.weight": "F32" for module in LINEARS}
    for one in (section, {"quant_method": "fp8"}, {"quant_method": "fp8", "weight_block_size": [128, 128]}):
        with pytest.raises(CheckpointError, match="layers.0.mlp.down_proj and 20 more"):
            read(one, tensors=plain)
    skips = {"quant_method": "fp8", "modules_to_not_convert": ["self_attn", r"model.layers.\d+.mlp", "embed_tokens"]}
    assert read(skips, tensors=plain).group_for(LINEARS[0]) is None


@pytest.mark.parametrize(
    ("entry", "module", "skipped"),
    [
        ("lm_head", "lm_head", True), ("model.layers.1", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1", "model.layers.10.mlp.up_proj", False), ("mlp.gate", "model.layers.1.mlp.gate_proj", False),
        ("mlp.gate", "model.layers.1.mlp.gate", True), ("proj", "model.layers.1.mlp.up_proj", True),
        (r"model.layers.\d+.mlp", "model.layers.3.mlp.up_proj", True), ("model.layers.(0|2)", "model.layers.2.x", True),
        ("model.layers.(0|2)", "model.layers.21.x", False), ("(", "lm_head", False), ("re:.*mlp.*", "a.mlp.b", True),
        ("(a+)+$", "a" * 60 + "!", False),
    ],
)  # fmt: skip
def test_what_the_fp8_method_leaves_out(entry: str, module: str, skipped: bool) -> None:
    found = parse({"quantization_config": {"quant_method": "fp8", "ignored_layers": [entry]}})
    assert found is not None and found.ignores(module) is skipped


def test_dynamic_scales_are_per_token_whatever_is_asked_for() -> None:
    section = config_of((["Linear"], FP8))
    section["config_groups"]["group_0"]["input_activations"] = {
        "num_bits": 8,
        "type": "float",
        "strategy": "tensor",
        "dynamic": True,
    }
    for one in (section, {"quant_method": "fp8", "activation_scheme": "dynamic"}, {"quant_method": "fp8"}):
        found = read(one)
        group = found.group_for("model.layers.0.mlp.up_proj")
        assert group is not None and group.activations is not None and group.activations.granularity == "token"
        assert any("isobit takes a scale per token" in note for note in found.notes)
    static = read({"quant_method": "fp8", "activation_scheme": "static"})
    assert static.groups[0].activations is not None and not static.groups[0].activations.dynamic and static.notes == ()


def test_unknown_keys_are_said() -> None:
    section = config_of((["Linear"], W8 | {"stochastic": True}), twist=3)
    assert any("does not follow: stochastic" in note for note in read(section).notes)
    assert any("does not follow: twist" in note for note in read(section).notes)


# ---------------------------------------------------------------------- nobody waits, nothing breaks


def test_a_hundred_thousand_targets() -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(100_000)]
    found = read(config_of((names, W8), (["Linear"], W4), ignore=names[50_000:]))
    assert ours(found, names[1]) == (8, "int", "channel", None) and found.group_for(names[-1]) is None
    fp8 = read({"quant_method": "fp8", "modules_to_not_convert": names})
    assert fp8.ignores(names[7]) and not fp8.ignores("model.layers.1.mlp.down_proj")
    with pytest.raises(CheckpointError, match="write names instead"):
        read(config_of(([f"re:{name}" for name in names[:10_001]], W8)))


@pytest.mark.parametrize("where", ["targets", "ignore"])
@pytest.mark.parametrize("pattern", ["re:(.*a)+$", "re:(a|aa)+$", "re:(.+)+x", r"re:(\w+\.?)+!"])
def test_patterns_that_backtracking_would_never_finish(where: str, pattern: str) -> None:
    long = "model." + "a" * 100
    section = config_of(
        (["Linear", *([pattern] if where == "targets" else [])], W8), ignore=[pattern] * (where == "ignore")
    )
    assert read(section, [*MODULES, long]).notes is not None


NASTY: list[Any] = [
    None, True, False, 0, -1, 3, 10**300, -(10**300), 1.5, float("inf"), float("nan"), "", "true", "false",
    "x" * 10_000,
    "\x1b[31m", "\ud800", [], [[]], [None], ["Linear"], ["re:("], ["re:(a+)+$"], {},
    {"a": {"b": []}}, "re:.*", "128x128", [128, 128],
    [10**300, 1], "local", "tensor", "group", "block", "token", "channel", [{"num_bits": 4}],
    {"num_bits": 4}, "float", "int",
]  # fmt: skip


def mutated(source: random.Random, value: Any) -> Any:
    """A JSON value with something in it replaced, left out or added."""
    if isinstance(value, dict) and value and source.random() < 0.85:
        changed = dict(value)
        key = source.choice(sorted(changed))
        pick = source.random()
        if pick < 0.15:
            del changed[key]
        elif pick < 0.25:
            changed[source.choice(["targets", "dynamic", "actorder", "format", "\x00", "k" * 500])] = source.choice(
                NASTY
            )
        else:
            changed[key] = mutated(source, changed[key])
        return changed
    if isinstance(value, list) and value and source.random() < 0.5:
        return [*value, source.choice(NASTY)]
    return source.choice(NASTY)


def test_whatever_a_config_says_is_read_or_refused() -> None:
    """Seeded: nothing but isobit's own errors, short ones, from reading to asking for every layer."""
    source = random.Random(2026)
    whole = config_of(
        (["Linear"], W4), (["re:.*down_proj", "lm_head"], FP8), ignore=["re:.*k_proj"], kv_cache_scheme=FP8_TENSOR
    )
    whole["config_groups"]["group_1"]["input_activations"] = dict(TOKEN)
    whole["sparsity_config"] = {"format": "dense"}
    fp8 = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"], "ignored_layers": ["a"], "scale_fmt": "ue8m0",
    }  # fmt: skip
    refused = 0
    for _ in range(3000):
        section = mutated(source, source.choice((whole, fp8)))
        for _ in range(source.choice((0, 0, 1, 2))):
            section = mutated(source, section)
        holder = source.choice(("quantization_config", "quantization_config", "compression_config", "quantization"))
        config = {holder: section} if source.random() < 0.9 else {"text_config": {holder: section}}
        try:
            found = ctreview.read(config, MODULES)
            for module in MODULES if found is not None else ():
                found.group_for(module)  # type: ignore[union-attr]
            assert found is None or all(len(note) < 1500 for note in found.notes)
        except IsobitError as error:
            refused += 1
            assert len(str(error)) < 1500 and str(error).replace("\n", "").isprintable(), config
    assert refused > 1000
