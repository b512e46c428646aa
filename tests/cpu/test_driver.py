"""Quantizing tiny checkpoints end to end: what is in the output, and what it does not depend on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, hashes, tensors, write
from safetensors.torch import load_file, save_file

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import UsageError
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import Scheme, scheme
from isobit.kernels import backends
from isobit.quantizer import calibrate, grid, jobs
from isobit.quantizer.driver import predict, quantize
from isobit.quantizer.report import QuantizeReport

WEIGHT_SCHEMES = (
    "fp8",
    "fp8-e5m2",
    "fp8-w8a16",
    "int8",
    "int8-w8a16",
    "int4-g32",
    "int4-asym-g32",
    "w4a8-g32",
    "int3-g32",
    "int2-g32",
)
DOWN = "model.layers.0.mlp.down_proj"


def run(source: Path, out: Path, name: str, *rules: tuple[str, str], **options: object) -> QuantizeReport:
    policy = Policy(scheme(name), tuple(Rule(*rule) for rule in rules))
    return quantize(source, out, policy, progress=False, **options)  # type: ignore[arg-type]


def expected_weight(weight: torch.Tensor, chosen: Scheme) -> QTensor:
    """The weight quantized in one go, as the law has it."""
    assert chosen.weights is not None
    spec = chosen.weights
    return grid.quantize_weight(
        weight, spec, search=grid.default_search(spec), scale_dtype=grid.stored_scale_dtype(weight.dtype, spec)
    )


@pytest.mark.parametrize("name", WEIGHT_SCHEMES)
def test_every_linear_is_quantized_by_the_law_and_everything_else_is_copied(tmp_path: Path, name: str) -> None:
    report = run(write(tmp_path / "src"), tmp_path / "out", name)
    ck = Checkpoint.open(tmp_path / "out")
    source = tensors()
    for module in [n.removesuffix(".weight") for n in source if "_proj" in n]:
        found = read_linear(ck, module).weight
        wanted = expected_weight(source.pop(f"{module}.weight"), scheme(name))
        assert isinstance(found, QTensor)
        assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)
        assert (found.zero is None) == (wanted.zero is None)
        assert found.zero is None or torch.equal(found.zero, wanted.zero)
    for tensor, data in source.items():
        assert torch.equal(ck.read(tensor), data)
    assert report.output_bytes == ck.nbytes


@pytest.mark.parametrize("name", [*WEIGHT_SCHEMES, "fp8-block"])
def test_pieces_of_rows_give_the_same_bytes_as_whole_tensors(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"hidden_size": 128, "intermediate_size": 384, "vocab_size": 200}
    weights = {}
    for key, value in tensors().items():
        shape = [{64: 128, 32: 64, 160: 384, 96: 200}[size] for size in value.shape]
        weights[key] = torch.linspace(-1, 1, shape[0] * (shape + [1])[1]).sin().reshape(shape).bfloat16()
    source = write(tmp_path / "src", weights, **wide)
    run(source, tmp_path / "whole", name)
    monkeypatch.setattr(jobs, "PIECE_BYTES", 1)  # the fewest rows there are
    assert len(
        list(jobs.plan_jobs(Checkpoint.open(source).tensors.values(), lambda _: "linear", policy(name), None))[1].pieces
    )
    run(source, tmp_path / "pieces", name)
    whole, pieces = hashes(tmp_path / "whole"), hashes(tmp_path / "pieces")
    assert whole["model.safetensors"] == pieces["model.safetensors"]


def policy(name: str) -> Policy:
    return Policy(scheme(name))


def test_a_large_matrix_is_cut_into_pieces_on_block_borders() -> None:
    from isobit.checkpoint.safetensors import TensorInfo

    info = TensorInfo("model.layers.0.mlp.up_proj.weight", "BF16", (11008, 4096), Path("x"), 0, 11008 * 4096 * 2)
    for name in ("fp8", "fp8-block", "int4-asym"):
        (job,) = jobs.plan_jobs([info], lambda _: "linear", policy(name), None)
        assert len(job.pieces) > 4 and job.pieces[-1][1] == 11008
        assert all(begin % 128 == 0 and (end - begin) * 8192 <= jobs.PIECE_BYTES for begin, end in job.pieces)
        rows = [job.offset(job.outputs[0].name, begin) for begin, _ in job.pieces]
        assert rows == sorted(set(rows))


def test_threads_shards_and_runs_do_not_change_a_bit(tmp_path: Path) -> None:
    source = write(tmp_path / "src")
    run(source, tmp_path / "a", "int4-g32", threads=1)
    run(source, tmp_path / "b", "int4-g32", threads=5, commit_bytes=1)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    run(source, tmp_path / "c", "int4-g32", max_shard_bytes=10_000)
    one, many = load_file(tmp_path / "a" / "model.safetensors"), {}
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        part = load_file(tmp_path / "c" / name)
        assert sum(t.numel() * t.element_size() for t in part.values()) <= 13_000  # 10 kB, or one embedding
        many |= part
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all(torch.equal(one[key].view(torch.uint8), many[key].view(torch.uint8)) for key in one)


def test_torch_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(write(tmp_path / "src"), tmp_path / "out", "fp8")
    assert torch.get_num_threads() == before


def test_config_keeps_everything_and_gains_the_quantization(tmp_path: Path) -> None:
    source = write(tmp_path / "src", unsloth_note={"kept": "ä"})
    run(source, tmp_path / "out", "fp8")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == CONFIG | {"unsloth_note": {"kept": "ä"}}
    assert quantization["quant_method"] == "compressed-tensors" and "lm_head" in quantization["ignore"]


def test_companions_travel(tmp_path: Path) -> None:
    run(write(tmp_path / "src"), tmp_path / "out", "fp8")
    for name in ("generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "src" / name).read_bytes()


def test_a_dtype_scheme_casts_the_whole_checkpoint(tmp_path: Path) -> None:
    exact = tensors(torch.float32)
    source = write(tmp_path / "src", exact, torch_dtype="float32")
    report = run(source, tmp_path / "out", "bf16", ("lm_head", "keep"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in exact.items():
        assert torch.equal(found[name], tensor if name == "lm_head.weight" else tensor.bfloat16())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and "quantization_config" not in config
    assert report.bits_per_weight is None and report.relative_squared_error is None


def test_rules_quantize_what_is_kept_by_default_and_mix_schemes(tmp_path: Path) -> None:
    rules = (("lm_head", "int8"), ("embed", "int8"), (r"layers\.0\..*down_proj", "keep"), ("down_proj", "int4-g32"))
    report = run(write(tmp_path / "src"), tmp_path / "out", "fp8", *rules)
    chosen = {module.name: module.scheme for module in report.modules}
    assert chosen["lm_head"] == chosen["model.embed_tokens"] == "int8"
    assert chosen[DOWN] == "keep" and chosen["model.layers.1.mlp.down_proj"] == "int4-g32"
    assert chosen["model.layers.0.self_attn.q_proj"] == "fp8" and chosen["model.norm"] == "keep"
    dtypes = {name: info.dtype for name, info in Checkpoint.open(tmp_path / "out").tensors.items()}
    assert dtypes["lm_head.weight"] == "I8" and dtypes["model.layers.0.self_attn.q_proj.weight"] == "F8_E4M3"


def test_what_vllm_makes_of_mixed_groups_is_said(tmp_path: Path) -> None:
    policy = Policy(scheme("fp8"), (Rule("q_proj", "int8"), Rule("up_proj", "keep")))
    report = quantize(write(tmp_path / "src"), tmp_path / "out", policy, progress=False, allow_mixed_fused=True)
    mlp, attention = sorted(note for note in report.notes if "vLLM fuses" in note)
    assert attention.startswith("model.layers.0.self_attn and 1 more: q_proj int8, k_proj fp8, v_proj fp8: vLLM fuses")
    assert "without a word" in attention and "refuses to load" in mlp


def test_old_buffers_are_dropped_with_a_note(tmp_path: Path) -> None:
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    report = run(write(tmp_path / "src", tensors() | old), tmp_path / "out", "fp8")
    assert any("left out" in note and "inv_freq and 1 more" in note for note in report.notes)
    assert not any("inv_freq" in name for name in Checkpoint.open(tmp_path / "out").tensors)


def test_the_report_measures_the_error_that_was_made(tmp_path: Path) -> None:
    report = run(write(tmp_path / "src"), tmp_path / "out", "int4-g32")
    exact = tensors()[f"{DOWN}.weight"].double()
    weight = read_linear(Checkpoint.open(tmp_path / "out"), DOWN).weight
    assert isinstance(weight, QTensor)
    wanted = ((weight.dequantize().double() - exact).square().sum() / exact.square().sum()).item()
    (down,) = [module for module in report.modules if module.name == DOWN]
    assert down.relative_squared_error == pytest.approx(wanted, rel=1e-5)
    assert down.sqnr_db == pytest.approx(-10 * torch.tensor(wanted).log10().item(), abs=1e-3)
    assert down.shape == (64, 160) and down.source_bytes == 20480 and down.kind == "linear"
    assert down.bytes == 64 * 160 // 2 + 64 * 5 * 2 + 16
    assert report.bits_per_weight is not None and 4.5 < report.bits_per_weight < 4.6


def test_the_report_on_the_disk_is_about_the_result_and_not_about_the_run(tmp_path: Path) -> None:
    report = run(write(tmp_path / "src"), tmp_path / "out", "fp8")
    stored = json.loads((tmp_path / "out" / "isobit_report.json").read_text())
    assert stored["relative_squared_error"] == report.relative_squared_error
    assert len(stored["modules"]) == len(report.modules) == len(tensors())
    assert not {"seconds", "out", "resumed_from"} & stored.keys()
    for name, size in stored["files"].items():
        assert (tmp_path / "out" / name).stat().st_size == size
    assert set(stored["files"]) == set(hashes(tmp_path / "out")) - {"isobit_report.json"}


@pytest.mark.parametrize(("name", "exponent"), [("int8", 80), ("fp8", 80), ("int8", -90), ("fp8-e5m2", -90)])
def test_the_relative_error_does_not_depend_on_how_large_the_weights_are(
    tmp_path: Path, name: str, exponent: int
) -> None:
    """Squares of such weights leave float32: inf / inf was shown as nan, and errors of small ones as 0."""
    source = tensors()
    scaled = {key: value * 2.0**exponent if "_proj" in key else value for key, value in source.items()}
    wanted = run(write(tmp_path / "plain"), tmp_path / "a", name).relative_squared_error
    found = run(write(tmp_path / "scaled", scaled), tmp_path / "b", name).relative_squared_error
    assert found == pytest.approx(wanted, rel=1e-3) and wanted > 0
    zero = {key: torch.zeros_like(value) if "_proj" in key else value for key, value in source.items()}
    assert run(write(tmp_path / "zero", zero), tmp_path / "c", name).relative_squared_error == 0


def test_biases_pass_through(tmp_path: Path) -> None:
    weights = tensors()
    for layer in range(2):
        for part, size in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            weights[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = torch.full((size,), 0.5, dtype=torch.bfloat16)
    run(write(tmp_path / "src", weights, attention_bias=True), tmp_path / "out", "int8")
    bias = read_linear(Checkpoint.open(tmp_path / "out"), "model.layers.1.self_attn.q_proj").bias
    assert bias is not None and torch.equal(bias, torch.full((64,), 0.5, dtype=torch.bfloat16))


def test_tied_embeddings_have_no_head_to_quantize(tmp_path: Path) -> None:
    weights = tensors()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # a copy, as some tools write it
    run(write(tmp_path / "src", weights, tie_word_embeddings=True), tmp_path / "out", "fp8")
    assert "lm_head.weight" not in Checkpoint.open(tmp_path / "out").tensors
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "lm_head" in config["quantization_config"]["ignore"]


def test_many_source_shards(tmp_path: Path) -> None:
    source = write(tmp_path / "one")
    many = write(tmp_path / "many")
    (many / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(tensors()):
        weight_map[name] = f"model-{i % 3 + 1:05d}-of-00003.safetensors"
    for file in set(weight_map.values()):
        save_file({name: tensor for name, tensor in tensors().items() if weight_map[name] == file}, many / file)
    (many / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    run(source, tmp_path / "a", "fp8")
    run(many, tmp_path / "b", "fp8")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key].view(torch.uint8), b[key].view(torch.uint8)) for key in a)


def test_a_finished_output_is_not_touched_without_being_asked(tmp_path: Path) -> None:
    source = write(tmp_path / "src")
    run(source, tmp_path / "out", "fp8")
    with pytest.raises(UsageError, match="finished checkpoint"):
        run(source, tmp_path / "out", "int8")
    run(source, tmp_path / "out", "int8", overwrite=True)
    run(source, tmp_path / "fresh", "int8")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")


def test_static_scales_are_measured_once_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measured(ck: Checkpoint, modules: set[str], text: str, **place: object) -> dict[str, float]:
        assert place == {"device": "cpu", "lowering": None}
        calls.append(text)
        return {module: 0.25 + i for i, module in enumerate(sorted(modules))}

    monkeypatch.setattr(calibrate, "input_scales", measured)
    (tmp_path / "text.txt").write_text("some text")
    run(write(tmp_path / "src"), tmp_path / "out", "fp8-static", calibration=tmp_path / "text.txt")
    assert calls == ["some text"]
    found = read_linear(Checkpoint.open(tmp_path / "out"), "model.layers.0.mlp.down_proj")
    assert found.input_scale is not None and found.input_scale.item() == 0.25
    assert isinstance(found.weight, QTensor)
    assert torch.equal(found.weight.codes, expected_weight(tensors()[f"{DOWN}.weight"], scheme("fp8-static")).codes)


@pytest.mark.parametrize("name", ["fp8", "int8-w8a16", "int4-g32", "int4-asym-g32"])
def test_the_prediction_is_what_is_then_written(name: str, tmp_path: Path) -> None:
    source, out, policy = write(tmp_path / "src"), tmp_path / "out", Policy(scheme(name))
    predicted = predict(source, out, policy)
    assert not out.exists()
    report = quantize(source, out, policy, progress=False)
    assert (predicted.source_bytes, predicted.output_bytes) == (report.source_bytes, report.output_bytes)
    assert predicted.quantized == sum(module.quantized for module in report.modules)
    assert predicted.tensors == len(report.modules)
    assert predicted.bits_per_weight == pytest.approx(report.bits_per_weight, rel=1e-5)
    row = scheme(name)
    assert predicted.kernels == (backends.choose(row.weights, row.activations, "cpu").name,)


def test_the_prediction_of_a_cast_has_no_bits_per_weight(tmp_path: Path) -> None:
    predicted = predict(write(tmp_path / "src"), tmp_path / "out", Policy(scheme("bf16")))
    assert predicted.quantized == 0 and predicted.bits_per_weight is None
