"""Headers of GGUF files: what is right is read, and whatever is wrong is told with the file's and the tensor's name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf_writer as w
import pytest
from gguf_writer import LLAMA, Raw, gguf, llama_tensors, zeros
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.checkpoint.gguf.header import is_gguf, read_header
from isobit.checkpoint.gguf.members import contains, read
from isobit.checkpoint.gguf.model import opened
from isobit.checkpoint.gguf.rope import llama3_factors
from isobit.checkpoint.ggufinfo import gguf_tensors
from isobit.errors import CheckpointError, IsobitError
from isobit.models.archs import model_config
from isobit.models.planning import plans

GOOD = gguf(LLAMA, llama_tensors())


def test_what_is_right(tmp_path: Path) -> None:
    kinds = {"a.flag": True, "a.list": [1, 2, 3], "a.texts": ["x", "é"], "a.number": 0.5, "a.large": 1 << 40,
             "a.none": []}  # fmt: skip
    path = w.write(tmp_path / "m.gguf", gguf(LLAMA | kinds, llama_tensors(), version=2))
    header = read_header(path)
    assert is_gguf(path) and header.version == 2
    assert header.metadata["a.flag"] is True and [*header.metadata["a.list"]] == [1, 2, 3]  # type: ignore[misc]
    assert header.metadata["a.texts"] == ("x", "é") and header.metadata["a.number"] == 0.5
    assert header.metadata["a.large"] == 1 << 40 and [*header.metadata["a.none"]] == []  # type: ignore[misc]
    assert {name: entry.shape for name, entry in header.tensors.items()} == w.LLAMA_SHAPES
    last = [*header.tensors.values()][-1]
    assert last.begin + last.nbytes == path.stat().st_size and last.type.name == "Q8_0"


def test_another_alignment(tmp_path: Path) -> None:
    path = w.write(tmp_path / "m.gguf", gguf(LLAMA | {"general.alignment": 256}, llama_tensors(), alignment=256))
    assert all(entry.begin % 256 == 0 for entry in read_header(path).tensors.values())


def test_a_folder_of_its_own(tmp_path: Path) -> None:
    path = w.write(tmp_path / "m.gguf", GOOD)
    assert contains(path / "config.json") and not contains(path / "tokenizer.json") and not contains(path / "x.json")
    assert not contains(tmp_path / "config.json")
    _, infos, orders = gguf_tensors(path)
    assert infos["model.layers.0.mlp.down_proj.weight"].dtype == "Q8_0"
    assert infos["model.layers.0.mlp.down_proj.weight"].shape == (64, 96)
    assert {name for name, order in orders.items() if order.heads} == {
        "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
    }  # fmt: skip
    work, found = plans(path, targets=["cpu-avx2"])
    assert [plan.scheme for row in found for plan in row] and work.stored is not None
    assert work.stored("model.layers.0.mlp.down_proj")[0].group == 32  # type: ignore[union-attr]


def _with(**changes: object) -> bytes:
    return gguf({key: value for key, value in (LLAMA | changes).items() if value is not None}, llama_tensors())


def _tensors(*more: Raw, drop: str = "") -> bytes:
    return gguf(LLAMA, [*(one for one in llama_tensors() if one.name != drop), *more])


def _typed(kind: int, data: bytes) -> bytes:
    return struct.pack("<I", kind) + data


_LIST = struct.pack("<IQ", w.U32, 1 << 40)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "does not begin with GGUF"),
    "another magic": (gguf(LLAMA, [], magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (gguf(LLAMA, [], version=1), "version 1: isobit reads 2 and 3"),
    "version 9": (gguf(LLAMA, [], version=9), "version 9"),
    "big-endian": (gguf(LLAMA, [], version=3 << 24), "big-endian"),
    "cut off in the metadata": (GOOD[:60], "cut off or damaged"),
    "cut off between tensors": (GOOD[: GOOD.index(b"blk.0.ffn_up")], "cut off or damaged"),
    "cut off in the data": (GOOD[:-100], "'blk.0.ffn_down.weight'.*its data ends at byte"),
    "more keys than bytes": (gguf(LLAMA, [], counts=(0, 60000)), "claims 60,000 keys"),
    "more keys than possible": (gguf(LLAMA, [], counts=(0, 1 << 62)), "are the most"),
    "more tensors than bytes": (gguf(LLAMA, [], counts=(50000, 9)), "claims 50,000 tensors"),
    "more tensors than possible": (gguf(LLAMA, [], counts=(1 << 63, 9)), "are the most"),
    "a list without end": (_with(**{"a.b": _typed(w.ARRAY, _LIST)}), "is a list of 1,099,511,627,776"),
    "a list longer than the file": (
        _with(**{"a.b": _typed(w.ARRAY, struct.pack("<IQ", w.U64, 1 << 23))}), "is a list of 8,388,608"),
    "texts longer than the file": (
        _with(**{"a.b": _typed(w.ARRAY, struct.pack("<IQ", w.STRING, 1 << 23))}), "is a list of 8,388,608"),
    "a text longer than the file": (_with(**{"a.b": _typed(w.STRING, struct.pack("<Q", 1 << 50))}), "cut off"),
    "lists of lists": (_with(**{"a.b": _typed(w.ARRAY, struct.pack("<IQ", w.ARRAY, 1))}), "a list of lists"),
    "an unknown type of value": (_with(**{"a.b": _typed(77, b"")}), "of type 77"),
    "a flag that is 2": (_with(**{"a.b": _typed(w.BOOL, b"\2")}), "neither true"),
    "a key twice": (gguf([*LLAMA.items(), ("general.architecture", "llama")], []), "is given twice"),
    "a key that is no text": (GOOD.replace(b"llama.block_count", b"llama.block_coun\xff"), "is not UTF-8 text"),
    "a name of a megabyte": (_tensors(zeros("x" * 5000, 1)), "has 5,000 bytes"),
    "no axes": (_tensors(Raw("x", 0, (), b"")), "'x'.*0 axes"),
    "five axes": (_tensors(zeros("x", 1, 1, 1, 1, 1)), "'x'.*5 axes"),
    "a size of zero": (_tensors(Raw("x", 0, (0, 4), b"")), "'x'.*which no tensor has"),
    "sizes that overflow": (_tensors(Raw("x", 0, (1 << 33, 1 << 33), b"")), "'x'.*which no tensor has"),
    "an unknown type": (_tensors(Raw("x", 99, (32,), b"")), "'x'.*type 99"),
    "a type of the past": (_tensors(Raw("x", 31, (32,), b"")), "'x'.*Q4_0_4_4"),
    "rows of half a block": (_tensors(Raw("x", 12, (128, 2), bytes(144))), "'x'.*stores 256 together"),
    "a tensor twice": (_tensors(zeros("blk.0.ffn_up.weight", 4)), "'blk.0.ffn_up.weight'.*is given twice"),
    "an offset between steps": (_tensors(Raw("x", 0, (4,), bytes(16), offset=4)), "'x'.*no multiple of 32"),
    "an offset behind the file": (_tensors(Raw("x", 0, (4,), bytes(16), offset=1 << 40)), "'x'.*its data ends"),
    "an offset that overflows": (_tensors(Raw("x", 0, (4,), bytes(16), offset=(1 << 64) - 32)), "'x'.*its data ends"),
    "data that overlaps": (
        _tensors(Raw("x", 0, (4,), bytes(16), offset=0)), "'x'.*overlaps that of tensor 'token_embd.weight'"),
    "an alignment of three": (_with(**{"general.alignment": 3}), "no power of two"),
    "an alignment of zero": (_with(**{"general.alignment": 0}), "no power of two"),
    "an alignment in words": (_with(**{"general.alignment": "32"}), "no power of two"),
    "no architecture": (_with(**{"general.architecture": None}), "general.architecture is missing"),
    "an unknown architecture": (_with(**{"general.architecture": "mamba"}), "architecture mamba"),
    "an architecture that is a number": (_with(**{"general.architecture": 7}), "expected a text"),
    "no layers": (_with(**{"llama.block_count": None}), "llama.block_count is missing"),
    "heads without end": (_with(**{"llama.attention.head_count": 1 << 40}), "expected a whole number"),
    "no heads": (_with(**{"llama.attention.head_count": 0}), "expected a whole number"),
    "heads that differ": (_with(**{"llama.attention.head_count_kv": [2, 4]}), "the same in every layer"),
    "an epsilon that is none": (
        _with(**{"llama.attention.layer_norm_rms_epsilon": float("nan")}), "expected a number"),
    "a setting nobody knows": (_with(**{"llama.attention.magic": 3}), "asks for what isobit does not read"),
    "another scaling": (_with(**{"llama.rope.scaling.type": "longrope"}), "reads none, linear and yarn"),
    "no embedding": (_tensors(drop="token_embd.weight"), "token_embd.weight"),
    "factors of another rope": (_tensors(zeros("rope_freqs.weight", 8)), "'rope_freqs.weight'.*factors"),
    "the first of two": (_with(**{"split.count": 2, "split.no": 0}), "is the first of 2 parts"),
    "the second of two": (_with(**{"split.count": 2, "split.no": 1}), "is part 2 of 2"),
    "more parts than the file says": (_with(**{"split.tensors.count": 99}), "hold 99 tensors; they hold 12"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    path = w.write(tmp_path / "model.gguf", data)
    with pytest.raises(IsobitError, match=f"(?s){message}") as caught:
        read_header(path)
        read(path / "config.json")
        gguf_tensors(path)
    assert "model.gguf" in str(caught.value) and len(str(caught.value)) < 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_else_comes_out(folder: Path, data: st.DataObject) -> None:
    head = GOOD.index(b"blk.0.ffn_down") + 80
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, head))
        changed[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    end = data.draw(st.sampled_from([len(changed), data.draw(st.integers(0, len(changed)))]))
    path = w.write(folder / "fuzzed.gguf", bytes(changed[:end]))
    try:
        opened(path)
        config = json.loads(read(path / "config.json"))
        gguf_tensors(path)
        model_config(config)
    except IsobitError as error:
        assert len(str(error)) < 7000 and str(error).replace("\n", "").isprintable()


# ---------------------------------------------------------------------- parts


def _parts(folder: Path, change: Callable[[int, dict[str, object]], None] = lambda index, keys: None) -> Path:
    tensors = llama_tensors()
    for index, some in enumerate((tensors[:5], tensors[5:])):
        keys: dict[str, object] = {**LLAMA} if index == 0 else {}
        keys |= {"split.no": index, "split.count": 2, "split.tensors.count": len(tensors)}
        change(index, keys)
        w.write(folder / f"m-{index + 1:05}-of-00002.gguf", gguf(keys, some))
    return folder / "m-00001-of-00002.gguf"


def test_a_file_in_parts(tmp_path: Path) -> None:
    files, infos, _ = gguf_tensors(_parts(tmp_path))
    assert [file.name for file in files] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"] and len(infos) == 12
    assert infos["model.embed_tokens.weight"].file == files[0]
    assert infos["model.layers.0.mlp.down_proj.weight"].file == files[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index, keys: keys.update({"split.no": 5}) if index else None, "does not say that it is part 2 of 2"),
        (lambda index, keys: keys.update({"split.count": 3}) if index else None, "does not say that it is part 2"),
        (lambda index, keys: keys.update({"split.tensors.count": 11}), "hold 11 tensors; they hold 12"),
        (lambda index, keys: keys.update({"split.count": -1 & 0xFFFFFFFF}), "which no file has"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, change: Callable[[int, dict[str, object]], None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(_parts(tmp_path, change))


def test_a_part_is_missing_or_another_tensor_twice(tmp_path: Path) -> None:
    first = _parts(tmp_path)
    second = tmp_path / "m-00002-of-00002.gguf"
    w.write(second, gguf({"split.no": 1, "split.count": 2}, llama_tensors()))
    with pytest.raises(CheckpointError, match=r"is given twice, here and in m-00001-of-00002\.gguf"):
        opened(first)
    second.unlink()
    first.touch()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf, part 2 of 2, is missing"):
        opened(first)


# ---------------------------------------------------------------------- configurations


def test_the_scaling_of_llama_3_is_found_again(tmp_path: Path) -> None:
    for factor, original, theta in ((8.0, 8192, 500000.0), (32.0, 8192, 500000.0), (8.0, 32, 10000.0)):
        factors = struct.pack("<8f", *llama3_factors(theta, 16, factor, original))
        keys = LLAMA | {"llama.rope.freq_base": theta}
        path = w.write(tmp_path / f"{factor:g}-{original}.gguf",
                       gguf(keys, [*llama_tensors(), Raw("rope_freqs.weight", 0, (8,), factors)]))  # fmt: skip
        found = json.loads(read(path / "config.json"))
        scaling = found["rope_scaling"]
        assert scaling["rope_type"] == "llama3" and found["rope_theta"] == theta
        assert llama3_factors(theta, 16, scaling["factor"], scaling["original_max_position_embeddings"]) == (
            pytest.approx(llama3_factors(theta, 16, factor, original), rel=1e-6)
        )
