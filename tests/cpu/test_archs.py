"""Every family of the table: logits equal transformers', decoding step by step equals prefill, every scheme loads."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from families import make_model, save, token_ids
from running import run
from safetensors.torch import save_file

from isobit.checkpoint.ctrender import render
from isobit.checkpoint.linear import module_tensors
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import ModelError
from isobit.formats.schemes import SCHEMES, ActSpec, Scheme, scheme
from isobit.models import archs
from isobit.models.archs import ARCHS, LLAMAS, UNSEEN, WITHIN, family, model_config
from isobit.models.batch import Batch, lay_out
from isobit.models.blueprint import classifier, expected_tensors
from isobit.models.contents import contents
from isobit.models.feed_forward import Experts
from isobit.models.weights import load_model
from isobit.quantizer.grid import default_search, quantize_weight, stored_scale_dtype

LENGTH = 100  # longer than every window and original context of the tiny models
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def saved_as(tmp_path_factory):
    """Architecture to (architecture, transformers model, folder), each made once."""

    @cache
    def make(architecture):
        model = make_model(architecture)
        return architecture, model, save(model, tmp_path_factory.mktemp(architecture))

    return make


@pytest.fixture(params=ARCHS)
def saved(request, saved_as):
    """(architecture, transformers model, folder)."""
    return saved_as(request.param)


@torch.inference_mode()
def difference(model, folder: Path, ids: torch.Tensor) -> float:
    return float((run(load_model(folder), ids) - model(ids).logits).abs().max())


def test_logits_equal_transformers(saved) -> None:
    _, model, folder = saved
    assert difference(model, folder, token_ids(LENGTH)) <= TOLERANCE


@torch.inference_mode()
def test_decoding_step_by_step_equals_prefill(saved) -> None:
    _, _, folder = saved
    model, ids = load_model(folder), token_ids(LENGTH)
    cache = model.new_cache(2, LENGTH)
    steps = [run(model, ids[:, :30], cache), run(model, ids[:, 30:47], cache)]  # prefill in two chunks
    steps += [run(model, ids[:, at : at + 1], cache) for at in range(47, LENGTH)]
    assert cache.lengths[0] == LENGTH
    assert (torch.cat(steps, 1) - run(model, ids)).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_sequences_in_one_call_equal_each_alone(saved) -> None:
    _, _, folder = saved
    model, sequences = load_model(folder), [token_ids(length, batch=1)[0] for length in (70, 1, 33, LENGTH)]
    together = torch.split(model.forward(Batch.of(sequences)), [len(ids) for ids in sequences])
    for ids, found in zip(sequences, together, strict=True):
        assert (found - model.forward(Batch.of([ids]))).abs().max() <= TOLERANCE
    cache, blocks, pieces = model.paged_cache(6), [(5, 2), (0,), (4,), (1, 3)], [[] for _ in sequences]
    fed = [0] * len(sequences)
    for ends in ((40, 1, 1, 64), (41, 1, 33, LENGTH), (70, 1, 33, LENGTH)):  # prompts in pieces beside single tokens
        turn = [number for number, end in enumerate(ends) if fed[number] < end]
        new = [sequences[number][fed[number] : ends[number]] for number in turn]
        batch = lay_out(new, [fed[number] for number in turn], [blocks[number] for number in turn], cache.block)
        for number, found in zip(turn, model.forward(batch, cache).split([len(ids) for ids in new]), strict=True):
            pieces[number].append(found)
        fed = [*ends]
    for ids, found in zip(sequences, pieces, strict=True):
        wanted = run(model, ids[None], model.new_cache(1, model.config.max_context))
        assert (torch.cat(found) - wanted[0]).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_the_last_position_alone_is_the_last_of_all(saved) -> None:
    _, _, folder = saved
    model, ids = load_model(folder), token_ids(20)
    assert torch.allclose(run(model, ids, last_only=True), run(model, ids)[:, -1:], atol=1e-5)


def test_expected_tensors_are_what_transformers_saves(saved) -> None:
    _, _, folder = saved
    stored = {name: info.shape for name, info in contents(Checkpoint.open(folder)).ck.tensors.items()}
    config = model_config(json.loads((folder / "config.json").read_text()))
    assert expected_tensors(config) == stored


def test_every_tensor_has_a_kind(saved) -> None:
    _, _, folder = saved
    config = model_config(json.loads((folder / "config.json").read_text()))
    kinds = {name: classifier(config)(name) for name in expected_tensors(config)}
    assert "other" not in kinds.values()
    linears = r"_proj|\.c_fc\.|\.w[123]\.|\.fc[12]\.|attn\.dense\.|shared_mlp\.(in|out)put_linear\."
    matrices = {name for name in kinds if re.search(linears, name)}
    assert {name for name, kind in kinds.items() if kind in ("linear", "absorbed")} == matrices
    assert all("kv_b_proj" in name for name, kind in kinds.items() if kind == "absorbed")


def quantized_copy(folder: Path, out: Path, row: Scheme) -> tuple[Path, Path]:
    """The model in a scheme, and the same with its dequantized weights as a plain float32 checkpoint."""
    ck = contents(Checkpoint.open(folder)).ck  # with the experts of a layer one by one, however they are stored
    tensors = {name: ck.read(name) for name in ck.tensors}
    config = json.loads((folder / "config.json").read_text())
    classify = classifier(model_config(config))
    packed, plain = {}, {}
    assert row.weights is not None
    for name, tensor in tensors.items():
        if classify(name) != "linear" or tensor.dim() != 2:
            packed[name] = plain[name] = tensor
            continue
        qt = quantize_weight(
            tensor,
            row.weights,
            search=default_search(row.weights),
            scale_dtype=stored_scale_dtype(torch.bfloat16, row.weights),
        )
        scale = torch.tensor([0.05]) if row.needs_calibration else None
        if scale is not None and row.activations is not None and row.activations.scale is not None:
            scale = torch.tensor([700.0])  # of NVFP4: 448 * 6 over the largest input
        module = name.removesuffix(".weight")
        packed |= module_tensors(module, qt, activations=row.activations, input_scale=scale)
        plain[name] = qt.dequantize()
    linears = {name.removesuffix(".weight"): row for name in tensors if classify(name) == "linear" and "weight" in name}
    absorbed = [name.removesuffix(".weight") for name in tensors if classify(name) in ("absorbed", "router")]
    kept = dict.fromkeys(("lm_head", "model.embed_tokens", *absorbed))
    for path, content, extra in (
        (out / "quantized", packed, {"quantization_config": render(linears | kept)}),
        (out / "plain", plain, {}),
    ):
        path.mkdir()
        save_file(
            {k: v.contiguous() for k, v in content.items()}, path / "model.safetensors", metadata={"format": "pt"}
        )
        (path / "config.json").write_text(json.dumps(config | extra))
    return out / "quantized", out / "plain"


# How far rounded activations may move the logits of a random two-layer model, relative to their size.
ROUNDED = {"e4m3fn": 0.15, "e5m2": 0.3, "int8": 0.05, "e2m1": 0.7}


QUANTIZED = [*(name for name, row in SCHEMES.items() if row.weights is not None), "int4-g64"]
EVERY_SCHEME = ("LlamaForCausalLM", "Phi3ForCausalLM", "Qwen3ForCausalLM")  # of families that share a decoder
PAIRS = [
    pytest.param(arch, name, marks=() if arch in EVERY_SCHEME or name in ("fp8", "int4") else pytest.mark.slow)
    for arch in ARCHS
    for name in QUANTIZED
]


@pytest.mark.parametrize(("architecture", "name"), PAIRS)
@torch.inference_mode()
def test_every_scheme_loads(saved_as, architecture, name, tmp_path) -> None:
    _, _, folder = saved_as(architecture)
    row, config = scheme(name), model_config(json.loads((folder / "config.json").read_text()))
    if name == "int3" and any(shape[-1] % 40 for shape in expected_tensors(config).values() if len(shape) == 2):
        row = scheme("int3-g32")  # what the error of a width that 40 does not divide says
    quantized, plain = quantized_copy(folder, tmp_path, row)
    ids = token_ids(24)
    model = load_model(quantized)
    expected = run(load_model(plain), ids)
    got = run(model, ids)
    relative = float((got - expected).norm() / expected.norm())
    linears = [linear for linear_name, linear in model.linears() if linear_name != "lm_head"]
    assert all(linear.activations == row.activations for linear in linears)
    if row.activations is None:
        assert relative <= 1e-5
    else:
        if any(isinstance(layer.mlp, Experts) for layer in config.layers):  # who takes another is far off
            relative = float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
        wider = 3 if row.needs_calibration else 1  # squares go beyond what such scales hold
        assert 0 < relative <= ROUNDED[row.activations.element] * wider
    # Decoding codes anew at every call is the same function as keeping their values.
    again = run(load_model(quantized, keep_values=False), ids)
    assert (again - got).norm() / got.norm() <= (1e-5 if row.activations is None else 2e-2)


def test_a_family_is_one_file_and_one_line() -> None:
    files = {path.stem for path in Path(archs.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {*ARCHS.values(), *LLAMAS.values(), *WITHIN.values(), *UNSEEN.values()}
    for name in files - {*UNSEEN.values(), *LLAMAS.values()}:  # models of these are others'
        assert callable(family(name).from_hf) and isinstance(family(name).tiny(), dict)


def test_static_activations_keep_their_spec() -> None:
    assert scheme("fp8-static").activations == ActSpec("e4m3fn", "tensor", dynamic=False)


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "llama3 of Llama 4": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-mscale": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_every_rope_equals_transformers(kind, tmp_path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 16}
    model = make_model("LlamaForCausalLM", **small, rope_parameters=ROPES[kind])
    assert difference(model, save(model, tmp_path), token_ids(LENGTH)) <= TOLERANCE


@torch.inference_mode()
def test_dynamic_rope_beyond_the_longest_context_equals_transformers(tmp_path) -> None:
    model = make_model("LlamaForCausalLM", max_position_embeddings=64, rope_parameters=ROPES["dynamic"])
    folder, ids = save(model, tmp_path), token_ids(LENGTH)
    for length in (64, LENGTH):  # in this order: transformers keeps the theta of the longest sequence so far
        assert difference(model, folder, ids[:, :length]) <= TOLERANCE
    loaded = load_model(folder)
    assert loaded.config.max_context == 64 and "dynamic changes nothing up to 64" in loaded.config.notes[0]
    cache = loaded.new_cache(2, LENGTH)
    steps = [run(loaded, ids[:, :50], cache), *(run(loaded, ids[:, at : at + 1], cache) for at in range(50, LENGTH))]
    assert (torch.cat(steps, 1) - model(ids).logits).abs().max() <= TOLERANCE


def test_latent_attention_has_longrope_and_dynamic_over_what_it_rotates(tmp_path) -> None:
    factors = {"short_factor": [1.0 + pair / 9 for pair in range(8)], "long_factor": [2.0 + pair for pair in range(8)]}
    for number, rope in enumerate((
        {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64} | factors,
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )):  # fmt: skip
        for architecture in ("DeepseekV2ForCausalLM", "Glm4MoeLiteForCausalLM"):
            model = make_model(architecture, rope_parameters=rope, max_position_embeddings=80)
            folder = save(model, tmp_path / f"{architecture}{number}")
            assert difference(model, folder, token_ids(LENGTH)) <= TOLERANCE


@torch.inference_mode()
def test_ernie_with_biases_has_one_in_its_head_and_none_in_its_experts(tmp_path) -> None:
    model = make_model("Ernie4_5_MoeForCausalLM", use_bias=True, tie_word_embeddings=False)
    folder = save(model, tmp_path / "m")
    assert difference(model, folder, token_ids(LENGTH)) <= TOLERANCE
    expected = expected_tensors(load_model(folder).config)
    assert expected["lm_head.bias"] == (320,) and "model.layers.1.mlp.shared_experts.up_proj.bias" in expected
    assert "model.layers.1.mlp.experts.0.up_proj.bias" not in expected
    bias = model.lm_head.bias.clone()
    model.lm_head.bias.zero_()
    assert difference(model, folder, token_ids(8)) == pytest.approx(float(bias.abs().max()), rel=1e-3)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(ModelError, match="use_bias = True: .* bias of an output projection that is the embedding"):
        load_model(folder)


def test_gemma_3_has_no_caps_of_scores_whatever_config_json_says(tmp_path) -> None:
    model = make_model("Gemma3ForCausalLM", attn_logit_softcapping=1.5, final_logit_softcapping=3.0)
    folder = save(model, tmp_path)
    assert difference(model, folder, token_ids(LENGTH)) <= TOLERANCE
    assert "attn_logit_softcapping = 1.5 is not looked at" in load_model(folder).config.notes[0]


def test_the_old_spelling_of_rope_is_read(tmp_path) -> None:
    model = make_model("LlamaForCausalLM", rope_parameters=ROPES["llama3"])
    folder = save(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    old = dict(config.pop("rope_parameters"))
    config["rope_theta"] = old.pop("rope_theta")
    config["rope_scaling"] = old
    (folder / "config.json").write_text(json.dumps(config))
    assert difference(model, folder, token_ids(LENGTH)) <= TOLERANCE
