"""What plans and info say of every type of GGUF: the bytes that a weight takes are those that are held."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_writer import LLAMA, Raw, gguf, write

import isobit
from isobit.checkpoint.gguf.types import BY_NAME, READ
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError
from isobit.formats.qtensor import QTensor
from isobit.legalize.advice import recommendation
from isobit.models.contents import contents

H, F, VOCAB = 512, 768, 40
WHOLE = {"token_embd.weight": (VOCAB, H), "output_norm.weight": (H,), "output.weight": (VOCAB, H),
         "blk.0.attn_norm.weight": (H,), "blk.0.ffn_norm.weight": (H,)}  # fmt: skip
MATRICES = {"attn_q": (H, H), "attn_k": (H, H), "attn_v": (H, H), "attn_output": (H, H), "ffn_gate": (F, H),
            "ffn_up": (F, H), "ffn_down": (H, F)}  # fmt: skip
MODULES = [f"model.layers.0.{name}" for name in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
)]  # fmt: skip
KEYS = {"embedding_length": H, "feed_forward_length": F, "attention.head_count": 8, "attention.head_count_kv": 8}
NONE: Mapping[str, int] = MappingProxyType({})
COUNT = sum(math.prod(shape) for shape in MATRICES.values())


def model(path: Path, name: str, left_out: str | None = None, keys: Mapping[str, int] = NONE) -> Path:
    """A Llama whose matrices are of some type, and all zero; its other tensors are float32. One may be left out."""
    row = BY_NAME[name]
    tensors = [Raw(part, 0, shape[::-1], bytes(4 * math.prod(shape))) for part, shape in WHOLE.items()]
    for part, shape in MATRICES.items():
        size = math.prod(shape) // row.weights * row.nbytes
        tensors.append(Raw(f"blk.0.{part}.weight", row.number, shape[::-1], bytes(size)))
    tensors = [one for one in tensors if one.name != left_out]
    return write(path, gguf(LLAMA | {f"llama.{key}": value for key, value in (KEYS | keys).items()}, tensors))


@pytest.mark.parametrize("name", READ)
def test_bytes_of_weights(tmp_path: Path, name: str) -> None:
    path, row = model(tmp_path / "m.gguf", name), BY_NAME[name]
    weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    assert isobit.info(path).linear_bits_per_weight == pytest.approx(8 * nbytes / weights)
    checkpoint = Checkpoint.open(path)
    reads = [read_linear(checkpoint, module).weight for module in MODULES]
    held = sum(one.nbytes if isinstance(one, QTensor) else one.numel() * one.element_size() for one in reads)
    table, head = (read_linear(checkpoint, module).weight for module in ("model.embed_tokens", "lm_head"))
    assert table.dtype == head.dtype == torch.float32  # as a CPU runs them; GPUs have them in the model's dtype
    others = {"cpu-avx2": 4, "a100": 2}
    planned = {}
    for target in ("cpu-avx2", "a100"):
        _, ((plan,),) = isobit.plan(path, targets=[target])
        planned[target] = plan.memory.weights - others[target] * sum(math.prod(shape) for shape in WHOLE.values())
        (up,) = (op for op, _ in plan.ops if op.name == "mlp.up_proj")
        assert up.weights == row.held
        assert up.weights is None or up.scale_dtype == row.scale == str(reads[0].scale.dtype).removeprefix("torch.")
    beside = 16 * len(MODULES)  # isobit writes a shape beside packed codes
    assert planned["cpu-avx2"] == pytest.approx(held, abs=beside)
    # What is widened is rounded to the model's dtype on a GPU: a note says so.
    assert planned["a100"] == pytest.approx(held if row.held else 2 * COUNT, abs=beside)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_held_as_float32_is_not_said_to_be_widened(tmp_path: Path, tied: bool) -> None:
    """Q4_K is made float32 on a CPU, table and head included, whether the head is the table or not."""
    row, shapes = BY_NAME["Q4_K"], {"token_embd": (VOCAB, H)} | ({} if tied else {"output": (VOCAB, H)})
    shapes |= {f"blk.0.{part}": shape for part, shape in MATRICES.items()}
    tensors = [
        Raw(f"{one}.weight", 0, (H,), bytes(4 * H)) for one in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    ]
    for part, shape in shapes.items():
        size = math.prod(shape) // row.weights * row.nbytes
        tensors.append(Raw(f"{part}.weight", row.number, shape[::-1], bytes(size)))
    path = write(tmp_path / "m.gguf", gguf(LLAMA | {f"llama.{key}": value for key, value in KEYS.items()}, tensors))
    _, ((plan,),) = isobit.plan(path, targets=["cpu-avx2"])
    held = {op.name: op.w for op, _ in plan.ops if op.kind != "attention"}
    assert len(held) == 9 and set(held.values()) == {"float32"}
    assert not any("in registers" in getattr(decision, "how", "") for _, decision in plan.ops)
    assert "widened in registers" not in recommendation([plan])


@pytest.mark.parametrize(("name", "scheme"), [("MXFP4", "mxfp4-w16"), ("Q4_K", "q4_k"), ("NVFP4", "nvfp4-w16")])
def test_info_names_weights_as_what_they_are(tmp_path: Path, name: str, scheme: str) -> None:
    """Activations are not rounded, and so names of schemes in which they are would be wrong."""
    info = isobit.info(model(tmp_path / "m.gguf", name))
    assert {use.scheme for use in info.schemes if use.kind == "linear"} == {scheme}
    wide = [note for note in info.notes if "made float32" in note]
    assert bool(wide) == (BY_NAME[name].held is None)
    assert all("a GPU takes them rounded to the model's dtype" in note for note in wide)


@pytest.mark.parametrize("name", ["Q8_0", "F16"])
@pytest.mark.parametrize(
    ("left_out", "key", "value", "said"),
    [
        ("blk.0.ffn_down.weight", None, 0, "blk.0.ffn_down.weight"),
        ("output_norm.weight", None, 0, "output_norm.weight"),
        (None, "feed_forward_length", F + 256, "blk.0.ffn_gate.weight"),
        (None, "attention.head_count_kv", 4, "blk.0.attn_k.weight"),
        (None, "attention.key_length", 32, "blk.0.attn_q.weight"),
        (None, "block_count", 2, "blk.1."),
    ],
)
def test_a_file_that_does_not_load_is_not_planned(
    tmp_path: Path, name: str, left_out: str | None, key: str | None, value: int, said: str
) -> None:
    path = model(tmp_path / "m.gguf", name, left_out, {} if key is None else {key: value})
    with pytest.raises(CheckpointError, match=re.escape(said)) as planning:
        isobit.plan(path, targets=["a100"])
    with pytest.raises(CheckpointError) as loading:
        contents(Checkpoint.open(path))
    assert str(planning.value) == str(loading.value)


def test_quantizing_it_again_is_refused_by_its_own_name(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", "Q8_0")
    with pytest.raises(CheckpointError, match=r"m\.gguf: this checkpoint is quantized already \(gguf, Q8_0\)"):
        isobit.quantize(path, tmp_path / "out", "int8", progress=False)


def test_a_file_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no tokenizer in this file: use one with tokenizer\.ggml"):
        Tokenizer.from_folder(model(tmp_path / "m.gguf", "F16"))
