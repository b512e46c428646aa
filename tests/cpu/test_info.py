"""What `isobit info` says about checkpoints: ours, plain ones, and those of other tools."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from isobit.checkpoint import ctrender, linear
from isobit.checkpoint.reader import Checkpoint
from isobit.cli import info as command
from isobit.errors import CheckpointError
from isobit.evaluation.info import CheckpointInfo, describe
from isobit.formats.schemes import scheme
from isobit.quantizer.grid import quantize_weight

N, K = 96, 640


def write(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def plain_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(50, K, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(K, dtype=torch.bfloat16),
        "lm_head.weight": torch.randn(50, K, generator=generator).bfloat16(),
    }


def quantized(folder: Path, assignments: dict[str, str]) -> Path:
    """A checkpoint whose modules are quantized as named, in our own layout."""
    tensors = plain_tensors()
    rows = {module: scheme(name) for module, name in assignments.items()}
    generator = torch.Generator().manual_seed(1)
    for module, row in rows.items():
        assert row.weights is not None
        dtype = torch.float32 if row.weights.granularity in ("tensor", "block") else torch.bfloat16
        qt = quantize_weight(torch.randn(N, K, generator=generator), row.weights, search="absmax", scale_dtype=dtype)
        static = row.activations is not None and not row.activations.dynamic
        tensors |= linear.module_tensors(
            module, qt, activations=row.activations, input_scale=torch.tensor([0.5]) if static else None
        )
    return write(folder, tensors, quantization_config=ctrender.render(rows | {"lm_head": None}))


def uses(found: CheckpointInfo) -> dict[tuple[str, str], tuple[int, int]]:
    return {(use.kind, use.scheme): (use.modules, use.weights) for use in found.schemes}


ALL = (
    "fp8",
    "fp8-static",
    "fp8-block",
    "fp8-w8a16",
    "int8",
    "int8-w8a16",
    "int4",
    "int4-g32",
    "int4-asym",
    "w4a8",
    "int3",
    "int2",
)


@pytest.mark.parametrize("name", [*ALL, "int4-g64", "w4a8-g32", "fp8-e5m2"])
def test_each_scheme_is_recognised_with_its_bits(tmp_path: Path, name: str) -> None:
    path = quantized(tmp_path, {"model.layers.0.mlp.up_proj": name, "model.layers.0.mlp.gate_proj": name})
    found = describe(path)
    assert uses(found)["linear", name] == (2, 2 * N * K)
    assert found.parameters == 2 * N * K + 2 * 50 * K + K
    row = scheme(name)
    owned = [t for t in found.tensors if "up_proj" in t.name]
    assert found.linear_bits_per_weight == 8 * sum(t.nbytes for t in owned) / (N * K)
    # The shape of a packed weight (16 bytes), and the scale of static activations (4), are all there is besides.
    assert found.linear_bits_per_weight == pytest.approx(row.bits_per_weight(N, K), abs=8 * 20 / (N * K))
    assert found.notes == ()


def test_mixed_schemes_are_told_apart(tmp_path: Path) -> None:
    names = {
        "model.layers.0.mlp.up_proj": "int4",
        "model.layers.0.mlp.down_proj": "fp8",
        "model.layers.1.mlp.up_proj": "int4",
    }
    found = describe(quantized(tmp_path, names))
    assert uses(found) == {
        ("linear", "int4"): (2, 2 * N * K),
        ("linear", "fp8"): (1, N * K),
        ("embedding", "bf16"): (1, 50 * K),
        ("lm_head", "bf16"): (1, 50 * K),
        ("other", "bf16"): (1, K),
    }
    assert {use.dtype for use in found.dtypes} == {"BF16", "I32", "I64", "F8_E4M3"}
    assert sum(use.nbytes for use in found.dtypes) == sum(use.nbytes for use in found.schemes)
    assert sum(use.tensors for use in found.dtypes) == len(found.tensors)


def test_a_plain_checkpoint(tmp_path: Path) -> None:
    found = describe(
        write(tmp_path, plain_tensors() | {"model.layers.0.mlp.up_proj.weight": torch.zeros(N, K, dtype=torch.float16)})
    )
    assert uses(found)["linear", "f16"] == (1, N * K)
    assert (found.quantization, found.linear_bits_per_weight, found.architecture) == (None, 16.0, "LlamaForCausalLM")
    assert found.file_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_narrow_codes_stored_one_per_byte(tmp_path: Path) -> None:
    tensors = plain_tensors() | {
        "model.layers.0.mlp.up_proj.weight": torch.zeros(N, K, dtype=torch.int8),
        "model.layers.0.mlp.up_proj.weight_scale": torch.ones(N, K // 128, dtype=torch.bfloat16),
    }
    config = ctrender.render({"model.layers.0.mlp.up_proj": scheme("w4a8")})
    config["format"] = config["config_groups"]["group_0"]["format"] = "int-quantized"
    found = describe(write(tmp_path, tensors, quantization_config=config))
    assert uses(found)["linear", "w4a8"] == (1, N * K)
    assert found.linear_bits_per_weight == 8 + 16 / 128  # what is on disk


def test_block_scaled_fp8_as_deepseek_writes_it(tmp_path: Path) -> None:
    weight = torch.randn(N, K).to(torch.float8_e4m3fn)
    tensors = plain_tensors() | {
        "model.layers.0.mlp.up_proj.weight": weight,
        "model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 5),
    }
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    found = describe(write(tmp_path, tensors, quantization_config=config))
    assert uses(found)["linear", "fp8-block"] == (1, N * K)
    assert found.quantization == "fp8"


def test_gptq_is_described_by_the_scheme_that_it_is_held_as(tmp_path: Path) -> None:
    prefix = "model.layers.0.mlp.up_proj"
    tensors = plain_tensors() | {
        f"{prefix}.qweight": torch.zeros(K // 8, N, dtype=torch.int32),
        f"{prefix}.qzeros": torch.zeros(K // 128, N // 8, dtype=torch.int32),
        f"{prefix}.scales": torch.zeros(K // 128, N, dtype=torch.float16),
        f"{prefix}.g_idx": torch.zeros(K, dtype=torch.int32),
    }
    found = describe(
        write(tmp_path, tensors, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    )
    assert uses(found)["linear", "int4"] == (1, N * K)
    assert found.quantization == "gptq"


def test_nvfp4_and_mxfp4_are_counted_two_to_a_byte(tmp_path: Path) -> None:
    tensors = plain_tensors() | {
        "model.layers.0.mlp.up_proj.weight_packed": torch.zeros(N, K // 2, dtype=torch.uint8),
        "model.layers.0.mlp.up_proj.weight_scale": torch.zeros(N, K // 16).to(torch.float8_e4m3fn),
        "model.layers.0.mlp.up_proj.weight_global_scale": torch.ones(1),
        "model.layers.0.mlp.experts.gate_up_proj_blocks": torch.zeros(4, N, K // 32, 16, dtype=torch.uint8),
        "model.layers.0.mlp.experts.gate_up_proj_scales": torch.zeros(4, N, K // 32, dtype=torch.uint8),
    }
    found = uses(describe(write(tmp_path, tensors)))
    assert found["linear", "nvfp4"] == (1, N * K)
    assert found["linear", "mxfp4-w16"] == (1, 4 * N * K)


def test_quantized_tensors_without_a_config_are_described_by_their_shapes(tmp_path: Path) -> None:
    tensors = plain_tensors() | {
        "model.layers.0.a_proj.weight": torch.zeros(N, K).to(torch.float8_e4m3fn),
        "model.layers.0.a_proj.weight_scale": torch.ones(N, 1),
        "model.layers.0.b_proj.weight": torch.zeros(N, K, dtype=torch.int8),
        "model.layers.0.b_proj.weight_scale": torch.ones(N, K // 80),
    }
    found = uses(describe(write(tmp_path, tensors)))
    assert ("linear", "fp8-w8a16") in found  # nothing says that activations are rounded
    assert ("linear", "int8-w8a16-g80") in found


def test_zero_points_of_formats_that_have_none_are_described_by_dtypes(tmp_path: Path) -> None:
    """As integers of 8 bits with zero points, and floats with a stray one: no scheme of isobit's, and no failure."""
    tensors = plain_tensors()
    for name, dtype in (("a_proj", torch.int8), ("b_proj", torch.float8_e4m3fn)):
        prefix = f"model.layers.0.{name}"
        tensors |= {
            f"{prefix}.weight": torch.zeros(N, K).to(dtype),
            f"{prefix}.weight_scale": torch.ones(N, 1),
            f"{prefix}.weight_zero_point": torch.zeros(N, 1, dtype=torch.int8),
        }
    found = uses(describe(write(tmp_path, tensors)))
    assert found["linear", "i8 with scales"] == found["linear", "f8_e4m3 with scales"] == (1, N * K)


def test_what_is_described_only_is_refused_by_name_when_it_is_read(tmp_path: Path) -> None:
    stack = {f"m.stack_{part}": torch.zeros(2, 8, 8, dtype=torch.uint8) for part in ("blocks", "scales")}
    ck = Checkpoint.open(write(tmp_path, plain_tensors() | stack))
    with pytest.raises(CheckpointError, match=r"'m\.stack_blocks'.*the way of MXFP4 blocks.*does not read"):
        linear.read_linear(ck, "m.stack")


def test_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = quantized(tmp_path, {"model.layers.0.mlp.up_proj": "int4"})
    read = []
    original = Checkpoint.read

    def noting(self: Checkpoint, name: str, **options: Any) -> Tensor:
        read.append(name)
        return original(self, name, **options)

    monkeypatch.setattr(Checkpoint, "read", noting)
    describe(path)
    assert read == [f"model.layers.0.mlp.up_proj.{part}" for part in ("weight_shape", "weight_scale")]


# ---------------------------------------------------------------------- the command


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["info", *argv])
    return int(args.run(args))


def test_the_command_prints_text_and_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = quantized(tmp_path, {"model.layers.0.mlp.up_proj": "int4"})
    assert run(str(path)) == 0
    short = capsys.readouterr().out
    assert "int4" in short and "compressed-tensors (pack-quantized)" in short and "weight_packed" not in short
    assert run(str(path), "--tensors") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(short.rstrip("\n"))
    assert "model.layers.0.mlp.up_proj.weight_packed" in shown and f"{N}x{K // 8}" in shown


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = quantized(tmp_path, {"model.layers.0.mlp.up_proj": "int3"})
    run(str(path), "--json")
    short = json.loads(capsys.readouterr().out)
    assert short["architecture"] == "LlamaForCausalLM" and "tensors" not in short
    run(str(path), "--json", "--tensors")
    assert {row["name"] for row in json.loads(capsys.readouterr().out)["tensors"]} >= {"lm_head.weight"}


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, plain_tensors())
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        describe(path)
