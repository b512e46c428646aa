"""Kernel packs: what a model launches is recorded, compiled, written whole, checked when opened, and launched right."""

from __future__ import annotations

import ctypes
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_model

pytest.importorskip("triton", reason="kernel packs are compiled by Triton: pip install triton")

from isobit.checkpoint.reader import Checkpoint
from isobit.cli.main import main
from isobit.errors import CheckpointError, IsobitError, Unsupported, UsageError
from isobit.formats.caches import cache_format
from isobit.formats.pack import code_dtype
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.formats.table import element
from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.compile.request import Request
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs import cuda, loaded
from isobit.kernels.gpu.packs.loaded import load_pack
from isobit.kernels.gpu.packs.manifest import MANIFEST, Manifest
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.packs.write import parameter_sizes, write_pack
from isobit.kernels.gpu.workspace import Workspace
from isobit.models.cache.protocol import CachedSequence
from isobit.models.contents import contents
from isobit.models.pack import TOKENS, requests
from isobit.models.place import Place
from isobit.models.weights import DTYPES, _Loader
from isobit.quantizer.driver import quantize
from isobit.targets.table import TARGETS

SM_86 = TARGETS["sm_86"]
N, K = 192, 256


def recorded(name: str, tokens: int, multiprocessors: int = 84, k: int = K) -> dict[str, Request]:
    row = scheme(name)
    assert row.weights is not None
    codes = torch.zeros(N, k, dtype=code_dtype(element(row.weights.element)))
    weight = QTensor(row.weights, (N, k), codes, torch.ones(N, 1))
    recorder = Recorder()
    machine = Machine.imagined(SM_86, multiprocessors, recorder)
    bind(weight, row.activations, None, None, machine=machine)(torch.zeros(tokens, k, dtype=torch.float16))
    return recorder.requests


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "pack"
    requests = recorded("int8", tokens=17)
    assert [request.entry.partition(":")[2] for request in requests.values()] == ["quantize_token", "linear_matrix"]
    write_pack(folder, requests, SM_86, model="a test", dtype="float16", processes=2)
    return folder


@pytest.fixture
def copy(pack: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pack, tmp_path / "copy"))


def test_a_pack_holds_machine_code_of_the_target_and_nothing_half_done(pack: Path) -> None:
    opened = load_pack(pack, target="sm_86")
    assert {path.name for path in pack.iterdir()} == {MANIFEST, *(one.file for one in opened.manifest.kernels)}
    assert list(pack.parent.iterdir()) == [pack]
    for kernel in opened.manifest.kernels:
        code = (pack / kernel.file).read_bytes()
        assert code[:4] == b"\x7fELF" and kernel.symbol.encode() in code


def test_what_was_recorded_is_found_and_other_kernels_are_reported(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = load_pack(pack)
    for request in recorded("int8", tokens=17, multiprocessors=20).values():
        module, _, function = request.entry.partition(":")
        names = tuple(getattr(__import__(module, fromlist=[function]), function).arg_names)
        launcher = opened.find(request, names)
        assert launcher is not None and opened.find(request, names) is launcher, "loaded once for all layers"
    other = recorded("int8", tokens=1).popitem()[1]
    assert opened.find(other, ()) is None and opened.find(other, ()) is None
    assert opened.missed == [other.name()]
    assert capsys.readouterr().err.count("is not in") == 1


def test_recording_launches_and_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("compiles")

    monkeypatch.setattr("isobit.kernels.gpu.compile.build.compile_request", refuse)
    assert len(recorded("fp8", tokens=3)) == 2


def test_a_split_of_k_follows_the_imagined_card() -> None:
    def splits(multiprocessors: int) -> set[Any]:
        return {one.constants.get("SPLIT_K") for one in recorded("int8-w8a16", 12, multiprocessors, k=8192).values()}

    assert splits(1) != splits(200)


@pytest.mark.parametrize("name", ["fp8", "int8", "int8-w8a16"])
def test_a_pack_has_the_kernels_of_every_number_of_tokens(name: str) -> None:
    packed = {request for tokens in TOKENS for request in recorded(name, tokens)}
    needed = {request for tokens in (*range(1, 66), 1023, 1024, 5000) for request in recorded(name, tokens)}
    assert needed == packed and len(packed) >= 3


def with_own_keys(model: Path) -> Path:
    """The model with two heads, each of which has keys of its own."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    held = load_file(model / "model.safetensors")
    for name in [name for name in held if name.endswith(("q_proj.weight", "o_proj.weight"))]:
        held[name] = (held[name][:128] if "q_proj" in name else held[name][:, :128]).contiguous()
    save_file(held, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize(
    ("name", "kv"),
    [("bf16", "auto"), ("own keys", "auto"), ("fp8", "auto"), ("int4", "auto"), ("bf16", "fp8"), ("own keys", "nvfp4")],
)
def test_a_pack_of_a_checkpoint_has_all_that_its_model_launches(
    name: str, kv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = cache_format(kv)
    model = save_model(tmp_path / "model")
    if name == "own keys":
        with_own_keys(model)
    elif name != "bf16":
        quantize(model, tmp_path / name, Policy(scheme(name)), progress=False)
        model = tmp_path / name
    packed, dtype = requests(model, SM_86, None, stored)
    recorder, cpu = Recorder(), torch.device("cpu")
    where = Place("cuda", cpu, Machine.imagined(SM_86, 84, recorder), Workspace(cpu))
    decoder = _Loader(contents(Checkpoint.open(model)), DTYPES[dtype], False, where, stored).decoder()

    usual = Kernel._is_aligned

    def at_an_address(kernel: Kernel, name: str, value: Any) -> bool:
        """As on a card; weights, which are in the middle of a file here, have memory of their own there."""
        if isinstance(value, torch.Tensor) and name in kernel.config.signature:
            return name == "w" or value.data_ptr() % 16 == 0
        return usual(kernel, name, value)

    monkeypatch.setattr(Kernel, "_is_aligned", at_an_address)
    cache = decoder.paged_cache(14)
    first, second = CachedSequence(tuple(range(12)), 700), CachedSequence((12, 13), 100)
    decoder(cache.batch([range(100), range(40)], [first, second]), cache)
    first.length, second.length = 100, 40
    decoder(cache.batch([[1], range(20)], [first, second]), cache)
    decoder(cache.batch([[1]], [first], wanted="last"), cache)
    first.length, second.length = 690, 60
    decoder(cache.batch([[1], [2]], [first, second], wanted="last"), cache)
    launched = {request.entry.partition(":")[2] for request in recorder.requests.values()}
    one = name == "own keys" and not stored.group
    attentions = {"attention_one"} if one else {"attention_few", "attention_merge"}
    gate = "gate_token" if name == "fp8" else "gate"  # whose result is rounded
    rope = "rope_append_any" if stored.group else "rope_append"
    assert {rope, "norm_token", gate, "attention_many", *attentions} <= launched
    assert not recorder.requests.keys() - packed.keys()
    gates = [one for one in packed.values() if one.entry.partition(":")[2] in ("gate", "gate_token")]
    assert "words" in {one.constants["FORM"] for one in gates}, "gates and ups of prompts lie by turns"
    assert all({"gate", "up"} <= set(one.aligned) for one in gates if one.constants["FORM"] == "words")


# ---------------------------------------------------------------------- refusals


def edited(folder: Path, change: dict[str, Any], kernel: dict[str, Any] | None = None) -> Path:
    path = folder / MANIFEST
    fields = json.loads(path.read_text())
    fields.update(change)
    fields["kernels"][0].update(kernel or {})
    path.write_text(json.dumps(fields))
    return folder


def test_another_target_is_refused(pack: Path) -> None:
    with pytest.raises(Unsupported, match="made for sm_86, and this is sm_90"):
        load_pack(pack, target="sm_90")


def test_another_version_of_triton_is_refused(copy: Path) -> None:
    with pytest.raises(Unsupported, match="made by Triton 2.1.0"):
        load_pack(edited(copy, {"triton": "2.1.0"}))


def test_damaged_machine_code_is_refused(copy: Path) -> None:
    victim = next(copy.glob("*.cubin"))
    code = bytearray(victim.read_bytes())
    code[len(code) // 2] ^= 1
    victim.write_bytes(code)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_pack(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    next(copy.glob("*.cubin")).unlink()
    with pytest.raises(CheckpointError, match="make the pack again"):
        load_pack(copy)


def test_changed_kernel_sources_are_refused(copy: Path) -> None:
    with pytest.raises(CheckpointError, match="compiled from other sources of isobit.kernels.gpu.triton.quantize"):
        load_pack(edited(copy, {}, {"key": "0" * 64}))


def test_a_request_that_is_not_what_was_compiled_is_refused(copy: Path) -> None:
    request = json.loads((copy / MANIFEST).read_text())["kernels"][0]["request"]
    with pytest.raises(CheckpointError, match="other sources"):
        load_pack(edited(copy, {}, {"request": {**request, "aligned": []}}))


@pytest.mark.parametrize(
    ("change", "kernel", "message"),
    [
        ({"format": "something"}, {}, "is not the manifest"),
        ({"version": 99}, {}, "version 99"),
        ({}, {"file": "../secret.cubin"}, "leads out of the pack"),
        ({}, {"parameters": "8"}, "is not a list"),
        ({"surprise": 1}, {}, "is damaged"),
    ],
)
def test_a_bad_manifest_is_refused(copy: Path, change: dict[str, Any], kernel: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_pack(edited(copy, change, kernel))


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no kernel pack"):
        load_pack(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_pack(tmp_path)


def test_a_folder_that_is_no_pack_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="exists and is no kernel pack"):
        write_pack(tmp_path / "mine", {}, SM_86, model="", dtype="float16", processes=1)
    assert (tmp_path / "mine").is_dir()


def test_a_kernel_that_does_not_compile_is_named_and_nothing_is_left(pack: Path, tmp_path: Path) -> None:
    good = load_pack(pack).manifest.kernels[0].request
    bad = replace(good, entry="isobit.kernels.gpu.triton.quantize:nothing")
    with pytest.raises(Unsupported, match="quantize:nothing .* is not a Triton kernel"):
        write_pack(tmp_path / "new", {"bad": bad}, SM_86, model="", dtype="float16", processes=1)
    assert list(tmp_path.iterdir()) == []


def test_packs_are_for_nvidia(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="NVIDIA"):
        write_pack(tmp_path / "p", {}, TARGETS["gfx942"], model="", dtype="float16", processes=1)


@pytest.mark.parametrize(
    "arguments", [["bundled"], ["-o", "pack"], ["bundled", "-o", "pack"], ["bundled", "-o", "pack", "--dtype", "int7"]]
)
def test_the_command_refuses_half_a_request(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    target = ["--target", "sm_86"] if "--dtype" in arguments else []
    assert main(["compile", *arguments, *target]) == 2
    error = capsys.readouterr().err
    assert "name both" in error or "for one target" in error or "float16" in error


# ---------------------------------------------------------------------- launching


def test_the_driver_structures_have_the_layout_of_cuda_h() -> None:
    launch, attribute = cuda._Launch, cuda._Attribute
    assert (launch.shared.offset, launch.stream.offset) == (24, 32)
    assert (launch.attributes.offset, launch.count.offset) == (40, 48)
    assert ctypes.sizeof(launch) == 56
    assert attribute.value.offset == 8 and ctypes.sizeof(attribute) == 72


class FakeDriver:
    """Takes a launch apart as the driver would: by addresses and the sizes of the parameters."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes, self.launches, self.loaded = sizes, [], []  # type: ignore[var-annotated]

    def cuModuleLoadData(self, module: Any, code: bytes) -> int:
        self.loaded.append(code)
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        return 0 if name == b"linear_matrix" else 500

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
        return 0 if attribute == 8 else 1

    def cuLaunchKernelEx(self, config: Any, function: Any, addresses: Any, extra: None) -> int:
        values = [ctypes.string_at(addresses[i], size) for i, size in enumerate(self.sizes)]
        launch = config._obj
        self.launches.append(
            (tuple(launch.grid), tuple(launch.block), launch.shared, launch.count, launch.stream, values)
        )
        return 0

    def cuGetErrorString(self, status: int, text: Any) -> int:
        return 1


@pytest.fixture
def kernel(pack: Path) -> Any:
    manifest = load_pack(pack).manifest
    return next(one for one in manifest.kernels if one.symbol == "linear_matrix")


def names_of(kernel: Any) -> tuple[str, ...]:
    from isobit.kernels.gpu.triton import linear_matrix

    return tuple(linear_matrix.linear_matrix.arg_names)


@pytest.fixture
def driver(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(kernel.parameters)
    monkeypatch.setattr(cuda, "_driver", lambda: fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0x77))
    return fake


def test_arguments_reach_the_driver_as_the_kernel_reads_them(kernel: Any, driver: FakeDriver) -> None:
    names = names_of(kernel)
    given: dict[str, Any] = {name: torch.zeros(4) for name in kernel.request.signature if name in names}
    given |= {"M": 17, "N": N, "K": K, "gain": 0.5}
    launcher = cuda.Launcher(kernel, b"code", names)
    for _ in range(2):
        launcher[3, 2, 1](*(given.get(name) for name in names))
    assert driver.loaded == [b"code"], "machine code is loaded once"
    grid, block, shared, attributes, stream, values = driver.launches[1]
    assert (grid, block, shared, stream) == ((3, 2, 1), (kernel.threads, 1, 1), kernel.shared, 0x77)
    assert attributes == int(kernel.overlaps) == 0
    run_time = [name for name in names if name not in kernel.request.constants]
    for name, value in zip(run_time, values, strict=False):
        expected = given[name]
        if isinstance(expected, torch.Tensor):
            assert int.from_bytes(value, "little") == expected.data_ptr()
        elif isinstance(expected, float):
            assert ctypes.c_float.from_buffer_copy(value).value == expected
        else:
            assert int.from_bytes(value, "little", signed=True) == expected
    assert all(int.from_bytes(value, "little") == 0 for value in values[len(run_time) :])


def test_an_argument_that_is_not_used_may_be_left_out(kernel: Any, driver: FakeDriver) -> None:
    names = names_of(kernel)
    numbers = {"M": 1, "N": 1, "K": 1, "gain": 1.0}
    cuda.Launcher(kernel, b"", names)[1, 1, 1](*(numbers.get(name) for name in names))
    assert int.from_bytes(driver.launches[0][-1][0], "little") == 0


def test_machine_code_that_does_not_fit_its_signature_is_refused(kernel: Any) -> None:
    with pytest.raises(IsobitError, match="takes parameters of"):
        cuda.Launcher(replace(kernel, parameters=kernel.parameters[1:]), b"", names_of(kernel))


def test_what_the_driver_refuses_is_an_error(kernel: Any, driver: FakeDriver) -> None:
    launcher = cuda.Launcher(replace(kernel, symbol="nothing"), b"", names_of(kernel))
    with pytest.raises(IsobitError, match=r"failed to find nothing: unknown error \(500\)"):
        launcher[1, 1, 1](*(1 if name in ("M", "N", "K", "gain") else None for name in names_of(kernel)))


def test_parameter_sizes() -> None:
    text = """
    .visible .entry k(
        .param .u64 .ptr .global .align 1 k_param_0,
        .param .u32 k_param_1,
        .param .f32 k_param_2
    )
    .reqntid 128
    """
    assert parameter_sizes(text) == (8, 4, 4)
    assert parameter_sizes(text.replace(".param .u32 k_param_1", ".param .align 64 .b8 k_param_1[128]")) == (8, 128, 4)
    with pytest.raises(IsobitError, match="unknown size"):
        parameter_sizes(text.replace(".param .u32 k_param_1", ".param .align 64 .b8 k_param_1[]"))
    with pytest.raises(IsobitError, match="no entry point"):
        parameter_sizes("")


def test_the_pack_in_use_comes_from_the_environment_and_needs_a_gpu(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "_looked", False)
    monkeypatch.setattr(loaded, "_active", None)
    assert loaded.active() is None
    monkeypatch.setattr(loaded, "_looked", False)
    monkeypatch.setenv("ISOBIT_PACK", str(pack))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match="NVIDIA GPUs, and none is here"):
        loaded.active()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    opened = loaded.active()
    assert opened is not None and isinstance(opened.manifest, Manifest)
