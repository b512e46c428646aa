"""Safetensors headers: what the safetensors library writes is read; every lie a header can tell is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import safetensors_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from isobit.checkpoint.safetensors import DTYPES, LARGEST_HEADER, dtype_name, read_header
from isobit.errors import CheckpointError


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_with(folder: Path, *args: Any, **kwargs: Any) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(safetensors_bytes(*args, **kwargs))
    return path


def test_a_file_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "a": torch.arange(4, dtype=torch.int64),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 7),
        "codes": torch.arange(8, dtype=torch.uint8).view(torch.float8_e4m3fn),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    infos, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    data = path.read_bytes()
    for name, tensor in tensors.items():
        info = infos[name]
        assert (info.shape, info.torch_dtype, info.file) == (tuple(tensor.shape), tensor.dtype, path)
        assert data[info.begin : info.end] == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert info.numel == tensor.numel() and info.nbytes == tensor.numel() * tensor.element_size()
    assert [info.begin for info in infos.values()] == sorted(info.begin for info in infos.values())


def test_every_dtype_has_the_width_torch_gives_it() -> None:
    for name, (bits, torch_name) in DTYPES.items():
        if torch_name is not None:
            dtype = getattr(torch, torch_name)
            assert dtype.itemsize * 8 == bits and dtype_name(dtype) == name


LIES = {
    "not json": (b"{nonsense", b"", "not valid JSON"),
    "not an object": (b"[1, 2]  ", b"", "not a JSON object"),
    "not utf-8": (b'{"\xff": 1}', b"", "UTF-8"),
    "deep nesting": (b'{"a":' * 100_000, b"", "nested too deeply|not valid JSON"),
    "endless number": (b'{"a": ' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
    "key twice": (b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": 1}', b"", "'a' is given twice"),
    "entry is a number": ({"t": 3}, b"", "dtype, shape and data_offsets"),
    "missing field": ({"t": {"dtype": "U8", "shape": [1]}}, b"\0", "dtype, shape and data_offsets"),
    "surplus field": ({"t": entry("U8", [1], 0, 1) | {"code": "x"}}, b"\0", "dtype, shape and data_offsets"),
    "unknown dtype": ({"t": entry("F13", [1], 0, 1)}, b"\0", "unknown dtype 'F13'"),
    "dtype no string": ({"t": entry(["U8"], [1], 0, 1)}, b"\0", "unknown dtype"),  # type: ignore[arg-type]
    "shape no list": ({"t": entry("U8", 1, 0, 1)}, b"\0", "not a list of sizes"),
    "negative size": ({"t": entry("U8", [-1], 0, 1)}, b"\0", "not a list of sizes"),
    "fractional size": ({"t": entry("U8", [1.0], 0, 1)}, b"\0", "not a list of sizes"),
    "boolean size": ({"t": entry("U8", [True], 0, 1)}, b"\0", "not a list of sizes"),
    "offsets reversed": ({"t": entry("U8", [1], 1, 0)}, b"\0", "before it begins"),
    "offset negative": ({"t": entry("U8", [1], -1, 0)}, b"\0", "not two byte offsets"),
    "offset NaN": (b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,NaN]}}', b"\0", "not two byte offsets"),
    "three offsets": ({"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"\0", "not two byte offsets"),
    "out of range": ({"t": entry("U8", [9], 0, 9)}, b"\0", "truncated"),
    "size and shape differ": ({"t": entry("BF16", [3], 0, 4)}, b"\0" * 4, "needs 6 bytes but its data has 4"),
    "huge": ({"t": entry("U8", [2**62, 4], 0, 0)}, b"", "impossibly large"),
    "huge and zero": ({"t": entry("U8", [2**63, 0], 0, 0)}, b"", "impossibly large"),
    "half a byte": ({"t": entry("F4", [3], 0, 1)}, b"\0", "needs 2 bytes"),
    "overlap": ({"t": entry("U8", [2], 0, 2), "u": entry("U8", [2], 1, 3)}, b"\0" * 3, "overlaps that of tensor 't'"),
    "hole": ({"t": entry("U8", [1], 0, 1), "u": entry("U8", [1], 2, 3)}, b"\0" * 3, "unexplained bytes"),
    "begins late": ({"t": entry("U8", [1], 1, 2)}, b"\0" * 2, "unexplained bytes"),
    "bytes behind": ({"t": entry("U8", [1], 0, 1)}, b"\0" * 5, "belong to no tensor"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    header, data, message = LIES[lie]
    path = file_with(tmp_path, header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert caught.value.file == str(path)
    if isinstance(header, dict) and "__metadata__" not in header and lie != "bytes behind":
        assert caught.value.tensor in header


@pytest.mark.parametrize("length", [LARGEST_HEADER + 1, 2**63, 2**64 - 1])
def test_a_header_of_any_claimed_length_costs_nothing(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match="more than the"):
        read_header(file_with(tmp_path, b"{}", length=length))


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="claims 1000 bytes but the file has only"):
        read_header(file_with(tmp_path, b"{}", length=1000))


@pytest.mark.parametrize("size", range(9))
def test_a_file_too_short(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(b"\0" * size)
    with pytest.raises(CheckpointError, match="short|not a JSON object"):
        read_header(path)


def test_truncation_at_every_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(2, 3), "v": torch.ones(3)}, path)
    whole = path.read_bytes()
    read_header(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_no_file_and_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError):
        read_header(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_header(tmp_path / "pipe")


def test_dtypes_torch_lacks_are_listed_but_not_read(tmp_path: Path) -> None:
    infos, _ = read_header(file_with(tmp_path, {"t": entry("F4", [4], 0, 2)}, b"\0\0"))
    assert infos["t"].nbytes == 2
    with pytest.raises(CheckpointError, match="dtype F4 cannot be read by isobit; it reads BOOL"):
        _ = infos["t"].torch_dtype


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers(-4, 70) | st.floats() | st.sampled_from(["U8", "BF16", "F4", "x"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "t", "u", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ),
    size=st.integers(0, 40),
)
def test_random_headers_end_in_a_result_or_a_checkpoint_error(tmp_path: Path, header: Any, size: int) -> None:
    path = file_with(tmp_path, header, b"\0" * size)
    try:
        infos, _ = read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert sum(info.nbytes for info in infos.values()) == size
