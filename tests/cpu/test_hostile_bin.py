""".bin files as torch saves them, and files that claim what they do not hold: no byte is allocated for those."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_pickles import Call, Stored, pickled, tensor, write_old, write_zip

from isobit.checkpoint import pickles
from isobit.checkpoint.legacy import read_bin_header
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError

BASE = torch.arange(48.0).reshape(6, 8)


def with_attribute() -> torch.Tensor:
    marked = torch.ones(3)
    marked.sharded = True  # type: ignore[attr-defined]
    return marked


def everything() -> dict[str, torch.Tensor]:
    """What a state dict may hold."""
    found = OrderedDict(
        base=BASE, transposed=BASE.t(), part=BASE[1:3], columns=BASE[:, 2:5], every_other=BASE[::2, 1::3],
        scalar=torch.tensor(2.5), one=torch.ones(1, 1, 1), none=torch.empty(0, 4), repeated=torch.ones(1).expand(3, 5),
        parameter=torch.nn.Parameter(torch.ones(2, 2)), attribute=with_attribute(), bools=torch.tensor([True, False]),
        permuted=torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1), complex=torch.ones(2, dtype=torch.complex64),
    )  # fmt: skip
    dtypes = "bfloat16 float16 float64 int8 uint8 int16 int32 int64 uint16 float8_e4m3fn float8_e5m2"
    for dtype in dtypes.split():
        found[dtype] = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    found._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return found


def open_bin(folder: Path) -> Checkpoint:
    (folder / "config.json").write_text("{}")
    return Checkpoint.open(folder)


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_whatever_torch_saves_is_read(tmp_path: Path, zip_format: bool, protocol: int) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(everything(), path, _use_new_zipfile_serialization=zip_format, pickle_protocol=protocol)
    ck = open_bin(tmp_path)
    wanted = everything()  # torch 2.13 itself cannot load 8-bit floats from the older format
    assert ck.tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        for found in (ck.read(name), ck.read(name, mmap=True)):
            assert found.dtype == value.dtype and found.shape == value.shape and found.is_contiguous()
            assert torch.equal(found.view(torch.uint8), value.contiguous().view(torch.uint8)) if value.dim() else True
            assert ck.tensors[name].nbytes == value.numel() * value.element_size()
        if value.dim() and value.shape[0] > 1:
            rows = ck.read(name, slice(1, value.shape[0]))
            assert torch.equal(rows.view(torch.uint8), value[1:].contiguous().view(torch.uint8))
    assert ck.read("scalar").item() == 2.5


def test_tensors_that_share_a_storage_keep_their_places(tmp_path: Path) -> None:
    torch.save({"a": BASE, "b": BASE, "c": BASE.reshape(-1)[40:]}, tmp_path / "pytorch_model.bin")
    ck = open_bin(tmp_path)
    assert ck.tensors["a"].begin == ck.tensors["b"].begin
    assert torch.equal(ck.read("b"), BASE) and torch.equal(ck.read("c"), BASE.reshape(-1)[40:])
    ck.read("a").zero_()
    assert torch.equal(ck.read("b"), BASE)


def test_dtypes_that_safetensors_lacks(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2, dtype=torch.complex128)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="dtype 'complex128' cannot be read"):
        open_bin(tmp_path)
    torch.save({"x": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a plain dense tensor .a conjugate or negative view"):
        open_bin(tmp_path)


FOUR = torch.arange(4.0).numpy().tobytes()
ONE = Stored("0", 4)
HUGE = 2**40

CLAIMS: dict[str, tuple[Any, str]] = {
    "a shape of terabytes": (tensor(ONE, (HUGE,), (1,)), "last element is number"),
    "a storage of terabytes": (tensor(Stored("0", HUGE), (HUGE,), (1,)), "should have 4,398,046,511,104 bytes"),
    "one element repeated": (tensor(ONE, (HUGE,), (0,)), "repeats a few of them"),
    "two axes of one element": (tensor(ONE, (2**20, 2**20), (0, 0)), "repeats a few of them"),
    "a product beyond 64 bits": (tensor(ONE, (2**40, 2**40), (0, 0)), "impossibly large"),
    "empty, and too large": (tensor(ONE, (2**60, 0), (1, 1)), "impossibly large"),
    "a stride out of bounds": (tensor(ONE, (2, 2), (3, 1)), "last element is number 4 of a storage of 4"),
    "an offset out of bounds": (tensor(ONE, (2,), (1,), 3), "last element is number 4 of a storage of 4"),
    "a huge offset": (tensor(ONE, (1,), (1,), 2**61), "last element is number"),
    "beyond 64 bits": (tensor(ONE, (1,), (1,), 2**70), "strides"),
    "a negative stride": (tensor(ONE, (2,), (-1,), 3), "strides"),
    "a negative offset": (tensor(ONE, (1,), (1,), -1), "strides"),
    "a negative size": (tensor(ONE, (-1,), (1,)), "shape .-1"),
    "a size that is a text": (tensor(ONE, ("4",), (1,)), "shape"),
    "a size that is true": (tensor(ONE, (True,), (1,)), "shape"),
    "more sizes than strides": (tensor(ONE, (2, 2), (1,)), "shape"),
    "ten thousand axes": (tensor(ONE, (1,) * 10**4, (1,) * 10**4), "shape"),
    "no such storage": (tensor(Stored("7", 4), (4,), (1,)), "storage '7' is missing from the file"),
    "a storage elsewhere": (tensor(Stored("../data.pkl", 4), (4,), (1,)), "is missing from the file"),
    "a storage of another type": (tensor(Stored("0", 4, torch.DoubleStorage), (4,), (1,)), "should have 32 bytes"),
    "no storage": (tensor(None, (4,), (1,)), "without storage"),
    "quantized codes": (tensor(Stored("0", 4, torch.QInt8Storage), (4,), (1,)), "dtype 'qint8' cannot be read"),
    "a list": ([1], "is a list, not a named tensor"),
    "nothing": (None, "is a NoneType, not a named tensor"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_are_held_against_the_bytes_of_the_file(tmp_path: Path, claim: str) -> None:
    entry, message = CLAIMS[claim]
    write_zip(tmp_path / "pytorch_model.bin", {"good": tensor(ONE, (4,), (1,)), "x": entry}, {"0": FOUR})
    with pytest.raises(CheckpointError, match=message) as caught:
        open_bin(tmp_path)
    assert "pytorch_model.bin" in str(caught.value) and len(str(caught.value)) < 400
    if "another type" in claim or "elsewhere" in claim or "quantized" in claim:
        return
    write_old(tmp_path / "pytorch_model.bin", {"good": tensor(ONE, (4,), (1,)), "x": entry}, {"0": (4, FOUR)})
    with pytest.raises(CheckpointError):
        open_bin(tmp_path)


@pytest.mark.parametrize("count", [HUGE, 2**62, -1, -(2**63), 5])
def test_an_old_file_whose_storage_claims_more(tmp_path: Path, count: int) -> None:
    write_old(tmp_path / "pytorch_model.bin", {"x": tensor(Stored("0", 4), (4,), (1,))}, {"0": (count, FOUR)})
    with pytest.raises(CheckpointError, match="storages end at byte"):
        open_bin(tmp_path)


def test_a_view_of_a_storage_in_an_old_file(tmp_path: Path) -> None:
    view = Stored("0", 4, view=("9", 1, 2))
    write_old(tmp_path / "pytorch_model.bin", {"x": tensor(view, (2,), (1,))}, {"0": (4, FOUR)})
    assert open_bin(tmp_path).read("x").tolist() == [1.0, 2.0]
    for wrong in (("9", 3, 2), ("9", 0, 2**50), ("9", -1, 2), "9"):
        view = Stored("0", 4, view=wrong)
        write_old(tmp_path / "pytorch_model.bin", {"x": tensor(view, (2,), (1,))}, {"0": (4, FOUR)})
        with pytest.raises(CheckpointError, match="pytorch_model.bin"):
            open_bin(tmp_path)


def deep_key() -> bytes:
    """A dictionary whose key is a tuple in a tuple in a tuple: its hash would exhaust the C stack."""
    return b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."


PICKLES: dict[str, tuple[bytes, str]] = {
    "a call": (pickled({"x": Call(os.mkdir, "ran")}), r"it calls 'posix.mkdir'. .*could run code"),
    "a call of a function in torch": (pickled({"x": Call(torch.load, "ran")}), "it calls .*could run code"),
    "a call within a tensor": (pickled({"x": tensor(Call(os.getcwd), (1,), (1,))}), "it calls 'posix.getcwd'"),
    "a class": (b"\x80\x02cos\nsystem\n.", "holds a Name, not a dictionary"),
    "an instance": (b"\x80\x02(ios\nsystem\n.", "instruction INST"),
    "an extension": (b"\x80\x02\x82\x01.", "instruction EXT1"),
    "a key without end": (deep_key(), "a tuple as a key"),
    "a memo of billions": (b"\x80\x02}r\xff\xff\xff\xff.", "holds an empty dictionary"),
    "no end": (b"\x80\x02}", "torch file"),
    "nothing": (b"", "torch file"),
    "an empty stack": (b"\x80\x020.", "damaged"),
    "no mark": (b"\x80\x02}u.", "damaged"),
    "a memo that is empty": (b"\x80\x02h\x05.", "damaged"),
    "a text of exabytes": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fx.", "damaged"),
    "a number of gigabytes": (b"\x80\x02\x8b\xff\xff\xff\x7fx.", "damaged"),
    "a number of 5000 digits": (b"I" + b"9" * 5000 + b"\n.", "damaged"),
    "a name that is no text": (b"\x80\x02}X\x03\0\0\0\xed\xa0\x80K\x01s.", "is a int|is not text|damaged"),
    "attributes of a text": (b"\x80\x02X\1\0\0\0a}b.", "sets attributes"),
    "a storage that is none": (b"\x80\x02K\1Q.", "something else than storages"),
}


@pytest.mark.parametrize("what", PICKLES)
def test_pickles_that_torch_does_not_write(tmp_path: Path, what: str) -> None:
    data, message = PICKLES[what]
    for path in (
        write_zip(tmp_path / "zip.bin", data, {"0": FOUR}),
        write_old(tmp_path / "old.bin", data, {}),
    ):
        if what == "a memo of billions":
            assert read_bin_header(path) == {}
            continue
        with pytest.raises(CheckpointError, match=message) as caught:
            read_bin_header(path)
        assert len(str(caught.value)) < 500 and str(path) in str(caught.value)
    assert not Path("ran").exists()


def test_a_dictionary_as_python_2_wrote_it(tmp_path: Path) -> None:
    pairs = Call(OrderedDict, [["x", tensor(ONE, (4,), (1,))]])
    write_zip(tmp_path / "pytorch_model.bin", pairs, {"0": FOUR})
    assert open_bin(tmp_path).read("x").tolist() == [0, 1, 2, 3]


def test_a_pickle_that_never_ends_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 1000)
    write_zip(tmp_path / "x.bin", b"\x80\x02" + b"N0" * 1000 + b".", {})
    with pytest.raises(CheckpointError, match="more than 1,000 instructions"):
        read_bin_header(tmp_path / "x.bin")


GOOD = {"x": tensor(ONE, (4,), (1,))}


def test_zip_files_that_torch_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            read_bin_header(path)

    write_zip(path, GOOD, {"0": FOUR}, compression=zipfile.ZIP_DEFLATED)
    refused("compressed or encrypted")
    write_zip(path, GOOD, {"0": FOUR}, byteorder="big")
    refused("not little-endian")
    write_zip(path, GOOD, {"0": FOUR}, **{"constants.pkl": "x"})
    refused("TorchScript program")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(GOOD))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", pickled({}))
    refused("same name")
    write_zip(path, GOOD, {"0": FOUR})
    whole = path.read_bytes()
    moved = whole.replace(b"archive/data/0", b"archive/data/1", 1)  # in front of the data, not in the table of contents
    path.write_bytes(moved)
    refused("not where its table of contents says")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    refused("git lfs pull")
    write_old(path, GOOD, {"0": (4, FOUR)}, machine={"little_endian": False})
    refused("not little-endian")
    write_old(path, GOOD, {"0": (4, FOUR), "1": (4, FOUR)})
    refused("no tensor uses")
    path.write_bytes(write_old(path, GOOD, {"0": (4, FOUR)}).read_bytes() + b"more")
    refused("4 bytes behind its last storage")
    path.write_bytes(pickle.dumps({"x": 1}))
    refused("no file of torch's")


def damaged(whole: bytes, chance: random.Random) -> Iterator[bytes]:
    """Cut off, and with a few bytes changed."""
    for _ in range(60):
        yield whole[: chance.randrange(len(whole))]
    for _ in range(240):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3, 20))):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        yield bytes(data)


@pytest.mark.parametrize("zip_format", [True, False])
def test_damaged_anywhere_it_is_read_or_refused(tmp_path: Path, zip_format: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    small = {"a": BASE, "t": BASE.t(), "p": torch.nn.Parameter(torch.ones(2)), "f": torch.ones(2).to(torch.float8_e5m2)}
    torch.save(small, path, _use_new_zipfile_serialization=zip_format)
    refused = 0
    for data in damaged(path.read_bytes(), random.Random(3)):
        path.write_bytes(data)
        try:
            ck = open_bin(tmp_path)
            for name, info in ck.tensors.items():
                assert info.nbytes <= len(data)
                ck.read(name)
        except CheckpointError as error:
            refused += 1
            assert len(str(error)) < 600 and "pytorch_model.bin" in str(error)
    assert refused > 60
