"""Every layout of other tools, damaged in every part: loading, plans and descriptions refuse, and name the tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from zlib import crc32

import pytest
import torch
from foreign_layouts import MODULE, TOOLS, made, store
from torch import Tensor

import isobit
from isobit.errors import IsobitError
from isobit.evaluation.info import describe
from isobit.models.planning import plans
from isobit.models.weights import load_model

Change = Callable[[Tensor], Tensor | None]


def shaped(flat: bool, change: Change) -> Change:
    """A change of tensors with axes; single numbers become two instead, or none."""
    return lambda t: change(t) if t.dim() else torch.stack([t, t]) if flat else t[None][:0].clone()


# What is done to a tensor; None: to this one it cannot be done.
DAMAGES: dict[str, Change] = {
    "a line more": shaped(True, lambda t: torch.cat([t, t[:1]])),
    "a line less": shaped(False, lambda t: t[:-1].clone()),
    "half": shaped(False, lambda t: t[: len(t) // 2].clone()),
    "twice": shaped(True, lambda t: torch.cat([t, t])),
    "a column more": shaped(True, lambda t: torch.cat([t, t[..., :1]], -1)),
    "a column less": shaped(False, lambda t: t[..., :-1].clone()),
    "turned": lambda t: t.t().contiguous() if t.dim() == 2 else None,
    "three axes": lambda t: t[None].clone() if t.dim() == 2 else None,
    "flat": lambda t: t.reshape(-1).clone() if t.dim() > 1 else None,
    "empty": lambda t: t.reshape(-1)[:0].clone(),
    "one number": lambda t: t.reshape(-1)[:1].clone() if t.numel() > 1 else None,
    "F64": lambda t: t.float().double(),
    "I64": lambda t: t.float().long() if t.dtype != torch.int64 else t.float(),
    "BOOL": lambda t: t.float() > 0,
    "BF16": lambda t: t.float().bfloat16() if not t.dtype.is_floating_point or t.itemsize == 1 else None,
    "U8": lambda t: t.float().to(torch.uint8) if t.dtype != torch.uint8 else None,
    "gone": lambda t: None,
}
BESIDE: dict[str, tuple[str, Callable[[], Tensor]]] = {
    "a plain weight": ("weight", lambda: torch.zeros(256, 128).bfloat16()),
    "scales": ("weight_scale", lambda: torch.ones(256, 1)),
    "zero points": ("weight_zero_point", lambda: torch.ones(256, 1, dtype=torch.int8)),
    "packed zero points": ("qzeros", lambda: torch.ones(4, 32, dtype=torch.int32)),
    "largest magnitudes": ("SCB", lambda: torch.ones(256)),
    "a scale of inputs": ("input_scale", lambda: torch.ones(1)),
    "an order": ("g_idx", lambda: torch.arange(128).int()),
    "a bias": ("bias", lambda: torch.ones(256).bfloat16()),
    "an unknown part": ("other", lambda: torch.ones(4)),
    "factors of too few inputs": ("pre_quant_scale", lambda: torch.ones(100)),
}
# What does no harm (the tool, the part and the damage): other tools, or other versions, write so, or nothing is lost;
# and what is another weight of the same tool.
HARMLESS = (
    "GPTQ: g_idx: gone", "GPTQ*: g_idx: I64",
    "bitsandbytes, [Nn]*: weight: turned", "bitsandbytes, 8 bits: weight_format: gone",
    "HQQ*: scale: one number", "HQQ*: zero: one number", "HQQ*: [ag]*: I64", "HQQ*: [ag]*: U8",
    "HQQ*: compute_dtype: gone",
    "quanto, 4 bits: weight._data._data: half", "quanto, 4 bits: weight._data._data: turned",
    "quanto, 2 bits: weight._data._data: twice", "quanto*: weight._shift: U8",
    "*: _weight_zero_point: gone", "*: _weight_zero_point: I64", "torchao, int8wo: _weight_zero_point: flat",
    "*: pre_quant_scale: gone", "ModelOpt, W4A*: weight: turned", "ModelOpt, W4A8_AWQ: weight_scale: a column less",
    "*NVFP4: weight_scale: U8", "*, nvfp4: weight_scale: U8",
    *(f"{tool}: *scale: flat" for tool in ("quanto, 8 bits", "torchao, int8wo", "torchao, float8dyn", "fbgemm",
                                           "compressed-tensors, int8")),
)  # fmt: skip
# What is told by the numbers of large tensors alone: plans and descriptions, which read headers, let it pass.
BY_NUMBERS = ("*: zero points beside it", "AutoRound: an order beside it", "bitsandbytes, 8 bits: weight_format: *")
UNREAD = {  # parts that say how a weight was made, and that reading does not need
    "nbits", "view_as_float", "unpack_view_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config",
    "channel_wise", "optimize", "round_zero", "quant_scale", "quant_zero", "output_scale",
}  # fmt: skip


Case = tuple[str, str, Tensor | None]  # what is wrong, the tensor, and what it becomes


def cases(tool: str) -> Iterator[Case]:
    tensors = made(tool)[1]
    parts = {name.removeprefix(f"{MODULE}."): one for name, one in tensors.items() if name.startswith(f"{MODULE}.")}
    for part, tensor in parts.items():
        if part in UNREAD or (part == "input_scale" and tool.startswith("quanto")):
            continue
        for damage, change in DAMAGES.items():
            other = change(tensor)
            same = other is not None and other.dtype == tensor.dtype and torch.equal(other, tensor)
            if damage == "gone" or (other is not None and not same):
                yield f"{part}: {damage}", f"{MODULE}.{part}", None if other is None else other.contiguous()
    for what, (part, make) in BESIDE.items():
        if part not in parts:
            yield f"{what} beside it", f"{MODULE}.{part}", make()


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def refusal(act: Callable[[], object]) -> str | None:
    """What an error of isobit's says; any other gets out."""
    try:
        act()
    except IsobitError as error:
        return str(error)
    return None


def wrong(folder: Path, tool: str, what: str, name: str, tensor: Tensor | None) -> str | None:
    """What is not as it should be about a case."""
    label = f"{tool}: {what}"
    store(folder, tool, {name: tensor})
    loaded = refusal(lambda: load_model(folder))
    planned = refusal(lambda: plans(folder, targets=["cpu-avx2"]))
    described = next((note for note in describe(folder).notes if MODULE in note), None)
    said = f"{label}: loading {loaded}; plan {planned}; info {described}"
    if fits(label, HARMLESS):
        return None if loaded is planned is described is None else said
    named = loaded is not None and MODULE in loaded and ("model.safetensors" in loaded or "config.json: t" in loaded)
    if loaded is None or not named or len(loaded) > 3000 or not all(map(str.isprintable, loaded.splitlines())):
        return said
    told = fits(label, BY_NUMBERS) or (planned == loaded and described is not None)
    return None if told else said


@pytest.mark.parametrize("tool", TOOLS)
def test_each_layout_is_whole(tmp_path: Path, tool: str) -> None:
    """What is damaged below loads as it is, and is planned and described without a complaint about its tensors."""
    folder = store(tmp_path / "m", tool, {})
    load_model(folder)
    plans(folder, targets=["cpu-avx2"])
    assert not any(MODULE in note for note in describe(folder).notes)


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("tool", TOOLS)
def test_some_damages_of_each_layout(tmp_path: Path, tool: str, turn: int) -> None:
    """Another two for each tool; the walk below takes all of them."""
    mine = [case for case in cases(tool) if not fits(f"{tool}: {case[0]}", HARMLESS)]
    case = mine[crc32(f"{tool} {turn}".encode()) % len(mine)]
    assert wrong(tmp_path / "m", tool, *case) is None


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_all_damages_of_each_layout(tmp_path: Path, tool: str) -> None:
    mine = [*cases(tool)]
    assert len(mine) >= 30
    found = [wrong(tmp_path / str(number), tool, *case) for number, case in enumerate(mine)]
    assert [case for case in found if case is not None] == []


# ---------------------------------------------------------------------- files


def cut(data: bytes) -> bytes:
    return data[:-7]


def longer(data: bytes) -> bytes:
    return data + b"\0" * 5


def header(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Another text in the header, of the same length."""
    assert len(old) == len(new)
    return lambda data: data.replace(old, new, 1)


FILES: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut, "cut in half": lambda data: data[: len(data) // 2], "cut in its header": lambda data: data[:200],
    "empty": lambda data: b"", "longer": longer, "a header of another length": lambda data: b"\xff" * 8 + data[8:],
    "a shorter header": lambda data: (int.from_bytes(data[:8], "little") - 9).to_bytes(8, "little") + data[8:],
    "no JSON": header(b'{"', b'["'), "another dtype": header(b'"dtype":"', b'"dtype":X'),
    "no shape": header(b'"shape":', b'"shade":'), "no places": header(b'"data_offsets"', b'"data_offsits"'),
    "a place below nothing": header(b'"data_offsets":[0,', b'"data_offsets":[-,'),
    "a pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\n", "a page": lambda data: b"<html>" * 9,
}  # fmt: skip


@pytest.mark.parametrize("damage", FILES)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    """By loading and quantizing; a plan needs no weights, and says that it is one without them."""
    tool = [*TOOLS][crc32(damage.encode()) % len(TOOLS)]
    file = store(tmp_path / "m", tool, {}) / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(FILES[damage](data))
    assert file.read_bytes() != data
    for act in (
        lambda: load_model(tmp_path / "m"),
        lambda: isobit.quantize(tmp_path / "m", tmp_path / "out", "int8", from_quantized=True, progress=False),
    ):
        with pytest.raises(IsobitError, match=r"model\.safetensors"):
            act()
    assert not (tmp_path / "out").exists()
    try:
        notes = plans(tmp_path / "m", targets=["cpu-avx2"])[0].notes
    except IsobitError:  # what tells its own tool is in the tensors
        return
    assert any("configuration alone" in note and "model.safetensors" in note for note in notes)
