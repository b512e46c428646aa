"""Checkpoints across tools: compressed-tensors' own are read bit for bit, ours load in transformers bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import linears, quantize_tiny, save_tiny, tiny_model

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import Scheme, scheme

pytest.importorskip("compressed_tensors")
pytestmark = pytest.mark.filterwarnings("ignore:You passed .quantization_config.:UserWarning")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
OURS = (
    "fp8", "fp8-w8a16", "int8", "int8-w8a16", "int4", "int4-g32", "w4a8", "int3-g32", "int2", "fp8-static", "fp8-block",
)  # fmt: skip
KEPT: dict[str, Scheme | None] = {"lm_head": None, "model.embed_tokens": None}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {name: save_tiny(root / name, dtype) for name, dtype in DTYPES.items()}


def load(folder: Path, dequantize: bool = False) -> Any:
    """Loads with transformers; decompressed, either by the loader or by the first forward pass."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    config = CompressedTensorsConfig(dequantize=dequantize)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=config)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    return model


def assert_weights(model: Any, expected: dict[str, QTensor]) -> None:
    for module, qt in expected.items():
        found = model.get_submodule(module).weight
        assert torch.equal(found, qt.dequantize().to(found.dtype)), module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OURS)
def test_transformers_loads_ours_bit_for_bit(tmp_path: Path, sources: dict[str, Path], name: str, dtype: str) -> None:
    ours = quantize_tiny(sources[dtype], tmp_path, dict.fromkeys(linears(), scheme(name)) | KEPT)
    model = load(tmp_path)
    assert model.dtype == DTYPES[dtype]
    assert_weights(model, ours)


def test_transformers_loads_zero_points(tmp_path: Path, sources: dict[str, Path]) -> None:
    ours = quantize_tiny(sources["bfloat16"], tmp_path, dict.fromkeys(linears(), scheme("int4-asym-g64")) | KEPT)
    assert_weights(load(tmp_path, dequantize=True), ours)
    # Without dequantize, compressed-tensors 0.20 expects unpacked zero points and refuses its own checkpoints too
    # (test_reads_what_compressed_tensors_writes); vLLM wants them packed, as they are.
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(tmp_path)


def test_transformers_loads_mixed_schemes_lm_head_and_embeddings(tmp_path: Path, sources: dict[str, Path]) -> None:
    assigned: dict[str, Scheme | None] = dict.fromkeys(linears(), scheme("int4-g32"))
    assigned |= {module: scheme("fp8") for module in linears() if "down_proj" in module}
    assigned |= {module: scheme("int8") for module in linears() if "layers.1.self_attn" in module}
    assigned["model.layers.0.self_attn.o_proj"] = None
    assigned |= {"lm_head": scheme("int8-w8a16"), "model.embed_tokens": scheme("fp8-w8a16")}
    ours = quantize_tiny(sources["bfloat16"], tmp_path, assigned)
    assert len(ours) == len(linears()) + 1
    assert_weights(load(tmp_path), ours)
    ck = Checkpoint.open(tmp_path)
    for module, chosen in assigned.items():
        found = read_linear(ck, module)
        if chosen is None:
            assert isinstance(found.weight, torch.Tensor)
        else:
            assert isinstance(found.weight, QTensor) and found.weight.spec == chosen.weights
            assert found.activations == chosen.activations


def test_transformers_loads_packed_embeddings(tmp_path: Path, sources: dict[str, Path]) -> None:
    ours = quantize_tiny(sources["bfloat16"], tmp_path, {"model.embed_tokens": scheme("int4-g32"), "lm_head": None})
    assert_weights(load(tmp_path, dequantize=True), ours)
    # Without dequantize, transformers 5.23 initializes the weight of every embedding, and a packed one has none.
    with pytest.raises(AttributeError, match="'Embedding' object has no attribute 'weight'"):
        load(tmp_path)


def test_lm_head_under_the_same_scheme(tmp_path: Path, sources: dict[str, Path]) -> None:
    assigned = dict.fromkeys([*linears(), "lm_head"], scheme("fp8"))
    ours = quantize_tiny(sources["bfloat16"], tmp_path, assigned)
    assert "lm_head" in ours
    assert_weights(load(tmp_path), ours)


@pytest.mark.parametrize("dequantize", [False, True])
def test_transformers_refuses_e5m2_instead_of_converting_it(
    tmp_path: Path, sources: dict[str, Path], dequantize: bool
) -> None:
    ours = quantize_tiny(sources["bfloat16"], tmp_path, dict.fromkeys(linears(), scheme("fp8-e5m2")) | KEPT)
    with pytest.raises(ValueError, match="'float8_e5m2' is not a valid QuantizationType"):
        load(tmp_path, dequantize)
    ck = Checkpoint.open(tmp_path)
    for module, qt in ours.items():
        found = read_linear(ck, module)
        assert isinstance(found.weight, QTensor) and torch.equal(found.weight.dequantize(), qt.dequantize())
        assert found.activations == scheme("fp8-e5m2").activations


# ---------------------------------------------------------------------- the other way


def extremes(weight: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest weight of everything that shares a scale."""
    n, k = weight.shape
    if args.strategy == "group":
        parts = weight.view(n, -1, args.group_size)
        return parts.amin(-1), parts.amax(-1)
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "block":
        rows, columns = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -k % columns, 0, -n % rows))
        parts = padded.view(padded.shape[0] // rows, rows, -1, columns)
        return parts.amin((1, 3)), parts.amax((1, 3))
    return weight.amin().reshape(1), weight.amax().reshape(1)


def compress(folder: Path, groups: dict[str, Any], **model: Any) -> dict[str, torch.Tensor]:
    """Quantizes and saves a tiny model with compressed-tensors' own API; returns its decompressed weights."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    tiny = tiny_model(**model)
    apply_quantization_config(tiny, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    for module in tiny.modules():
        args = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if args is None:
            continue
        # They keep the ends of a range between calls; where the first call stood in inference mode (another test's,
        # in this process), autograd refuses those ends in a formula of its own.
        with torch.no_grad():
            scale, zero = calculate_qparams(*extremes(module.weight.float(), args), args)
        module.weight_scale.data.copy_(scale)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero)
        if hasattr(module, "input_scale"):
            module.input_scale.data.fill_(0.03125)
    compressor = ModelCompressor.from_pretrained_model(tiny)
    compressor.compress_model(tiny)
    tiny.save_pretrained(folder)
    compressor.update_config(str(folder))
    compressor.decompress_model(tiny)
    return {name: tiny.get_submodule(name).weight.detach() for name in linears()}


def preset(name: str, targets: list[str], group: int | None = None, bits: int | None = None) -> Any:
    from compressed_tensors.quantization import preset_name_to_scheme

    made = preset_name_to_scheme(name, targets)
    if group:
        made.weights.group_size = group
    if bits:
        made.weights.num_bits = bits
    return made


THEIRS = {  # ours: their preset, group size, bits
    "fp8": ("FP8_DYNAMIC", None, None),
    "fp8-static": ("FP8", None, None),
    "fp8-block": ("FP8_BLOCK", None, None),
    "int8": ("W8A8", None, None),
    "int4": ("W4A16", None, None),
    "int4-g32": ("W4A16", 32, None),
    "w4a8": ("W4A8", None, None),  # a byte per code
    "w4a8-g32": ("W4A8", 32, None),
    "int4-asym": ("W4A16_ASYM", None, None),
    "int4-asym-g32": ("W4A16_ASYM", 32, None),
    "int3-g32": ("W4A16", 32, 3),
    "int2": ("W4A16", 32, 2),
    "int8-w8a16-g128": ("W8A16", None, None),
}


@pytest.mark.parametrize("group", [None, 32])
def test_widens_8_bits_with_zero_points(tmp_path: Path, group: int | None) -> None:
    made = preset("W4A16_ASYM", ["Linear"], group, 8)
    if group is None:
        made.weights.group_size, made.weights.strategy = None, "channel"
    weights = compress(tmp_path, {"g": made}, dtype=torch.bfloat16)
    ck = Checkpoint.open(tmp_path)
    for module, expected in weights.items():
        found = read_linear(ck, module)
        assert isinstance(found.weight, torch.Tensor) and torch.equal(found.weight, expected), module
        part = read_linear(ck, module, slice(3, 9), None if group is None else slice(32, 96)).weight
        assert isinstance(part, torch.Tensor)
        assert torch.equal(part, expected[3:9] if group is None else expected[3:9, 32:96])
    assert any("8-bit integers with zero points" in note for note in ck.notes)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_compressed_tensors_writes(tmp_path: Path, name: str, dtype: str) -> None:
    theirs, group, bits = THEIRS[name]
    weights = compress(tmp_path, {"g": preset(theirs, ["Linear"], group, bits)}, dtype=DTYPES[dtype])
    ck, ours = Checkpoint.open(tmp_path), scheme(name)
    used = set()
    for module, expected in weights.items():
        found = read_linear(ck, module)
        assert isinstance(found.weight, QTensor) and found.weight.spec == ours.weights
        assert torch.equal(found.weight.dequantize().to(expected.dtype), expected), module
        assert found.activations == ours.activations
        assert (found.input_scale is not None) == ours.needs_calibration
        used |= set(found.names)
    assert {tensor for tensor in ck.tensors if "_proj." in tensor} == used
    assert isinstance(read_linear(ck, "lm_head").weight, torch.Tensor)


def test_reads_mixed_precision_of_compressed_tensors(tmp_path: Path) -> None:
    groups = {
        "a": preset("W4A16", [r"re:.*mlp\.(gate|up)_proj$"], 32),
        "b": preset("FP8_DYNAMIC", ["re:.*self_attn.*"]),
        "c": preset("W8A8", ["re:.*down_proj"]),
    }
    weights = compress(tmp_path, groups)
    ck = Checkpoint.open(tmp_path)
    assert ck.quantization is not None and ck.quantization.format == "mixed-precision"
    for module, expected in weights.items():
        found = read_linear(ck, module)
        assert isinstance(found.weight, QTensor)
        name = "fp8" if "self_attn" in module else "int8" if "down_proj" in module else "int4-g32"
        assert (found.weight.spec, found.activations) == (scheme(name).weights, scheme(name).activations)
        assert torch.equal(found.weight.dequantize().to(expected.dtype), expected), module
