"""A damaged scale deep in a source that is quantized already: named, and nothing of the output is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model, save
from foreign_files import awq_gemm, gptq, random_codes
from hf_checkpoints import CONFIG, linears, tiny_model, write
from safetensors.torch import load_file, save_file
from test_bitsandbytes import EIGHT, FOUR, four_bits
from test_gguf_models import write_gguf
from test_gptq_awq import section
from test_hqq_quanto import hqq, quanto
from test_mlc import convert, tiny
from test_modelopt import grouped
from test_modelopt import parts_of as modelopt
from test_mxfp4_experts import SAID, tensors_and_model
from test_mxfp4_experts import write as write_experts
from test_torchao import KINDS
from test_torchao import parts_of as torchao
from torch import Tensor

import isobit
from isobit.checkpoint.gguf.model import opened
from isobit.errors import DamagedWeights

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A tool's layout.

    Attributes:
        make: parts of a module, of N, K and a seed.
        part: the one whose last number is destroyed.
        config: what config.json has besides.
        byte: what the last byte of it becomes; None: it becomes a NaN.
    """

    make: Callable[[int, int, int], Parts]
    part: str
    config: dict[str, Any]
    byte: int | None = None


def said(method: dict[str, Any]) -> dict[str, Any]:
    return {"quantization_config": method}


def of_integers(n: int, k: int, seed: int) -> Parts:
    return {"weight": torch.randint(-127, 128, (n, k)).to(torch.int8), "SCB": torch.full((n,), 0.1)}


CASES: dict[str, Case] = {
    "GPTQ": Case(lambda n, k, seed: gptq(random_codes(n, k, 4, 32, symmetric=True, seed=seed), 4), "scales",
                 {"dtype": "float16"} | said(section("gptq", sym=True))),
    "AWQ": Case(lambda n, k, seed: awq_gemm(random_codes(n, k, 4, 32, seed=seed)), "scales",
                {"dtype": "float16"} | said(section("awq"))),
    "bitsandbytes, 4 bits": Case(lambda n, k, seed: four_bits(n, k, nested=False, seed=seed)[0], "weight.absmax",
                                 said(FOUR)),
    "bitsandbytes, 8 bits": Case(of_integers, "SCB", said(EIGHT)),
    "HQQ": Case(lambda n, k, seed: hqq(n, k, seed=seed)[0], "scale", {}),
    "quanto": Case(lambda n, k, seed: quanto(n, k, seed=seed)[0], "weight._scale", {}),
    "torchao": Case(lambda n, k, seed: torchao("intx4", n, k, seed)[0], "_weight_scale", said(KINDS["intx4"][0])),
    "ModelOpt, NVFP4": Case(lambda n, k, seed: modelopt("NVFP4", n, k, seed)[0], "weight_scale",
                            said(grouped("NVFP4") | {"ignore": ["lm_h*"]}), 0x7F),
    "ModelOpt, MXFP8": Case(lambda n, k, seed: modelopt("MXFP8", n, k, seed)[0], "weight_scale",
                            said(grouped("MXFP8") | {"ignore": ["lm_h*"]}), 0xFF),
}  # fmt: skip


def destroy(tensor: Tensor, byte: int | None) -> None:
    """The last number becomes a NaN, or one that its last byte makes of it."""
    if byte is None:
        tensor.view(-1)[-1:].fill_(torch.nan)
    else:
        tensor.view(torch.uint8).view(-1)[-1:].fill_(byte)


def assert_refused(source: Path, out: Path, tensor: str) -> None:
    with pytest.raises(DamagedWeights) as caught:
        isobit.quantize(source, out, "int8", progress=False, from_quantized=True)
    assert tensor in str(caught.value) and not out.exists()


@pytest.mark.parametrize("name", CASES)
def test_of_other_tools(tmp_path: Path, name: str) -> None:
    case, dtype = CASES[name], torch.float16 if "dtype" in CASES[name].config else torch.bfloat16
    state = {name: tensor.to(dtype) for name, tensor in tiny_model(dtype).state_dict().items()}
    for number, module in enumerate(linears()):
        parts = {part: one.clone() for part, one in case.make(*state.pop(f"{module}.weight").shape, number).items()}
        if module == linears()[-1]:
            destroy(parts[case.part], case.byte)
        state |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    source = write(tmp_path / "source", CONFIG | case.config, state)
    assert_refused(source, tmp_path / "out", linears()[-1])


@pytest.mark.parametrize(
    ("scheme", "part", "byte"),
    [("int8", "weight_scale", None), ("int4-asym-g32", "weight_scale", None), ("fp8-block", "weight_scale", None),
     ("nvfp4-w16", "weight_scale", 0x7F), ("mxfp4-w16", "weight_scale", 0xFF)],
)  # fmt: skip
def test_of_compressed_tensors(tmp_path: Path, scheme: str, part: str, byte: int | None) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    source, module = tmp_path / "source", "model.layers.1.mlp.up_proj"
    isobit.quantize(save(make_model("LlamaForCausalLM", **sizes), tmp_path / "m"), source, scheme, progress=False)
    tensors = load_file(source / "model.safetensors")
    destroy(tensors[f"{module}.{part}"], byte)
    save_file(tensors, source / "model.safetensors")
    assert_refused(source, tmp_path / "out", module)


def test_of_mlc(tmp_path: Path) -> None:
    convert(tmp_path / "source", tiny(), "llama", "q4f16_1")
    path = tmp_path / "source" / "params_shard_1.bin"
    data, listed = path.read_bytes(), (tmp_path / "source" / "tensor-cache.json").read_text()
    name = "model.layers.1.self_attn.qkv_proj.q_scale"
    begin, size = (int(listed.partition(f'"{name}"')[2].partition(f'"{key}": ')[2].split("}")[0].split(",")[0])
                   for key in ("byteOffset", "nbytes"))  # fmt: skip
    path.write_bytes(data[: begin + size - 1] + b"\x7f" + data[begin + size :])
    assert_refused(tmp_path / "source", tmp_path / "out", "model.layers.1.self_attn")


def test_of_gpt_oss(tmp_path: Path) -> None:
    tensors, model = tensors_and_model()
    destroy(tensors["model.layers.1.mlp.experts.down_proj_scales"], 0xFF)
    source = write_experts(tmp_path / "source", tensors, {**model.config.to_dict(), "quantization_config": SAID})
    assert_refused(source, tmp_path / "out", "model.layers.1.mlp.experts")


@pytest.mark.parametrize(("kind", "size"), [("Q8_0", 34), ("Q4_1", 20)])
def test_of_llama_cpp(tmp_path: Path, kind: str, size: int) -> None:
    source = write_gguf(tmp_path / "m.gguf", make_model("LlamaForCausalLM"), "llama", kind)
    entry, data = opened(source).tensors["blk.1.ffn_up.weight"], bytearray(source.read_bytes())
    last = entry.begin + entry.nbytes - size  # its scale comes first
    data[last : last + 2] = b"\x00\x7e"
    source.write_bytes(data)
    assert_refused(source, tmp_path / "out", "blk.1.ffn_up.weight")
