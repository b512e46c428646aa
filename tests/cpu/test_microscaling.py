"""MXFP4, MXFP8 and NVFP4: bytes of compressed-tensors, values in transformers, products by the contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import isobit
from isobit.checkpoint.linear import module_tensors, read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.cli.main import main
from isobit.errors import IsobitError
from isobit.formats.codec import decode, power_scales, quantize_activations
from isobit.formats.schemes import scheme
from isobit.formats.table import element
from isobit.kernels import backends, reference
from isobit.kernels.widened import weight as as_kernels_take_it
from isobit.quantizer.grid import quantize_weight

SCHEMES = ("mxfp4", "mxfp4-w16", "mxfp8", "mxfp8-w16", "nvfp4", "nvfp4-w16")
WEIGHTS = ("mxfp4-w16", "mxfp8-w16", "nvfp4-w16")


def weights(n: int = 24, k: int = 128, seed: int = 0) -> Tensor:
    """Groups of every size, one of zeros, one with a single outlier, one that is tiny."""
    made = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).bfloat16()
    made *= torch.logspace(-6, 2, n)[:, None].bfloat16()
    made[3, :64] = 0
    made[5, 40] = 300.0
    return made


def compressed(name: str, w: Tensor) -> dict[str, Tensor]:
    """What compressed-tensors stores: its own observer rule, its own compressor."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    preset: QuantizationScheme = preset_name_to_scheme(scheme(name).aliases[0], ["Linear"])
    args = preset.weights
    groups = w.unflatten(-1, (-1, args.group_size))
    low, high = groups.amin(-1), groups.amax(-1)
    state = {"weight": w}
    over = None
    if name.startswith("nvfp4"):
        over = state["weight_global_scale"] = generate_gparam(low.amin(), high.amax())
    state["weight_scale"], _ = calculate_qparams(low, high, args, global_scale=over)
    stored = {"mxfp4-w16": "mxfp4-pack-quantized", "mxfp8-w16": "mxfp8-quantized", "nvfp4-w16": "nvfp4-pack-quantized"}
    found: dict[str, Tensor] = BaseCompressor.get_value_from_registry(stored[name]).compress(state, preset)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_first_scales_are_those_of_compressed_tensors(name: str, dtype: torch.dtype) -> None:
    w = weights().to(dtype)
    made = quantize_weight(w, scheme(name).weights, search="absmax", scale_dtype=torch.bfloat16)
    ours, theirs = module_tensors("m", made, activations=None), compressed(name, w)
    assert {part.removeprefix("m.") for part in ours} == theirs.keys()
    for part, tensor in theirs.items():
        assert (ours[f"m.{part}"].dtype, ours[f"m.{part}"].shape) == (tensor.dtype, tensor.shape), part
    pair = ours["m.weight_scale"], theirs["weight_scale"]
    found, wanted = (one.view(torch.uint8).int() for one in pair)
    differ = (found - wanted).abs()
    differ[3, : 64 // (128 // found.shape[1])] = 0  # a group of zeros has any scale
    # It divides the largest magnitude by six in the dtype of the weights, and we in float32.
    rounded_twice = name.startswith("nvfp4") and dtype == torch.bfloat16
    assert int(differ.max()) <= rounded_twice and float((differ > 0).float().mean()) < 0.1
    same = (differ == 0).repeat_interleave(128 // found.shape[1], dim=1)
    codes = [decode(part, scheme(name).weights.element) for part in (made.unpacked(), _codes(name, theirs))]
    assert bool((codes[0] == codes[1])[same].all())
    if "weight_global_scale" in theirs:
        assert torch.equal(ours["m.weight_global_scale"], theirs["weight_global_scale"])


def _codes(name: str, stored: dict[str, Tensor]) -> Tensor:
    if "weight" in stored:
        return stored["weight"].view(torch.uint8)
    return torch.stack([stored["weight_packed"] & 15, stored["weight_packed"] >> 4], dim=-1).flatten(-2)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_search_is_never_worse(name: str) -> None:
    w = weights(seed=3)
    spec = scheme(name).weights
    first, best = (quantize_weight(w, spec, search=how, scale_dtype=torch.bfloat16) for how in ("absmax", "mse"))
    errors = [(one.dequantize() - w.float()).square().view(24, -1, spec.group).sum(-1) for one in (first, best)]
    assert bool((errors[1] <= errors[0]).all())
    assert name == "mxfp8-w16" or bool((errors[1] < errors[0]).any())  # half of a power changes 8 bits little


@pytest.mark.parametrize("name", WEIGHTS)
def test_rows_and_columns_of_what_is_written(name: str, tmp_path: Path) -> None:
    made = quantize_weight(weights(), scheme(name).weights, search="mse", scale_dtype=torch.bfloat16)
    folder = _folder(tmp_path, name)
    ck = Checkpoint.open(folder)
    module = "model.layers.0.mlp.down_proj"
    whole = read_linear(ck, module).weight
    part = read_linear(ck, module, slice(8, 100), slice(64, 192)).weight
    assert torch.equal(part.dequantize(), whole.dequantize()[8:100, 64:192])
    assert torch.equal(read_linear(ck, module, mmap=True).weight.dequantize(), whole.dequantize())
    assert made.spec == whole.spec
    with pytest.raises(IsobitError, match="cut a group"):
        read_linear(ck, module, None, slice(8, 64))


def _folder(tmp_path: Path, name: str) -> Path:
    if not (tmp_path / "source").exists():
        tiny.save_model(tmp_path / "source")
    out = tmp_path / name
    text = tmp_path / "text.py"
    text.write_text("".join(f"def function_{i}(x):\n    return x * {i}\n" for i in range(200)))
    options = ["--calibration", str(text)] if name == "nvfp4" else []
    assert main(["quantize", str(tmp_path / "source"), "-s", name, "-q", "-o", str(out), *options]) == 0
    return out


@pytest.mark.parametrize("name", SCHEMES)
def test_models_run_and_transformers_has_the_same_weights(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    folder = _folder(tmp_path, name)
    model = isobit.load(folder)
    assert len(model.generate("def f(x):", max_tokens=3).token_ids) == 3
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    ck = Checkpoint.open(folder)
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        ours = read_linear(ck, module).weight.dequantize()
        found = theirs.get_submodule(module).weight.detach().float()
        assert float((ours - found).abs().max() / ours.abs().max()) < 4e-3, module  # it computes in bfloat16


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize("name", SCHEMES)
def test_products_are_those_of_the_codes(name: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    chosen = scheme(name)
    w = torch.randn(48, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    made = quantize_weight(w, chosen.weights, search="mse", scale_dtype=torch.bfloat16)
    assert torch.equal(as_kernels_take_it(made).dequantize(), made.dequantize())
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(2))
    over = torch.tensor([700.0]) if name == "nvfp4" else None
    bound = backends.bind(made, chosen.activations, over, None, device="cpu")
    assert bound.kernel.name == kernel
    inputs = x.double()
    if chosen.activations is not None:
        codes, scales = quantize_activations(x, chosen.activations, over)
        group = chosen.activations.group
        inputs = decode(codes, chosen.activations.element).double() * scales.double().repeat_interleave(group, -1)
    exact = inputs @ made.dequantize().double().t()
    assert float((bound.run(x) - exact).norm() / exact.norm()) < 5e-4
    plain = reference.linear(x, made.with_float_scales(), chosen.activations, over)
    assert float((plain - exact).norm() / exact.norm()) < 5e-4


@pytest.mark.parametrize("name", SCHEMES)
def test_a_row_is_the_same_among_any_number_of_others(name: str) -> None:
    chosen = scheme(name)
    w = torch.randn(70, 1280, generator=torch.Generator().manual_seed(1)).bfloat16()
    made = quantize_weight(w, chosen.weights, search="absmax", scale_dtype=torch.bfloat16)
    over = torch.tensor([700.0]) if name == "nvfp4" else None
    run = backends.bind(made, chosen.activations, over, None, device="cpu", alike=True).run
    x = torch.randn(33, 1280, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([run(x[at : at + 1]) for at in range(33)])
    for m in (2, 8, 17, 33):
        assert torch.equal(run(x[:m]), alone[:m]), m


def test_activations_are_rounded_as_compressed_tensors_does() -> None:
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(4)) * torch.logspace(-3, 3, 7)[:, None]
    for name, over in (("mxfp4", None), ("mxfp8", None), ("nvfp4", torch.tensor([2.5]))):
        spec = scheme(name).activations
        assert spec is not None
        args = preset_name_to_scheme(scheme(name).aliases[0], ["Linear"]).input_activations
        scales, zeros = compute_dynamic_scales_and_zp(x, args, torch.nn.Linear(2, 2), over)
        wanted = fake_quantize(x, scales, zeros, args, global_scale=over)
        codes, found = quantize_activations(x, spec, over)
        ours = decode(codes, spec.element) * found.repeat_interleave(spec.group, -1)
        assert torch.allclose(ours, wanted, rtol=1e-6, atol=0), name


@pytest.mark.parametrize("name", ["e2m1", "e4m3fn"])
def test_powers_of_two_at_every_edge(name: str) -> None:
    top = element(name).max
    offset = {"e2m1": 2, "e4m3fn": 8}[name]
    values = [1.0, 1.7499999, 1.75, 1.9999999, 2.0, 2.0**-90, 2.0**-127, 0.0, 3e38]
    found = power_scales(torch.tensor(values), element(name)).tolist()
    wanted = [0, 0, 1, 1, 1, -90, -100 + offset, -100 + offset, 128]
    assert found == [2.0 ** max(power - offset, -100) for power in wanted]
    assert top / 2**offset >= 1.5


def test_a_group_that_is_not_finite_gives_nan() -> None:
    x = torch.ones(2, 64)
    x[0, 3], x[1, 40] = float("inf"), float("nan")
    codes, scales = quantize_activations(x, scheme("mxfp4").activations)
    assert scales.isnan().tolist() == [[True, False], [False, True]]
    assert not codes[0, :32].any() and codes[0, 32:].all()


def test_what_is_written_says_what_it_is(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "nvfp4")
    group = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert group["format"] == "nvfp4-pack-quantized" and group["weights"]["strategy"] == "tensor_group"
    assert group["input_activations"]["dynamic"] == "local"
    stored = load_file(folder / "model.safetensors")
    assert float(stored["model.layers.0.mlp.up_proj.input_global_scale"]) > 0
    assert any(use.scheme == "nvfp4" for use in isobit.info(folder).schemes)


@pytest.mark.parametrize(
    ("name", "part", "number", "message"),
    [
        ("nvfp4-w16", "weight_global_scale", 1e-40, "must be positive"),
        ("nvfp4-w16", "weight_global_scale", -1.0, "must be positive"),
        ("nvfp4", "input_global_scale", 1e-40, "beyond float32"),
        ("nvfp4", "input_global_scale", -1.0, "positive number"),
        ("mxfp4-w16", "weight_scale", 254, "codes are beyond float32"),
        ("mxfp8-w16", "weight_scale", 254, "codes are beyond float32"),
        ("mxfp4-w16", "weight_scale", 255, "NaN or infinite scales"),
    ],
)
def test_scales_that_leave_float32_are_refused(
    tmp_path: Path, name: str, part: str, number: float, message: str
) -> None:
    folder = _folder(tmp_path, name)
    stored, module = load_file(folder / "model.safetensors"), "model.layers.0.mlp.up_proj"
    stored[f"{module}.{part}"].view(-1)[0] = number
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IsobitError, match=message):
        isobit.load(folder)


def test_a_weight_that_was_widened_is_not_given_rounding_under_few_bit_scales_by_gpus() -> None:
    pytest.importorskip("triton")
    from isobit.kernels.gpu.bind import bind
    from isobit.targets.table import TARGETS

    made = quantize_weight(weights(), scheme("mxfp8").weights, search="absmax", scale_dtype=torch.bfloat16)
    with pytest.raises(IsobitError, match="kernels take float scales"):
        bind(made, None, None, None, target=TARGETS["sm_90"])
