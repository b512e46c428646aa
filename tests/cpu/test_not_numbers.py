"""NaN and infinity among weights and scales: named by file and tensor wherever a checkpoint is met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_writer import LLAMA, LLAMA_SHAPES, Raw, gguf, write
from hf_checkpoints import CONFIG, linears, quantize_tiny, tiny_model
from hf_checkpoints import write as write_folder
from safetensors.torch import load_file
from test_gguf_plans import model as blocks_model

import isobit
from isobit.checkpoint.finite import Place, look
from isobit.checkpoint.gguf.model import opened
from isobit.checkpoint.gguf.types import BY_NAME
from isobit.errors import CheckpointError, IsobitError
from isobit.formats import codec
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.formats.table import ELEMENTS
from isobit.legalize.advice import recommendation
from isobit.models.planning import plans
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize


def refused(path: Path, out: Path, name: str) -> None:
    """That loading, quantizing and describing a model name a tensor of it."""
    with pytest.raises(CheckpointError, match=f"{name}.*NaN or infinite numbers"):
        load_model(path)
    with pytest.raises(CheckpointError, match=f"{name}.*(NaN|infinite)"):
        quantize(path, out, Policy(scheme("int8")), progress=False)
    assert f"NaN or infinite weights in {name}: isobit does not load this" in isobit.info(path).notes


@pytest.mark.parametrize(
    ("tensor", "dtype", "value"),
    [("blk.0.ffn_down.weight", "float32", float("nan")), ("blk.0.attn_q.weight", "bfloat16", float("inf")),
     ("token_embd.weight", "float16", float("-inf"))],
)  # fmt: skip
def test_plain_weights_of_gguf(tmp_path: Path, tensor: str, dtype: str, value: float) -> None:
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    tensors = []
    for name, shape in LLAMA_SHAPES.items():
        numbers = torch.full(shape, 0.5, dtype=getattr(torch, dtype) if len(shape) > 1 else torch.float32)
        if name == tensor:
            numbers[5, 7] = value
        row = BY_NAME[kind if len(shape) > 1 else "F32"]
        tensors.append(Raw(name, row.number, shape[::-1], bytes(numbers.view(torch.uint8).numpy())))
    path = write(tmp_path / "m.gguf", gguf(LLAMA, tensors))
    refused(path, tmp_path / "out", tensor)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bfloat16, "safetensors"), (torch.float16, "safetensors"), (torch.float32, "bin")]
)
def test_plain_weights_of_folders(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    made = tiny_model(dtype)
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        made.get_parameter(name)[3, 4] = float("nan")
    made.save_pretrained(tmp_path / "model")
    if kind == "bin":
        tensors = load_file(tmp_path / "model/model.safetensors")
        (tmp_path / "model/model.safetensors").unlink()
        torch.save(tensors, tmp_path / "model/pytorch_model.bin")
    refused(tmp_path / "model", tmp_path / "out", name)


@pytest.mark.parametrize("name", ["fp8", "fp8-e5m2"])
def test_codes_that_are_no_numbers(tmp_path: Path, name: str) -> None:
    tiny_model(torch.float32).save_pretrained(tmp_path / "plain")
    quantize_tiny(tmp_path / "plain", tmp_path / "model", dict.fromkeys(linears(CONFIG), scheme(name)))
    config = (tmp_path / "model/config.json").read_text()
    tensors, tensor = load_file(tmp_path / "model/model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors[tensor].view(torch.uint8)[1, 2] = 0xFF
    write_folder(tmp_path / "model", {}, tensors)
    (tmp_path / "model/config.json").write_text(config)
    with pytest.raises(CheckpointError, match=f"{tensor}.*holds codes of e[45]m[23](fn)? that mean NaN or infinity"):
        load_model(tmp_path / "model")
    assert any(f"NaN or infinite weights in {tensor}" in note for note in isobit.info(tmp_path / "model").notes)


@pytest.mark.parametrize("name", ["int4-g32", "mxfp4-w16"])
def test_plans_of_what_lies_here_look_at_scales(tmp_path: Path, name: str) -> None:
    tiny_model(torch.float32).save_pretrained(tmp_path / "plain")
    quantize_tiny(tmp_path / "plain", tmp_path / "model", dict.fromkeys(linears(CONFIG), scheme(name)))
    config = (tmp_path / "model/config.json").read_text()

    def notes() -> str:
        work, ((plan,),) = plans(tmp_path / "model", targets=["cpu-avx2"])
        said = recommendation([plan])
        assert said.endswith("is what the checkpoint holds.")
        assert said.startswith("The weights that lie here are not loaded as they are") == ("NaN" in str(work.notes))
        return "\n".join(work.notes)

    assert "NaN" not in notes()
    tensors, tensor = load_file(tmp_path / "model/model.safetensors"), "model.layers.1.mlp.up_proj.weight_scale"
    scale = tensors[tensor].view(torch.uint8)
    scale[-1, -(tensors[tensor].element_size()) :] = 0xFF
    write_folder(tmp_path / "model", {}, tensors)
    (tmp_path / "model/config.json").write_text(config)
    assert f"NaN or infinite scales in {tensor}: isobit does not load this" in notes()
    assert tensor in " ".join(isobit.info(tmp_path / "model").notes)
    with pytest.raises(IsobitError, match="NaN or infinite scales"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "TQ2_0", "MXFP4"])  # test_gguf_types holds where scales lie in all
def test_scales_in_blocks(tmp_path: Path, name: str) -> None:
    row = BY_NAME[name]
    path = blocks_model(tmp_path / "m.gguf", name)
    right = path.read_bytes()
    work, _ = plans(path, targets=["cpu-avx2"])
    assert "NaN" not in " ".join((*work.notes, *isobit.info(path).notes))
    for offset in row.halves:
        entry = opened(path).tensors["blk.0.ffn_down.weight"]
        at = entry.begin + entry.nbytes - row.nbytes + offset  # of the last block
        path.write_bytes(right[:at] + b"\x00\xfc" + right[at + 2 :])
        work, _ = plans(path, targets=["cpu-avx2"])
        said = "in blk.0.ffn_down.weight: isobit does not load this"
        assert any(f"NaN or infinite scales and the codes between them {said}" in note for note in work.notes)
        assert f"NaN or infinite weights {said}" in isobit.info(path).notes
        with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_down\.weight.*NaN or infinite scales"):
            load_model(path)
        path.write_bytes(right)


def test_no_more_is_looked_at_than_is_said(tmp_path: Path) -> None:
    numbers = np.zeros(1000, np.float16)
    numbers[600] = np.inf
    file = tmp_path / "x"
    file.write_bytes(bytes(3) + numbers.tobytes())
    place = Place("x", file, 3, 2000, "F16", 2)
    assert look([place, None], 1 << 20).names == ("x",) and look([place], 1202).names == ("x",)
    part = look([place], 1201)
    assert (part.names, part.looked, part.left) == ((), 1200, 800)
    assert "NaN was looked for in the first 0 MiB of scales, and not in 0 MiB" in part.said("scales")[0]
    every_tenth = Place("x", file, 3, 2000, "F16", 20, (0, 18))
    assert look([every_tenth], 1 << 20).names == ("x",)
    assert look([Place("x", file, 3, 2000, "F16", 20, (2, 18))], 1 << 20).names == ()
    with pytest.raises(CheckpointError, match="was cut off"):
        look([Place("x", file, 1301, 4000, "F16", 2)], 1 << 20)


@pytest.mark.parametrize("name", [name for name, row in ELEMENTS.items() if row.bits == 8])
def test_codes_of_nan_and_infinity(name: str) -> None:
    row = ELEMENTS[name]
    for code in row.codes:
        codes = torch.zeros(2, 3, dtype=codec.code_dtype(row))
        codes[1, 1] = code
        signed = row.kind == "float" and row.sign_bit > 0
        assert codec.any_not_finite(codes, name) == (signed and not np.isfinite(row.decode(code)))
