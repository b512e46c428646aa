"""Kernels of a pack whose tiles TMA copies: compiled for a card that is not here, written, read, and launched right."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="kernel packs are compiled by Triton: pip install triton")

from isobit.errors import IsobitError
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import scheme
from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.compile.request import Request, arguments_of
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.mixture import bind as bind_mixture
from isobit.kernels.gpu.packs import cuda
from isobit.kernels.gpu.packs.loaded import load_pack
from isobit.kernels.gpu.packs.manifest import TiledCopy
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.packs.write import write_pack
from isobit.kernels.gpu.tiles import LARGE
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.grouped import Grouped, Mixture, Routes
from isobit.targets.table import TARGETS

SM_90 = TARGETS["sm_90"]
N, K, TOKENS = 384, 256, LARGE + 5


def recorded(x: torch.Tensor) -> dict[str, Request]:
    row = scheme("int8")
    assert row.weights is not None
    weight = QTensor(row.weights, (N, K), torch.zeros(N, K, dtype=torch.int8), torch.ones(N, 1))
    recorder = Recorder()
    bind(weight, row.activations, None, None, machine=Machine.imagined(SM_90, recorder=recorder))(x)
    return recorder.requests


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "pack"
    requests = recorded(torch.zeros(TOKENS, K, dtype=torch.bfloat16))
    entries = [request.entry.partition(":")[2] for request in requests.values()]
    assert entries == ["quantize_token", "linear_tma"]
    write_pack(folder, requests, SM_90, model="a test", dtype="bfloat16", processes=2)
    return folder


@pytest.fixture
def kernel(pack: Path) -> Any:
    return next(one for one in load_pack(pack).manifest.kernels if one.symbol == "linear_tma")


class FakeDriver:
    """Takes a launch and what is described to it apart, as the driver would."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes, self.described, self.values = sizes, [], []  # type: ignore[var-annotated]

    def cuTensorMapEncodeTiled(self, place: Any, *given: Any) -> int:
        described = place._obj
        assert ctypes.addressof(described) % 64 == 0, "the driver wants it there"
        kind, rank, address, shape, strides, box, steps, interleave, swizzle, promotion, outside = given
        assert len(shape) == len(box) == len(steps) == rank and len(strides) == rank - 1
        plain = (kind, address.value, *shape, *strides, *box, *steps, interleave, swizzle, promotion, outside)
        self.described.append(plain)
        described[0] = len(self.described)  # so that it is known again in the launch
        return 0

    def cuModuleLoadData(self, module: Any, code: bytes) -> int:
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        return 0 if name == b"linear_tma" else 500

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
        return 0

    def cuLaunchKernelEx(self, config: Any, function: Any, addresses: Any, extra: None) -> int:
        self.values = [ctypes.string_at(addresses[i], size) for i, size in enumerate(self.sizes)]
        return 0

    def cuGetErrorString(self, status: int, text: Any) -> int:
        return 1


@pytest.fixture
def driver(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(kernel.parameters)
    monkeypatch.setattr(cuda, "_driver", lambda: fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0x77))
    return fake


def given() -> dict[str, Any]:
    tensors: dict[str, Any] = {"x": torch.zeros(TOKENS, K, dtype=torch.int8), "w": torch.zeros(N, K, dtype=torch.int8)}
    tensors["y"] = torch.zeros(TOKENS, N, dtype=torch.bfloat16)
    tensors |= {name: torch.zeros(4) for name in ("token_scale", "scale", "bias", "residual")}
    return tensors | {"M": TOKENS, "N": N, "K": K, "gain": 0.5}


def test_a_pack_says_how_each_matrix_is_copied(kernel: Any) -> None:
    assert kernel.parameters[:15] == (128, 4, 4, 8, 8) * 3
    constants = kernel.request.constants
    for copy, (dtype, rows, columns) in zip(
        kernel.copies, (("i8", "BLOCK_M", "BLOCK_K"), ("i8", "BLOCK_N", "BLOCK_K"), ("bf16", "BLOCK_M", "BLOCK_Y")),
        strict=True,
    ):  # fmt: skip
        assert copy.dtype == dtype and copy.swizzle == 3  # CU_TENSOR_MAP_SWIZZLE_128B
        assert copy.box[0] == constants[rows] and constants[columns] % copy.box[1] == 0
        assert copy.box[1] * {"i8": 1, "bf16": 2}[dtype] == 128  # as wide as what is swizzled


def test_descriptors_reach_the_driver_as_the_kernel_reads_them(kernel: Any, driver: FakeDriver) -> None:
    names, arguments = arguments_of(kernel.request.entry), given()
    cuda.Launcher(kernel, b"code", names)[3, 1, 1](*(arguments.get(name) for name in names))
    types = {"x": (0, 1), "w": (0, 1), "y": (9, 2)}  # CU_TENSOR_MAP_DATA_TYPE_UINT8, _BFLOAT16; bytes
    for place, (name, (kind, width)) in enumerate(types.items()):
        tensor, box = arguments[name], kernel.copies[place].box
        rows, columns = tensor.shape
        wanted = (kind, tensor.data_ptr(), columns, rows, columns * width, box[1], box[0], 1, 1, 0, 3, 2, 0)
        assert driver.described[place] == wanted
        values = driver.values[5 * place : 5 * place + 5]
        assert values[0][0] == place + 1
        assert [int.from_bytes(value, "little") for value in values[1:]] == [rows, columns, columns, 1]
    assert int.from_bytes(driver.values[15], "little") == arguments["token_scale"].data_ptr()
    numbers = [int.from_bytes(value, "little") for value in driver.values[19:22]]
    assert numbers == [TOKENS, N, K] and ctypes.c_float.from_buffer_copy(driver.values[22]).value == 0.5


def test_a_matrix_that_the_driver_cannot_describe_is_an_error(
    kernel: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, arguments = arguments_of(kernel.request.entry), given()
    monkeypatch.setattr(FakeDriver, "cuTensorMapEncodeTiled", lambda *_: 1)
    with pytest.raises(IsobitError, match=rf"describe a matrix of {TOKENS} by {K} elements: unknown error \(1\)"):
        cuda.Launcher(kernel, b"code", names)[3, 1, 1](*(arguments.get(name) for name in names))


def test_a_kernel_of_which_too_little_is_said_is_refused(kernel: Any) -> None:
    with pytest.raises(IsobitError, match="nothing is said of a descriptor"):
        cuda.Launcher(replace(kernel, copies=kernel.copies[:2]), b"", arguments_of(kernel.request.entry))


def test_what_is_said_of_copies_is_read_as_it_was_written(pack: Path, kernel: Any) -> None:
    written = json.loads((pack / "manifest.json").read_text())
    rows = next(one["copies"] for one in written["kernels"] if one["symbol"] == "linear_tma")
    assert tuple(TiledCopy(row["dtype"], tuple(row["box"]), row["swizzle"]) for row in rows) == kernel.copies


def test_results_of_few_bytes_a_row_come_from_the_other_kernel() -> None:
    row = scheme("int8")
    assert row.weights is not None
    recorder = Recorder()
    weight = QTensor(row.weights, (N + 4, K), torch.zeros(N + 4, K, dtype=torch.int8), torch.ones(N + 4, 1))
    bound = bind(weight, row.activations, None, None, machine=Machine.imagined(SM_90, recorder=recorder))
    bound(torch.zeros(TOKENS, K, dtype=torch.bfloat16))
    entries = [request.entry.partition(":")[2] for request in recorder.requests.values()]
    assert entries == ["quantize_token", "linear_matrix"]


def test_experts_whose_tokens_lie_sorted_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts, hidden, inner, tokens = 4, 1024, 1040, 512
    row, recorder = scheme("fp8"), Recorder()
    assert row.weights is not None

    def tall(rows: int, columns: int) -> Grouped:
        codes = torch.zeros(experts * rows, columns, dtype=torch.uint8)
        weight = QTensor(row.weights, tuple(codes.shape), codes, torch.ones(len(codes), 1))  # type: ignore[arg-type]
        return Grouped(weight, experts, rows, rows, activations=row.activations)

    machine = Machine.imagined(SM_90, recorder=recorder)
    whole = Mixture(tall(inner, hidden), tall(inner, hidden), tall(hidden, inner))
    bound = bind_mixture(whole, machine=machine, workspace=Workspace(torch.device("cpu")))
    routes = Routes(torch.zeros(tokens, 2, dtype=torch.int32), torch.ones(tokens, 2))
    bound(torch.zeros(tokens, hidden, dtype=torch.bfloat16), routes)
    entries = [request.entry.partition(":")[2] for request in recorder.requests.values()]
    assert [one for one in entries if one.startswith("linear")] == ["linear_experts"] * 2 and "take_rows" in entries
    first, _ = (one for one in recorder.requests.items() if one[1].entry.endswith("linear_experts"))
    write_pack(tmp_path / "pack", dict([first]), SM_90, model="a test", dtype="bfloat16", processes=1)
    (kernel,) = load_pack(tmp_path / "pack").manifest.kernels
    assert kernel.threads == 12 * 32, "two groups of four warps, and those of which one has tiles copied"
    assert kernel.copies == (TiledCopy("fp8e4nv", (128, 128), 3),) * 2 and kernel.overlaps
    assert kernel.parameters[:10] == (128, 4, 4, 8, 8) * 2
    fake = FakeDriver(kernel.parameters)
    monkeypatch.setattr(FakeDriver, "cuModuleGetFunction", lambda *_: 0)
    monkeypatch.setattr(cuda, "_driver", lambda: fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0x77))
    names = arguments_of(kernel.request.entry)
    x, w = (torch.zeros(rows, hidden, dtype=torch.uint8).view(torch.float8_e4m3fn) for rows in (1280, 8320))
    arguments: dict[str, Any] = {"x": x, "w": w, **dict.fromkeys(("M", "PAIRS", "N", "K"), 3), "gain": 0.5}
    arguments |= {name: torch.zeros(4) for name in ("token_scale", "scale", "bias", "y", "experts", "order")}
    cuda.Launcher(kernel, b"code", names)[3, 1, 1](*(arguments.get(name) for name in names))
    assert [one[0] for one in fake.described] == [0, 0], "CU_TENSOR_MAP_DATA_TYPE_UINT8"
    assert [one[2:4] for one in fake.described] == [(hidden, 1280), (hidden, 8320)]
